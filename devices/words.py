"""What the backends share: how to say what went wrong (a vendor's words, shortened) and who must install what."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from edgert.errors import MissingPackage, OptionError, PrepareRefused, RunFailed
from edgert.machine import Device
from edgert.profile import Target

SIMULATED = "simulated"
"""`Device.driver` of a device that exists on paper only: no backend but `simulated` may reach for it."""

_LINES = 2
_NOISE = re.compile(  # what ONNX Runtime and OpenVINO put around what they have to say: codes, C++ places, headings
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.(cc|cpp|h|hpp):\d+:?( [^\n]*?\)( const)?(?= )(?! failed))?|"
    r"^Exception from \S*:?|^Check '.*' failed at\b:?|\[m|^FrontEnd API failed with \w+:$|"
    r"Model wasn't fully converted\.|Failed operations detailed log:|^Summary:$"
)
_LENGTH = 400


def shortened(error: BaseException | str) -> str:
    """The first useful lines of a vendor's message, at most 400 characters, on one line."""
    text = str(error) or type(error).__name__
    lines = [clean for line in text.splitlines() if (clean := " ".join(_NOISE.sub("", line).split()))]
    short = " ".join(lines[:_LINES]).rstrip(".")
    return short if len(short) <= _LENGTH else short[: _LENGTH - 3] + "..."


def refused(target: Target, error: BaseException | str, remedy: str = "Another target may take it.") -> PrepareRefused:
    """The error for a model that a target will not take, in the vendor's words."""
    return PrepareRefused(f"{target} refuses the model: {shortened(error)}.", remedy, target=str(target))


def failed(target: Target, error: BaseException | str) -> RunFailed:
    """The error for a run that broke, in the vendor's words."""
    return RunFailed(f"{target} failed while it ran: {shortened(error)}.", "Check the inputs, or run another target.")


def in_virtual_time(device: Device) -> bool:
    """Whether nobody waits for what the device takes.

    Raises:
        OptionError: it declares a time that is neither 'real' nor 'virtual'.
    """
    time = device.attributes.get("time", "real") if device.driver == SIMULATED else "real"
    if time not in ("real", "virtual"):
        raise OptionError(f"simulated device {device.id} declares time = {time!r}.", "Use 'real' or 'virtual'.")
    return time == "virtual"


def installed(module: str, distributions: Sequence[str], remedy: str) -> str:
    """Version of the first of `distributions` that is installed and carries `module`; imports nothing.

    Raises:
        MissingPackage: none is, or the module is not there.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is not None:
        for name in distributions:
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return "unknown"  # built from source: there, without a distribution that says its version
    raise MissingPackage(f"package {distributions[0]} is not installed.", remedy, package=distributions[0])


def unusable(distribution: str, error: BaseException, remedy: str) -> MissingPackage:
    """The error for a package that is installed and does not work."""
    return MissingPackage(
        f"package {distribution} is installed and does not work: {shortened(error)}.", remedy, package=distribution
    )
