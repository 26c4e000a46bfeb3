"""Every error that edgert raises, in one tree.

    EdgertError
    ├── OptionError             a setting that the caller chose does not make sense
    │   ├── UnknownTarget       a target or device that this machine or edgert does not have
    │   └── Infeasible          no placement keeps every limit
    ├── ModelError              the model file is at fault
    │   ├── ModelNotFound       no such file, or not readable
    │   ├── ModelCorrupt        truncated, malformed or hostile
    │   ├── ModelUnsupported    well-formed, but nothing here can run it
    │   │   └── NoLastResort    only an accelerator can: nothing could answer if that is lost
    │   └── ModelNotServed      the daemon has no model of that name that answers
    ├── InputError              what was passed to `Model.run` is at fault
    │   ├── UnknownInput        a name (or position) that the model does not have
    │   ├── MissingInput        an input that the model needs was not given
    │   ├── ShapeMismatch       the array's shape does not fit
    │   └── DtypeMismatch       the array's dtype does not fit
    ├── TargetError             a way to run is at fault
    │   ├── MissingPackage      a backend or reader is not installed (or not usable); names the command that helps
    │   ├── PrepareRefused      a backend refused the model on a target
    │   ├── NotEnoughMemory     a target needs more memory than is left
    │   ├── RunFailed           a backend failed while it ran
    │   ├── WrongNumbers        a target's answer left the tolerance
    │   └── DeviceLost          the device is gone
    ├── ChildError              a supervised process is at fault
    │   ├── ChildDied           it exited or was killed
    │   ├── ChildTimeout        it did not answer in time and was killed
    │   └── Garbage             what it sent cannot be an answer
    ├── CacheError              the cache on disk is at fault
    │   ├── CacheUnwritable     nothing can be stored there
    │   └── CacheCorrupt        an entry is damaged
    ├── TransportError          what passes between processes is at fault
    │   ├── WireError           a message is malformed or too large
    │   │   └── VersionMismatch the two ends speak different versions of the messages
    │   ├── EndpointError       an endpoint cannot be listened on: in use, not private, not allowed
    │   ├── PeerUnreachable     nobody answers there
    │   ├── PeerRefused         the other end does not know this end's key, or is not who it should be
    │   ├── SharedMemoryError   memory cannot be made, or another process's not be mapped
    │   └── StaleSlot           a slot was given to somebody else before it was read to the end
    ├── Overloaded              too much work waits already: refused at once, not queued
    ├── DeadlineExceeded        the request's own deadline passed before it was answered
    ├── Cancelled               the work was called off
    └── Closed                  the model was closed

Each message names the culprit and ends with the remedy. An error crosses a process boundary as JSON
(`to_json`, `from_json`), never as a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "CacheCorrupt",
    "CacheError",
    "CacheUnwritable",
    "Cancelled",
    "ChildDied",
    "ChildError",
    "ChildTimeout",
    "Closed",
    "DeadlineExceeded",
    "DeviceLost",
    "DtypeMismatch",
    "EdgertError",
    "EndpointError",
    "Garbage",
    "Infeasible",
    "InputError",
    "MissingInput",
    "MissingPackage",
    "ModelCorrupt",
    "ModelError",
    "ModelNotFound",
    "ModelNotServed",
    "ModelUnsupported",
    "NoLastResort",
    "NotEnoughMemory",
    "OptionError",
    "Overloaded",
    "PeerRefused",
    "PeerUnreachable",
    "PrepareRefused",
    "RunFailed",
    "ShapeMismatch",
    "SharedMemoryError",
    "StaleSlot",
    "TargetError",
    "TransportError",
    "UnknownInput",
    "UnknownTarget",
    "VersionMismatch",
    "WireError",
    "WrongNumbers",
    "from_json",
    "to_json",
]


class EdgertError(Exception):
    """Root of the tree: `except edgert.EdgertError` catches everything that edgert raises on purpose."""

    def __init__(self, message: str, remedy: str = "", **fields: Any) -> None:
        """Say what is wrong (naming the culprit), what to do next, and carry the facts.

        Args:
            message: one sentence, with the name of the thing at fault.
            remedy: what the reader can do about it.
            fields: JSON-able facts that a program may want; they become attributes. Each subclass
                annotates the ones that it carries.
        """
        super().__init__(f"{message} {remedy}".rstrip())
        self.message = message
        self.remedy = remedy
        for name, value in fields.items():
            setattr(self, name, value)


class OptionError(EdgertError):
    """A setting that the caller chose does not make sense."""


class UnknownTarget(OptionError):
    """A target, device or backend was named that is not there."""


class Infeasible(OptionError):
    """No placement keeps every limit; the message says which block, which limit, and by how much."""

    block: str | None
    """Id of the block that does not fit; None when only all of them together do not."""
    limit: str
    """'target', 'group', 'memory', 'segments', 'energy' or 'link'."""
    excess: float | None
    """By how much the limit is missed, in its own unit; None where that has no number."""


class ModelError(EdgertError):
    """The model file is at fault."""


class ModelNotFound(ModelError):
    """There is no such file, or it cannot be read."""


class ModelCorrupt(ModelError):
    """The file is truncated, malformed or hostile."""


class ModelUnsupported(ModelError):
    """The file is well-formed, but nothing on this machine can run it."""


class ModelNotServed(ModelError):
    """The daemon that was asked has no model of that name, or none that answers (yet)."""


class NoLastResort(ModelUnsupported):
    """Only an accelerator reads the model, so nothing could answer if that is lost."""

    target: str
    """The one that reads it."""


class InputError(EdgertError):
    """What was passed to `Model.run` is at fault."""


class UnknownInput(InputError):
    """An input name (or position) that the model does not have."""


class MissingInput(InputError):
    """An input that the model needs was not given."""


class ShapeMismatch(InputError):
    """An input's shape does not fit the model."""

    name: str
    """The input's name."""
    got: tuple[int, ...]
    """The array's shape."""
    expected: tuple[int | str, ...]
    """The model's shape; a `str` is a free dimension."""
    axis: int | None
    """First axis that differs; `None` when the number of axes does."""


class DtypeMismatch(InputError):
    """An input's dtype does not fit the model and no lossless cast exists."""

    name: str
    """The input's name."""
    got: str
    """The array's dtype."""
    expected: str
    """The model's dtype."""


class TargetError(EdgertError):
    """A way to run (backend, device, precision) is at fault."""


class MissingPackage(TargetError):
    """A package is not installed, or is installed and does not work; the remedy is a command."""

    package: str
    """Name of the distribution."""


class PrepareRefused(TargetError):
    """A backend refused a model (or segment) on a target."""

    target: str
    """The target as text, such as `openvino@cpu:0/f32`."""


class NotEnoughMemory(TargetError):
    """A target needs more memory than is left: refused before the kernel would have killed somebody for it, or its
    library could not allocate.
    """

    needed_bytes: int | None
    """By the target that needs least; None where a library failed to allocate and did not say how much."""
    left_bytes: int | None
    """On the box, in the control group, or below the limit that was asked for."""


class RunFailed(TargetError):
    """A backend failed while it ran a prepared segment."""


class WrongNumbers(TargetError):
    """A target's answer left the tolerance."""


class DeviceLost(TargetError):
    """A device that a plan needs is gone."""


class ChildError(EdgertError):
    """A supervised process is at fault."""


class ChildDied(ChildError):
    """A supervised process exited or was killed while it had work."""

    signal: int | None
    """Signal that killed it, if one did."""
    exit_code: int | None
    """Its exit status, if it exited."""


class ChildTimeout(ChildError):
    """A supervised process did not answer in time and was killed."""

    timeout_s: float
    """The limit that it overran."""


class Garbage(ChildError):
    """What a supervised process (or the library in it) sent cannot be an answer: a wrong name, type, shape or id."""

    value: str
    """Name of the value that is wrong."""
    read: bool
    """True when whoever read it complains: the fault is with whoever made it."""


class CacheError(EdgertError):
    """The cache on disk is at fault."""


class CacheUnwritable(CacheError):
    """Nothing can be stored in the cache folder."""


class CacheCorrupt(CacheError):
    """An entry of the cache is damaged; it is never used."""


class TransportError(EdgertError):
    """What passes between processes is at fault."""


class WireError(TransportError):
    """A message between two processes is malformed, too large or of another version."""


class VersionMismatch(WireError):
    """The other end runs an edgert whose messages this one cannot read; nothing that was asked of it has run."""

    endpoint: str
    ours: int
    """Version of the messages that this end speaks."""
    theirs: int
    """That of the other end."""


class EndpointError(TransportError):
    """An endpoint cannot be listened on: it is in use, its folder is not private, or there is no such address here."""

    endpoint: str


class PeerUnreachable(TransportError):
    """Nobody answers at an endpoint, or its connection broke."""

    endpoint: str


class PeerRefused(TransportError):
    """The other end does not know this end's key, or does not have the key that it should."""

    endpoint: str


class SharedMemoryError(TransportError):
    """Shared memory cannot be made, or another process's memory cannot be mapped."""

    shortage: bool
    """True when this process may have no more files or memory: nobody else is at fault. Absent otherwise."""


class StaleSlot(TransportError):
    """A slot was given to somebody else before it was read to the end; what was read must not be used."""


class Overloaded(EdgertError):
    """More work waits than can be answered in time; this request was refused at once and has not run."""

    waiting: int
    """Requests that wait for the same thing."""


class DeadlineExceeded(EdgertError):
    """The deadline that came with the request passed before it was answered; its answer is thrown away."""

    deadline_s: float
    """Seconds that the request was given."""


class Cancelled(EdgertError):
    """The work was called off by whoever asked for it."""


class Closed(EdgertError):
    """The model, or what it runs on, was closed."""


def to_json(error: EdgertError) -> dict[str, Any]:
    """The error as JSON-able data: its type, message, remedy and fields."""
    fields = {name: value for name, value in vars(error).items() if name not in ("message", "remedy")}
    return {"type": type(error).__name__, "message": error.message, "remedy": error.remedy, "fields": fields}


def from_json(data: Mapping[str, Any]) -> EdgertError:
    """The error that `to_json` described; an unknown type becomes an `EdgertError`. Takes anything: it may come from
    another machine, so a field that would change what the object is gets lost.
    """
    kind = _by_name().get(str(data.get("type")), EdgertError)
    fields = data.get("fields")
    kept = {
        name: value
        for name, value in (fields.items() if isinstance(fields, Mapping) else ())
        if isinstance(name, str) and not name.startswith("_") and name not in _RESERVED
    }
    return kind(str(data.get("message", "")), str(data.get("remedy", "")), **kept)


_RESERVED = frozenset({*dir(Exception), "self", "message", "remedy"})


def _by_name() -> dict[str, type[EdgertError]]:
    found: dict[str, type[EdgertError]] = {}
    pending = [EdgertError]
    while pending:
        kind = pending.pop()
        found[kind.__name__] = kind
        pending.extend(kind.__subclasses__())
    return found
