"""Which targets are worth trying for a model on a machine."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgert.devices import backend
from edgert.devices.backend import Source
from edgert.devices.words import in_virtual_time
from edgert.errors import MissingPackage, OptionError, UnknownTarget
from edgert.machine import Device, Machine
from edgert.planning import arm_order
from edgert.profile import PRECISIONS, Precision, Row, Target

_log = logging.getLogger(__name__)
LAST_RESORT = "reference"
"""The backend that answers only what no other does."""
_WIDTH: dict[Precision, int] = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "i8": 8}
_NATIVE = {"onnx": "onnxruntime", "tflite": "litert"}


@dataclass(frozen=True, slots=True)
class Candidates:
    """What there is to try."""

    targets: tuple[Target, ...]
    """Most promising first: the CPU before accelerators that may take long to compile, the format's own library
    first."""
    left_out: tuple[Row, ...]
    """What is there and is not tried, with the reason."""


def candidates(
    source: Source, machine: Machine, precision: str = "own", wanted: Sequence[str] | None = None
) -> Candidates:
    """Every target that this machine has for a model.

    Args:
        source: the model.
        machine: from `probe` or `glance`.
        precision: 'own' (no lower than the model's own), 'any', or one of `PRECISIONS`.
        wanted: targets or patterns such as 'onnxruntime@*'; None for all but the last resort and software devices.

    Raises:
        OptionError: there is no such precision.
        UnknownTarget: something wanted is not there, or nothing runs the model at the one precision that was asked
            for; says what is there.
    """
    if precision not in ("own", "any", *PRECISIONS):
        raise OptionError(
            f"precision {precision!r} is unknown.", f"Use 'own', 'any' or one of {', '.join(PRECISIONS)}."
        )
    offered = _offered(source, machine)
    kept: list[Target] = []
    left_out: list[Row] = []
    for target, device in offered:
        reason = "" if wanted is not None else _not_by_default(target, device)
        reason = reason or _precision_reason(target.precision, source.precision, precision)
        if reason:
            left_out.append(Row(target, "untried", reason))
        else:
            kept.append(target)
    if wanted is not None:
        kept = _matching(kept, wanted, [target for target, _ in offered])
    elif not kept and precision in PRECISIONS:
        _check_precision(precision, left_out)
    places = dict(offered)
    kept.sort(key=lambda target: _promise(target, source, places[target]))
    return Candidates(tuple(kept), tuple(left_out))


def _offered(source: Source, machine: Machine) -> list[tuple[Target, Device]]:
    found: dict[Target, Device] = {}
    for reach in machine.reached():
        device = machine.device(reach.device)
        try:
            library = backend(reach.backend)
        except MissingPackage as error:
            _log.warning("%s", error)
            continue
        for target in library.targets(source, device, reach.variant, thread_counts(len(device.cores))):
            found.setdefault(target, device)
    _check_clocks(found)
    return list(found.items())


def _check_clocks(found: Mapping[Target, Device]) -> None:
    """Refuse to race seconds on paper against real ones; the last resort is not raced."""
    clocks: dict[bool, Device] = {}
    for target, device in found.items():
        if target.backend != LAST_RESORT:
            clocks[in_virtual_time(device)] = device
    if len(clocks) > 1:
        raise OptionError(
            f"{clocks[True].id} of this machine runs in virtual time and {clocks[False].id} does not: "
            "their times cannot be compared.",
            "Describe every device with time = 'virtual' in its attributes, or none.",
        )


def thread_counts(cores: int) -> tuple[int, ...]:
    """How many threads are worth trying on so many cores: the powers of two and all of them."""
    counts = {1 << power for power in range(cores.bit_length()) if 1 << power <= cores}
    return tuple(sorted(counts | {max(1, cores)}))


def _not_by_default(target: Target, device: Device) -> str:
    if target.backend == LAST_RESORT:
        return "last resort: answers only what no other backend does"
    if device.software:
        return "an emulated device has the right numbers and no speed; name it in targets= to use it"
    return ""


def _precision_reason(precision: Precision, own: Precision, asked: str) -> str:
    """Why a target's precision does not suit; '' when it does."""
    if asked == "any":
        return ""
    if asked == "own":
        suits = precision == own or (own != "i8" and _WIDTH[precision] > _WIDTH[own])
        return "" if suits else f"lower precision than the model's own {own}; precision='any' would allow it"
    return "" if precision == asked else f"precision={asked!r} was asked for"


def _check_precision(asked: str, left_out: Sequence[Row]) -> None:
    """Raises UnknownTarget where only the last resort is left, and computes at another precision than `asked`."""
    at_it = [row for row in left_out if row.target.precision == asked]
    if any(row.target.backend == LAST_RESORT for row in at_it):
        return
    there = ", ".join(dict.fromkeys(row.target.precision for row in left_out)) or "none"
    raise UnknownTarget(
        f"no target of this machine runs this model at precision {asked!r}"
        + (": " + "; ".join(f"{row.target}: {row.reason}" for row in at_it) if at_it else "") + ".",
        f"Precisions that are there: {there}. Use one of them, 'own' or 'any'.",
    )  # fmt: skip


def _matching(kept: Sequence[Target], wanted: Sequence[str], offered: Sequence[Target]) -> list[Target]:
    chosen: dict[Target, None] = {}
    for pattern in wanted:
        hits = [target for target in kept if fnmatch.fnmatchcase(str(target), pattern)]
        if not hits and "*" not in pattern:  # a target without its threads means any number of them
            hits = [target for target in kept if str(target).startswith(f"{pattern}/")]
        if not hits:
            known = ", ".join(str(target) for target in offered) or "none"
            raise UnknownTarget(
                f"no target matches {pattern!r} for this model on this machine.",
                f"There are: {known}. A lower precision must be allowed with precision=.",
            )
        chosen.update(dict.fromkeys(hits))
    return list(chosen)


def _promise(target: Target, source: Source, device: Device) -> tuple[bool, bool, bool, int, int, bool]:
    """Sort key: what most likely answers soon and well comes first.

    A large model may spend the budget on few targets, and fewer threads than there are cores pay on small models only,
    which leave time for all: so the other precisions and variants come before them.
    """
    return (
        target.backend == LAST_RESORT,
        not target.device.startswith("cpu"),
        target.backend != _NATIVE.get(source.format, ""),
        arm_order.rank(target, source, device),
        -target.threads,
        bool(target.variant) or target.precision != source.precision,
    )
