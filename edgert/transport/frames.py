"""The `messages` as ZeroMQ frames.

The first frame is

    magic 'EDRM' | version u16 | kind u16 | request u64 | attempt u32 | frames u32 | time left f64 | body

all little-endian; 'frames' counts those that follow, one raw array each; the time left is in seconds, infinite where
there is no deadline. The body is a JSON list with the kind's other fields in the order of its class. A value in it is a
list for a `Descriptor`, else a tree as in `wire`, whose arrays name their frame in place of an offset.

JSON was measured: Work, Done and Free take 6 to 13 us there and back with one array each, of which a fixed struct
would save two thirds; a hop takes ten times that.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from edgert.errors import WireError
from edgert.tensor import Array, Data
from edgert.transport import messages as say
from edgert.transport import wire
from edgert.transport.messages import Carried, Descriptor, Message

VERSION = 1
MAX_FRAMES = 1 << 16
_ENVELOPE = struct.Struct("<4sHHQIId")
_MAGIC = b"EDRM"
_U64 = 1 << 64
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
    number, write = _WRITERS[type(message)]
    arrays: Frames = []
    deadline_s = getattr(message, "deadline_s", None)
    left_s = math.inf if deadline_s is None else deadline_s - (time.monotonic() if now_s is None else now_s)
    request, attempt = getattr(message, "request", 0), getattr(message, "attempt", 0)
    try:
        body = _to_json(write(message, arrays)).encode()
        first = _ENVELOPE.pack(_MAGIC, VERSION, number, request, attempt, len(arrays), left_s)
    except (TypeError, ValueError, AttributeError, RecursionError, struct.error) as error:
        raise WireError(f"a {type(message).__name__} cannot be written: {error}.") from error
    return [first + body, *arrays]


def unpack(frames: Sequence[bytes | memoryview], now_s: float | None = None) -> Message:
    """The message that `pack` wrote. Its arrays are views of the frames, read-only where those are.

    Args:
        frames: as received.
        now_s: what `time.monotonic()` gives, to count the deadline from.

    Raises:
        WireError: it is no message of this version.
    """
    try:
        first, arrays = frames[0], frames[1:]
        magic, version, number, request, attempt, count, left_s = _ENVELOPE.unpack_from(first)
        if magic != _MAGIC:
            raise WireError(f"message starts with {magic!r}, not {_MAGIC!r}.")
        if version != VERSION:
            raise WireError(
                f"message has version {version}, this edgert speaks {VERSION}.", "Use the same edgert on both ends."
            )
        if count != len(arrays):
            raise WireError(f"message announces {count} arrays and has {len(arrays)}.")
        deadline_s = None
        if left_s != math.inf:
            deadline_s = (time.monotonic() if now_s is None else now_s) + left_s
            if not math.isfinite(deadline_s):
                raise WireError(f"message has {left_s} s left.")
        body = _from_json(str(first[_ENVELOPE.size :], "utf-8"))
        if type(body) is not list:
            raise WireError("message body is no list.")
        message: Message = _READERS[number](_Envelope(request, attempt, deadline_s, arrays), *body)
    except wire.MALFORMED as error:
        raise WireError(f"message is malformed: {error!r}.") from error
    return message


class _Envelope:
    """What a body's reader needs beside the body."""

    __slots__ = ("arrays", "attempt", "deadline_s", "request")

    def __init__(
        self, request: int, attempt: int, deadline_s: float | None, arrays: Sequence[bytes | memoryview]
    ) -> None:
        self.request, self.attempt, self.deadline_s, self.arrays = request, attempt, deadline_s, arrays

    def find(self, frame: int, count: int) -> memoryview:
        if not 0 <= frame < len(self.arrays):
            raise WireError(f"there is no frame {frame}.")
        return memoryview(self.arrays[frame])


def _carry(values: Mapping[str, Carried], arrays: Frames) -> dict[str, Any]:
    return {
        name: _listed(value) if type(value) is Descriptor else _tree(value, arrays)  # type: ignore[arg-type]
        for name, value in values.items()
    }


def _listed(it: Descriptor) -> list[Any]:
    return [it.pool, it.pid, it.fd, it.offset, it.generation, it.dtype, it.shape, it.checksum]


def _tree(value: Data, arrays: Frames) -> Any:
    def place(array: Array) -> int:
        arrays.append(wire.raw_bytes(array))
        return len(arrays) - 1

    return wire.write_tree(value, place)


def _carried(values: Any, envelope: _Envelope) -> dict[str, Carried]:
    return {
        name: _descriptor(value) if type(value) is list else wire.read_tree(value, envelope.find)
        for name, value in values.items()
    }


def _descriptor(fields: list[Any]) -> Descriptor:
    pool, pid, fd, offset, generation, dtype, shape, checksum = fields
    for number in (pool, pid, fd, offset, generation, checksum, *shape):
        if type(number) is not int or not 0 <= number < _U64:
            raise WireError(f"{number!r} in a descriptor is no number that may be there.")
    if dtype not in wire.FIXED:
        raise WireError(f"element type {dtype!r} does not lie in slots.")
    return Descriptor(pool, pid, fd, offset, generation, dtype, tuple(shape), checksum)


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


def _leg(segment: Any, inputs: Any, sends: Any, caller: Any) -> say.Leg:
    return say.Leg(
        _text(segment),
        _texts(inputs),
        tuple(say.Send(_text(endpoint), _text(to), _texts(values)) for endpoint, to, values in sends),
        _text(caller),
    )


def _running(request: Any, attempt: Any, segment: Any, for_s: Any) -> say.Running:
    return say.Running(_count(request), _count(attempt), _text(segment), float(for_s))


def _slot(pool: Any, fd: Any, offset: Any, generation: Any) -> tuple[int, int, int, int]:
    return _count(pool), _count(fd), _count(offset), _count(generation)


def _peer(kind: type[say.Hello] | type[say.Welcome]) -> Callable[..., Message]:
    def read(_: _Envelope, *fields: Any) -> Message:
        who, endpoint, pid, host, life, facts = fields
        return kind(_text(who), _text(endpoint), _count(pid), _text(host), _count(life), _facts(facts))

    return read


def _peer_body(m: Any, _: Frames) -> list[Any]:
    return [m.who, m.endpoint, m.pid, m.host, m.life, m.facts]


def _plain(*names: str) -> Callable[[Any, Frames], list[Any]]:
    return lambda m, _: [getattr(m, name) for name in names]


_KINDS: Sequence[tuple[int, type, Callable[[Any, Frames], list[Any]], Callable[..., Any]]] = (
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
                              leg.caller] for leg in m.legs]],
     lambda _, route, legs: say.Route(_count(route), tuple(_leg(*leg) for leg in legs))),
    (7, say.Work,
     lambda m, a: [m.route, m.segment, m.home, _carry(m.values, a)],
     lambda e, route, segment, home, values: say.Work(
         e.request, e.attempt, e.deadline_s, _count(route), _text(segment), _carried(values, e), _text(home))),
    (8, say.Done,
     lambda m, a: [m.segment, m.home, m.facts, _carry(m.values, a)],
     lambda e, segment, home, facts, values: say.Done(
         e.request, e.attempt, _text(segment), _carried(values, e), _text(home), _facts(facts))),
    (9, say.Failed, _plain("segment", "error"),
     lambda e, segment, error: say.Failed(e.request, e.attempt, _text(segment), _facts(error))),
    (10, say.Free, _plain("reader", "slots"),
     lambda _, reader, slots: say.Free(_text(reader), tuple(_slot(*slot) for slot in slots))),
    (11, say.Heartbeat,
     lambda m, _: [m.who, m.life, m.queued, [[r.request, r.attempt, r.segment, r.for_s] for r in m.running], m.facts],
     lambda _, who, life, queued, running, facts: say.Heartbeat(
         _text(who), _count(life), _count(queued), tuple(_running(*each) for each in running), _facts(facts))),
    (12, say.Cancel, _plain(), lambda e: say.Cancel(e.request, e.attempt)),
    (13, say.Drain, _plain(), lambda _: say.Drain()),
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
)  # fmt: skip
_WRITERS = {kind: (number, write) for number, kind, write, _ in _KINDS}
_READERS = {number: read for number, _, _, read in _KINDS}
