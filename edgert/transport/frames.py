"""The `messages` as ZeroMQ frames.

The first frame is

    magic 'EDRM' | version u16 | kind u16 | request u64 | attempt u32 | frames u16 | slots u16 | time left f64
    | generation u64 of each slot | body

all little-endian; 'frames' counts those that follow, one raw array each; the time left is in seconds, infinite where
there is no deadline. The body is a JSON list with the kind's other fields. A value in it is a list for a `Descriptor`,
else a tree as in `wire`, whose arrays name their frame in place of an offset. Generations are kept out of the body so
that it is the same each time a slot is used again for the same segment: what was parsed once is remembered.

Magic and version stand there in every version to come. A message of another version is read as a `Speaks`, whose own
bytes no version changes, so that two ends of different releases learn of it from each other:

    magic 'EDRV' | version u16 | release of edgert, ASCII, at most 32 bytes
"""

from __future__ import annotations

import functools
import json
import math
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from edgert.errors import WireError
from edgert.tensor import Array, DType
from edgert.transport import messages as say
from edgert.transport import wire
from edgert.transport.messages import Carried, Descriptor, Message

VERSION = 2
_FIELDS = "<4sHHQIHHd"
_ENVELOPE = struct.Struct(_FIELDS)
TIME_LEFT = struct.Struct("<d")
TIME_LEFT_AT = _ENVELOPE.size - TIME_LEFT.size
"""Where the time left stands in the first frame."""
_MAGIC = b"EDRM"
_START = struct.Struct("<4sH")
_OURS = _START.pack(_MAGIC, VERSION)
_SPEAKS = b"EDRV"
_RELEASE_BYTES = 32
_U64 = 1 << 64
_INTEGERS = {int}
_WORK = 7
AHEAD = 18
KIND = struct.Struct("<H")
KIND_AT = _START.size
"""Where the kind stands in the first frame."""
_IN_SLOTS: Mapping[int, type[say.Work] | type[say.Ahead]] = {_WORK: say.Work, AHEAD: say.Ahead}
_to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_from_json = json.JSONDecoder().decode
Frames: TypeAlias = "list[bytes | memoryview]"


def pack(message: Message, now_s: float | None = None) -> Frames:
    """The frames of a message; arrays that are contiguous are not copied.

    Args:
        message: any.
        now_s: what `time.monotonic()` gives, to count the time left of a deadline from.

    Raises:
        WireError: something in it is neither JSON nor data, nests too deep, or is out of its range.
    """
    deadline_s = getattr(message, "deadline_s", None)
    left_s = math.inf if deadline_s is None else deadline_s - (time.monotonic() if now_s is None else now_s)
    if type(message) is say.Work:
        first = _work_in_slots(message, left_s)
        if first is not None:
            return [first]
    elif type(message) is say.Speaks:
        return [_START.pack(_SPEAKS, message.version) + message.release.encode("ascii", "replace")[:_RELEASE_BYTES]]
    number, write = _WRITERS[type(message)]
    parts = _Parts()
    request, attempt = getattr(message, "request", 0), getattr(message, "attempt", 0)
    try:
        body = _to_json(write(message, parts)).encode()
        slots, arrays = parts.generations, parts.arrays
        first = _ENVELOPE.pack(_MAGIC, VERSION, number, request, attempt, len(arrays), len(slots), left_s)
        first += struct.pack(f"<{len(slots)}Q", *slots) + body
    except (TypeError, ValueError, AttributeError, RecursionError, struct.error) as error:
        raise WireError(f"a {type(message).__name__} cannot be written: {error}.") from error
    return [first, *arrays]


def unpack(frames: Sequence[bytes | memoryview], now_s: float | None = None) -> Message:
    """The message that `pack` wrote. Its arrays are views of the frames, read-only where those are.

    Args:
        frames: as received.
        now_s: what `time.monotonic()` gives, to count the deadline from.

    Raises:
        WireError: it is no message.
    """
    try:
        first, arrays = frames[0], frames[1:]
        if first[: _START.size] != _OURS:
            return _foreign(bytes(first), len(arrays))
        _, _, number, request, attempt, count, slots, left_s = _ENVELOPE.unpack_from(first)
        if count != len(arrays):
            raise WireError(f"message announces {count} arrays and has {len(arrays)}.")
        deadline_s = None
        if left_s != math.inf:
            deadline_s = (time.monotonic() if now_s is None else now_s) + left_s
            if not math.isfinite(deadline_s):
                raise WireError(f"message has {left_s} s left.")
        generations = struct.unpack_from(f"<{slots}Q", first, _ENVELOPE.size)
        body = bytes(first[_ENVELOPE.size + 8 * slots :])
        known = _known_work(body, slots) if number in _IN_SLOTS and slots and not count else None
        if known is not None:
            route, segment, home, places = known
            at = zip(places, generations, strict=True)
            values = {name: Descriptor(*where, generation, *what) for (name, where, what), generation in at}
            return _IN_SLOTS[number](request, attempt, deadline_s, route, segment, values, home)
        content = _from_json(str(body, "utf-8"))
        if type(content) is not list:
            raise WireError("message body is no list.")
        envelope = _Envelope(request, attempt, deadline_s, arrays, iter(generations))
        message: Message = _READERS[number](envelope, *content)
        if next(envelope.generations, None) is not None:
            raise WireError("message has more generations than slots.")
    except wire.MALFORMED as error:
        raise WireError(f"message is malformed: {error!r}.") from error
    return message


def own_version() -> say.Speaks:
    """What this edgert speaks."""
    # Not imported: the package's front page imports what is above this module.
    return say.Speaks(VERSION, str(sys.modules[__name__.partition(".")[0]].__version__))


def _foreign(first: bytes, more: int) -> say.Speaks:
    """What the sender speaks, where it says so or its message is another version's.

    Args:
        first: frame.
        more: frames that follow it.

    Raises:
        WireError: it is no message of any version.
    """
    magic, version = _START.unpack_from(first)
    if magic == _MAGIC:
        return say.Speaks(version)
    release = first[_START.size :]
    if magic != _SPEAKS:
        raise WireError(f"message starts with {magic!r}, not {_MAGIC!r}.")
    if more or not 0 < len(release) <= _RELEASE_BYTES or not all(33 <= byte < 127 for byte in release):
        raise WireError("a message that tells its sender's version is malformed.")
    return say.Speaks(version, release.decode("ascii"))


def _work_in_slots(work: say.Work, left_s: float) -> bytes | None:
    """A `Work` all of whose values lie in slots; None where some do not. Its body was most likely written before."""
    slots = [value for value in work.values.values() if isinstance(value, Descriptor)]
    if len(slots) != len(work.values):
        return None
    generations = [it.generation for it in slots]
    places = tuple([(it.pool, it.pid, it.fd, it.offset, it.dtype, it.shape, it.checksum) for it in slots])
    try:
        body = _work_body(work.route, work.segment, work.home, tuple(work.values), places)
        count = len(places)
        return (
            struct.pack(
                f"{_FIELDS}{count}Q", _MAGIC, VERSION, _WORK, work.request, work.attempt, 0, count, left_s, *generations
            )
            + body
        )
    except (TypeError, ValueError, RecursionError, struct.error) as error:
        raise WireError(f"a Work cannot be written: {error}.") from error


@functools.lru_cache(1024)
def _work_body(route: int, segment: str, home: str, names: tuple[str, ...], places: tuple[Any, ...]) -> bytes:
    return _to_json([route, segment, home, dict(zip(names, places, strict=True))]).encode()


class _Envelope:
    """What a body's reader needs beside the body."""

    __slots__ = ("arrays", "attempt", "deadline_s", "generations", "request")

    def __init__(
        self, request: int, attempt: int, deadline_s: float | None, arrays: Sequence[bytes | memoryview],
        generations: Iterator[int],
    ) -> None:  # fmt: skip
        self.request, self.attempt, self.deadline_s = request, attempt, deadline_s
        self.arrays, self.generations = arrays, generations

    def find(self, frame: int, count: int) -> memoryview:
        if not 0 <= frame < len(self.arrays):
            raise WireError(f"there is no frame {frame}.")
        return memoryview(self.arrays[frame])


class _Parts:
    """What goes beside a body while it is written."""

    __slots__ = ("arrays", "generations")

    def __init__(self) -> None:
        self.arrays: Frames = []
        self.generations: list[int] = []

    def place(self, array: Array) -> int:
        self.arrays.append(wire.raw_bytes(array))
        return len(self.arrays) - 1


def _carry(values: Mapping[str, Carried], parts: _Parts) -> dict[str, Any]:
    return {
        name: _listed(value, parts) if isinstance(value, Descriptor) else wire.write_tree(value, parts.place)
        for name, value in values.items()
    }


def _listed(it: Descriptor, parts: _Parts) -> list[Any]:
    parts.generations.append(it.generation)
    return [it.pool, it.pid, it.fd, it.offset, it.dtype, it.shape, it.checksum]


def _refs(slots: Sequence[tuple[int, int, int, int]], parts: _Parts) -> list[Any]:
    parts.generations.extend(slot[3] for slot in slots)
    return [slot[:3] for slot in slots]


def _carried(values: Any, envelope: _Envelope) -> dict[str, Carried]:
    return {
        name: _descriptor(value, envelope) if type(value) is list else wire.read_tree(value, envelope.find)
        for name, value in values.items()
    }


_Where: TypeAlias = tuple[int, int, int, int]
_What: TypeAlias = tuple[DType, tuple[int, ...], int]


@functools.lru_cache(1024)
def _known_work(body: bytes, slots: int) -> tuple[int, str, str, tuple[tuple[str, _Where, _What], ...]] | None:
    """The body of a `Work` whose values all lie in slots; None where some (texts) are in the body itself."""
    route, segment, home, values = _from_json(str(body, "utf-8"))
    if len(values) != slots:
        return None
    return _count(route), _text(segment), _text(home), tuple((name, *_place(it)) for name, it in values.items())


def _descriptor(fields: list[Any], envelope: _Envelope) -> Descriptor:
    where, what = _place(fields)
    return Descriptor(*where, next(envelope.generations), *what)


def _place(fields: list[Any]) -> tuple[_Where, _What]:
    """A descriptor's fields but for the generation: those before and those after it."""
    pool, pid, fd, offset, dtype, shape, checksum = fields
    numbers = (pool, pid, fd, offset, checksum, *shape)
    if {*map(type, numbers)} != _INTEGERS or min(numbers) < 0 or max(numbers) >= _U64:
        raise WireError(f"a descriptor has {numbers}, which are not all numbers that may be there.")
    if dtype not in wire.FIXED:
        raise WireError(f"element type {dtype!r} does not lie in slots.")
    return (pool, pid, fd, offset), (dtype, tuple(shape), checksum)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise WireError(f"{value!r} is no text.")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _U64:
        raise WireError(f"{value!r} is no number of 64 bits.")
    return value


def _facts(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise WireError(f"{value!r} is no mapping.")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(map(_text, values)) if type(values) is list else _wrong(values)


def _wrong(value: Any) -> Any:
    raise WireError(f"{value!r} is no list.")


def _leg(segment: Any, inputs: Any, sends: Any, caller: Any, priority: Any) -> say.Leg:
    if type(priority) is not int:
        raise WireError(f"a route has the priority {priority!r}.")
    return say.Leg(
        _text(segment),
        _texts(inputs),
        tuple(say.Send(_text(endpoint), _text(to), _texts(values)) for endpoint, to, values in sends),
        _text(caller),
        priority,
    )


def _running(request: Any, attempt: Any, segment: Any, for_s: Any) -> say.Running:
    return say.Running(_count(request), _count(attempt), _text(segment), float(for_s))


def _slot(envelope: _Envelope, pool: Any, fd: Any, offset: Any) -> tuple[int, int, int, int]:
    return _count(pool), _count(fd), _count(offset), next(envelope.generations)


def _peer(kind: type[say.Hello] | type[say.Welcome]) -> Callable[..., Message]:
    def read(_: _Envelope, *fields: Any) -> Message:
        who, endpoint, pid, host, life, facts = fields
        return kind(_text(who), _text(endpoint), _count(pid), _text(host), _count(life), _facts(facts))

    return read


def _peer_body(m: Any, _: _Parts) -> list[Any]:
    return [m.who, m.endpoint, m.pid, m.host, m.life, m.facts]


def _plain(*names: str) -> Callable[[Any, _Parts], list[Any]]:
    return lambda m, _: [getattr(m, name) for name in names]


_KINDS: Sequence[tuple[int, type, Callable[[Any, _Parts], list[Any]], Callable[..., Any]]] = (
    # number, class, its body, and from the body back; a number is never given again
    (1, say.Hello, _peer_body, _peer(say.Hello)),
    (2, say.Welcome, _peer_body, _peer(say.Welcome)),
    (3, say.Prepare,
     lambda m, a: [m.segment, m.facts, _carry(m.files, a)],
     lambda e, segment, facts, files: say.Prepare(
         e.request, _text(segment), _facts(facts), _carried(files, e), e.deadline_s)),
    (4, say.Prepared, _plain("segment", "facts"),
     lambda e, segment, facts: say.Prepared(e.request, _text(segment), _facts(facts))),
    (5, say.Refused, _plain("segment", "error"),
     lambda e, segment, error: say.Refused(e.request, _text(segment), _facts(error))),
    (6, say.Route,
     lambda m, _: [m.route, [[leg.segment, leg.inputs, [[s.endpoint, s.segment, s.values] for s in leg.sends],
                              leg.caller, leg.priority] for leg in m.legs]],
     lambda _, route, legs: say.Route(_count(route), tuple(_leg(*leg) for leg in legs))),
    (_WORK, say.Work,
     lambda m, a: [m.route, m.segment, m.home, _carry(m.values, a)],
     lambda e, route, segment, home, values: say.Work(
         e.request, e.attempt, e.deadline_s, _count(route), _text(segment), _carried(values, e), _text(home))),
    (8, say.Done,
     lambda m, a: [m.segment, m.home, m.facts, _carry(m.values, a)],
     lambda e, segment, home, facts, values: say.Done(
         e.request, e.attempt, _text(segment), _carried(values, e), _text(home), _facts(facts))),
    (9, say.Failed, _plain("segment", "error"),
     lambda e, segment, error: say.Failed(e.request, e.attempt, _text(segment), _facts(error))),
    (10, say.Free,
     lambda m, a: [m.reader, _refs(m.slots, a)],
     lambda e, reader, slots: say.Free(_text(reader), tuple([_slot(e, *slot) for slot in slots]))),
    (11, say.Heartbeat,
     lambda m, _: [m.who, m.life, m.queued, [[r.request, r.attempt, r.segment, r.for_s] for r in m.running], m.facts],
     lambda _, who, life, queued, running, facts: say.Heartbeat(
         _text(who), _count(life), _count(queued), tuple(_running(*each) for each in running), _facts(facts))),
    (12, say.Cancel, _plain(), lambda e: say.Cancel(e.request, e.attempt)),
    (14, say.Bye, _plain("who", "life", "reason"),
     lambda _, who, life, reason: say.Bye(_text(who), _count(life), _text(reason))),
    (15, say.Call,
     lambda m, a: [m.method, m.facts, _carry(m.values, a)],
     lambda e, method, facts, values: say.Call(
         e.request, _text(method), _facts(facts), _carried(values, e), e.deadline_s)),
    (16, say.Answer,
     lambda m, a: [m.facts, _carry(m.values, a), m.error],
     lambda e, facts, values, error: say.Answer(
         e.request, _facts(facts), _carried(values, e), None if error is None else _facts(error))),
    (17, say.Soon, _plain("route", "segment"), lambda _, route, segment: say.Soon(_count(route), _text(segment))),
    (AHEAD, say.Ahead,
     lambda m, a: [m.route, m.segment, m.home, _carry(m.values, a)],
     lambda e, route, segment, home, values: say.Ahead(
         e.request, e.attempt, e.deadline_s, _count(route), _text(segment),
         {name: _descriptor(fields, e) for name, fields in values.items()}, _text(home))),
)  # fmt: skip
_WRITERS = {kind: (number, write) for number, kind, write, _ in _KINDS}
_READERS = {number: read for number, _, _, read in _KINDS}
