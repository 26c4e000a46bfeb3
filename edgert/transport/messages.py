"""What executors, pipelines, daemons and clients say to one another. `wire` makes bytes of it, `sockets` moves them.

| message | from -> to | says |
|---|---|---|
| Hello, Welcome | caller <-> executor | who is there, in which life of which process, on which host |
| Prepare, Prepared, Refused | caller <-> executor | get a segment ready; it is; it cannot be |
| Route | caller -> executor | where each segment's outputs go, once for many requests |
| Work, Done, Failed | caller -> executor -> executor -> caller | run a segment; the outputs; what went wrong |
| Soon | executor -> executor | a `Work` will come, since the run that makes its values began |
| Ahead | executor -> executor | that `Work` itself, whose slots are being written |
| Free | reader -> owner | slots that were read and may be used again |
| Heartbeat | executor -> caller | alive, what runs since when, what waits |
| Cancel, Bye | either way | stop one request; gone |
| Call, Answer | client <-> daemon | one method with its arguments; its result |
| Speaks | either way | I cannot read that: this is the version that I speak |

A message about a request carries its number and the attempt: an answer of an attempt that was given up is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from edgert.tensor import Data, DType

Facts: TypeAlias = Mapping[str, Any]
"""JSON: what the two ends agree on beyond the fields here."""
STOPPING = "stopping"
"""Among the facts of an `Answer` with an error, true: the call has not run, since this end is stopping; the next one at
the same endpoint may take it."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An array in a slot of another process's pool (`shm`): enough to map it, and to see that it is still the same."""

    pool: int
    """Random number of the pool, 64 bits: a process number that was given again is noticed."""
    pid: int
    """The owner's process number."""
    fd: int
    """The owner's file descriptor of the memory."""
    offset: int
    """Where the slot's header begins, bytes; the array follows the header."""
    generation: int
    """Counts the slot's uses; even once it is published."""
    dtype: DType
    shape: tuple[int, ...]
    checksum: int = 0
    """CRC-32 of the array's bytes; 0 when none was taken (a CRC that comes out as 0 is written as 1)."""

    @property
    def slot(self) -> tuple[int, int, int, int]:
        """What names this use of the slot: pool, file descriptor, offset, generation."""
        return self.pool, self.fd, self.offset, self.generation


Carried: TypeAlias = "Descriptor | Data"
"""A value in a message: the array itself (or a list, map, scalar, None), or where it lies."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first word to a peer."""

    who: str
    """Name of the sender, for logs: 'pipeline of mobilenet.onnx'."""
    endpoint: str
    """Its own inbox, where answers go; '' when it listens on no inbox and reads answers from the same socket."""
    pid: int
    host: str
    """Which running system it is on (`sockets.host_id`): shared memory is possible only on the same one."""
    life: int
    """Random number of this life of the sender, 64 bits: a restarted process has another."""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to `Hello`; same fields, of the one who answers."""

    who: str
    endpoint: str
    pid: int
    host: str
    life: int
    facts: Facts = field(default_factory=dict)
    """An executor's: its device, its backends and their versions."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get a segment ready."""

    request: int
    """Number of this order, for the answer."""
    segment: str
    """The name that `Work` will use, unique among all that this executor holds."""
    facts: Facts
    """What to prepare: source, target, device, cores, limits."""
    files: Mapping[str, Carried] = field(default_factory=dict)
    """Model files for an executor on another host, as arrays of uint8; empty where it reads the caller's disk."""
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The segment is ready."""

    request: int
    segment: str
    facts: Facts
    """What the backend said: nodes by device, time, memory."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The segment (or any other order) was not carried out."""

    request: int
    segment: str
    error: Facts
    """`errors.to_json`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Values that a segment hands on."""

    endpoint: str
    """The reader's inbox."""
    segment: str
    """The reader's segment, which gets them in a `Work`; '' when they are the caller's, in a `Done`."""
    values: tuple[str, ...]
    """Names; '' never."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One segment's place in a route."""

    segment: str
    inputs: tuple[str, ...]
    """It runs when these are there; they may come in several `Work`s."""
    sends: tuple[Send, ...]
    caller: str
    """Inbox of the caller, for `Failed`."""
    priority: int = 0
    """Of all requests on this route: higher goes first. Said here, so that the message of each request need not."""


@dataclass(frozen=True, slots=True)
class Route:
    """How requests travel through an executor's segments. Said once; a `Work` names it by number."""

    route: int
    """Unique at the executor: random, 64 bits."""
    legs: tuple[Leg, ...]
    """Of the segments that this executor runs. Empty: forget the route."""


@dataclass(frozen=True, slots=True)
class Work:
    """Run a segment (once all its inputs came), and send the outputs where the route says."""

    request: int
    attempt: int
    """0 for the first; a repetition after a failure has the next."""
    deadline_s: float | None
    """On the receiver's `time.monotonic()`. On the wire it is the time left, so that no two clocks are compared."""
    route: int
    segment: str
    values: Mapping[str, Carried]
    """Some or all inputs by name."""
    home: str = ""
    """Inbox of the one whose slots these are, where `Free` goes; '' when no value lies in a slot."""


@dataclass(frozen=True, slots=True)
class Soon:
    """The run began whose outputs come in a `Work`: its reader may be awake by then. A hint, which may be lost."""

    route: int
    segment: str
    """The reader's."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """A `Work` before its time: its values are being computed into these slots. Its reader may begin as soon as it sees
    them published; the `Work` itself follows, and is then the same one. A hint, which may be lost or never come true.
    """

    request: int
    attempt: int
    deadline_s: float | None
    """These and the following as in `Work`."""
    route: int
    segment: str
    values: Mapping[str, Descriptor]
    """As the slots will be when they are published."""
    home: str


@dataclass(frozen=True, slots=True)
class Done:
    """Outputs for the caller."""

    request: int
    attempt: int
    segment: str
    values: Mapping[str, Carried]
    home: str = ""
    """As in `Work`."""
    facts: Facts = field(default_factory=dict)
    """Timings and what else the receipt needs."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A request failed in a segment; the caller decides what is next."""

    request: int
    attempt: int
    segment: str
    error: Facts
    """`errors.to_json`."""


@dataclass(frozen=True, slots=True)
class Free:
    """Slots that the sender read, which their owner may use again."""

    reader: str
    """The name under which the owner shared them: the reader's endpoint."""
    slots: tuple[tuple[int, int, int, int], ...]
    """`Descriptor.slot` of each."""


@dataclass(frozen=True, slots=True)
class Running:
    """A run that goes on."""

    request: int
    attempt: int
    segment: str
    for_s: float
    """How long it runs already."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The sender lives. Comes from a thread of its own, so a long run does not keep it back."""

    who: str
    life: int
    queued: int
    """Requests that wait."""
    running: tuple[Running, ...] = ()
    facts: Facts = field(default_factory=dict)
    """Counters since the start."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this request (up to and including this attempt) any more."""

    request: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender goes; nothing of it will come any more."""

    who: str
    life: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """Do one thing and answer."""

    request: int
    """Number of the sender's choice, for the answer."""
    method: str
    facts: Facts = field(default_factory=dict)
    values: Mapping[str, Carried] = field(default_factory=dict)
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a `Call` gave."""

    request: int
    facts: Facts = field(default_factory=dict)
    values: Mapping[str, Carried] = field(default_factory=dict)
    error: Facts | None = None
    """`errors.to_json` when it failed; the other fields are then empty, but for `STOPPING`."""


@dataclass(frozen=True, slots=True)
class Speaks:
    """The answer to a message of another version. Its bytes are the same in all versions."""

    version: int
    """Of the messages that the sender speaks."""
    release: str = ""
    """Of the sender's edgert, such as '0.1.0'; '' where nothing but the version of its message is known."""


Message: TypeAlias = (
    Hello | Welcome | Prepare | Prepared | Refused | Route | Work | Soon | Ahead | Done | Failed | Free | Heartbeat
    | Cancel | Bye | Call | Answer | Speaks
)  # fmt: skip


def time_left_s(deadline_s: float | None, now_s: float) -> float:
    """Seconds from `now_s` to a deadline, infinite without one; both on `time.monotonic()`."""
    return math.inf if deadline_s is None else deadline_s - now_s
