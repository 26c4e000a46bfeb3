"""Messages as bytes: what is said arrives, and what is no message is refused with one error."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgert
from edgert import errors
from edgert.errors import RunFailed, WireError
from edgert.transport import frames
from edgert.transport import messages as say

NOW_S = 1000.0
u64 = st.integers(0, (1 << 64) - 1)
u32 = st.integers(0, (1 << 32) - 1)
text = st.text(st.characters(codec="utf-8"), max_size=8)
facts = st.dictionaries(text, st.none() | st.booleans() | st.integers() | text | st.lists(text, max_size=2), max_size=3)
deadline = st.none() | st.floats(-1e6, 1e6).map(lambda left_s: NOW_S + left_s)
fixed = st.sampled_from(["float32", "int8", "bfloat16", "uint64", "bool", "int4"])
shapes = st.lists(st.integers(0, 1 << 40), max_size=5).map(tuple)
descriptors = st.builds(say.Descriptor, u64, u64, u64, u64, u64, fixed, shapes, u32)
arrays = st.builds(
    lambda shape, dtype: np.arange(math.prod(shape)).astype(dtype).reshape(shape),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(["float32", "int8", "uint16", "bool", "complex64"]),
)
texts = st.lists(text, max_size=3).map(lambda items: np.array(items, dtype=object))
values = st.dictionaries(text, descriptors | arrays | texts | st.none() | st.lists(arrays, max_size=2), max_size=4)
legs = st.builds(
    say.Leg,
    text,
    st.lists(text, max_size=2).map(tuple),
    st.lists(st.builds(say.Send, text, text, st.lists(text, max_size=2).map(tuple)), max_size=2).map(tuple),
    text,
    st.integers(-100, 100),
)
running = st.builds(say.Running, u64, u32, text, st.floats(0, 1e9))
ANY = st.one_of(
    st.builds(say.Soon, u64, text),
    st.builds(say.Hello, text, text, u64, text, u64, facts),
    st.builds(say.Welcome, text, text, u64, text, u64, facts),
    st.builds(say.Prepare, u64, text, facts, st.dictionaries(text, arrays, max_size=2), deadline),
    st.builds(say.Prepared, u64, text, facts),
    st.builds(say.Refused, u64, text, facts),
    st.builds(say.Route, u64, st.lists(legs, max_size=2).map(tuple)),
    st.builds(say.Work, u64, u32, deadline, u64, text, values, text),
    st.builds(say.Ahead, u64, u32, deadline, u64, text, st.dictionaries(text, descriptors, max_size=3), text),
    st.builds(say.Done, u64, u32, text, values, text, facts),
    st.builds(say.Failed, u64, u32, text, facts),
    st.builds(say.Free, text, st.lists(st.tuples(u64, u64, u64, u64), max_size=3).map(tuple)),
    st.builds(say.Heartbeat, text, u64, u64, st.lists(running, max_size=2).map(tuple), facts),
    st.builds(say.Cancel, u64, u32),
    st.builds(say.Bye, text, u64, text),
    st.builds(say.Call, u64, text, facts, values, deadline),
    st.builds(say.Answer, u64, facts, values, st.none() | facts),
    st.builds(say.Speaks, st.integers(0, (1 << 16) - 1), st.from_regex(r"[!-~]{1,32}", fullmatch=True)),
)


def plain(message):
    """The message as something that == compares, arrays included."""

    def of(value):
        if isinstance(value, np.ndarray):
            return "array", value.dtype.name, value.shape, value.tolist()
        if isinstance(value, dict):
            return {key: of(item) for key, item in value.items()}
        if isinstance(value, list):
            return [of(item) for item in value]
        return pytest.approx(value, abs=1e-6) if isinstance(value, float) else value

    return type(message), {name: of(getattr(message, name)) for name in message.__dataclass_fields__}


def sent(message):
    return [bytes(part) for part in frames.pack(message, NOW_S)]


@given(ANY)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_said_arrives(message):
    assert plain(frames.unpack(sent(message), NOW_S)) == plain(message)


def test_a_text_without_elements_beside_a_slot_arrives():
    slot = say.Descriptor(0, 0, 0, 0, 0, "float32", (), 0)
    message = say.Work(0, 0, None, 0, "", {"texts": np.array([], dtype=object), "slot": slot}, "")
    assert plain(frames.unpack(sent(message), NOW_S)) == plain(message)


def test_every_kind_of_message_has_a_number_of_its_own_and_is_tested():
    kinds = set(say.Message.__args__)
    assert {kind for _, kind, _, _ in frames._KINDS} == kinds - {say.Speaks}  # which is no version's
    assert len({number for number, *_ in frames._KINDS}) + 1 == len(kinds) == len(ANY.original_strategies)


@given(ANY, st.binary(max_size=60), st.integers(0, (1 << 16) - 1).filter(lambda version: version != frames.VERSION))
@settings(deadline=None, max_examples=50)
def test_a_message_of_another_version_tells_that_version_whatever_else_is_in_it(message, anything, version):
    head = struct.pack("<4sH", b"EDRM", version)
    first, *more = sent(message)
    for other in (head + first[6:], head + anything):
        assert frames.unpack([other, *more], NOW_S) == say.Speaks(version)


def test_what_tells_a_version_is_the_same_in_every_release():
    said = say.Speaks(3, "0.9.1")
    assert sent(said) == [b"EDRV\3\x000.9.1"]
    assert frames.unpack([b"EDRV\x10\x022.0"]) == say.Speaks(0x210, "2.0")
    assert frames.own_version() == say.Speaks(frames.VERSION, edgert.__version__)


@pytest.mark.parametrize("parts", [[b"EDRV\1\0"], [b"EDRV\1\0" + b"1" * 33], [b"EDRV\1\0a b"], [b"EDRV\1\x001", b""]])
def test_a_malformed_word_about_the_version_is_a_wire_error(parts):
    with pytest.raises(WireError):
        frames.unpack(parts)


@given(ANY, st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_message_is_a_message_or_a_wire_error(message, data):
    parts = sent(message)
    which = data.draw(st.integers(0, len(parts) - 1))
    at = data.draw(st.integers(0, max(0, len(parts[which]) - 1)))
    noise = data.draw(st.binary(max_size=4))
    parts[which] = parts[which][:at] + noise + parts[which][at + data.draw(st.integers(0, 8)) :]
    if data.draw(st.booleans()):
        del parts[data.draw(st.integers(0, len(parts) - 1))]
    try:
        got = frames.unpack(parts, NOW_S)
    except WireError:
        return
    assert type(got) in say.Message.__args__


HEAD = frames._ENVELOPE
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from("aostvlmnx"), inner, max_size=4),
    max_leaves=20,
)


@given(st.integers(0, 17), st.lists(json_values, max_size=6), st.integers(0, 2))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_as_a_body_is_a_message_or_a_wire_error(kind, body, extra):
    first = HEAD.pack(b"EDRM", frames.VERSION, kind, 1, 0, extra, 0, math.inf) + frames._to_json(body).encode()
    try:
        frames.unpack([first, *[bytes(8)] * extra])
    except WireError:
        return


@given(st.lists(st.binary(max_size=80), max_size=3))
@settings(deadline=None)
def test_random_bytes_are_a_wire_error(parts):
    with pytest.raises(WireError):
        frames.unpack(parts)


@pytest.mark.parametrize(
    ("field", "value", "culprit"),
    [(0, b"EDRT", "starts with"), (2, 99, "malformed"), (5, 1, "announces 1 arrays"),
     (6, 1, "malformed"), (7, math.nan, "s left"), (7, -math.inf, "s left")],
)  # fmt: skip
def test_a_message_of_another_kind_says_so(field, value, culprit):
    first = sent(say.Cancel(1, 0))[0]
    envelope = list(HEAD.unpack_from(first))
    envelope[field] = value
    with pytest.raises(WireError, match=culprit):
        frames.unpack([HEAD.pack(*envelope) + first[HEAD.size :]])


def test_a_deadline_travels_as_the_time_that_is_left():
    parts = frames.pack(say.Work(1, 0, 5.0, 0, "s", {}), now_s=3.5)
    assert frames.unpack(parts, now_s=100.0).deadline_s == pytest.approx(101.5)
    assert frames.unpack(frames.pack(say.Work(1, 0, None, 0, "s", {}))).deadline_s is None


@pytest.mark.parametrize(
    "message",
    [say.Work(1 << 64, 0, None, 0, "s", {}), say.Work(1, -1, None, 0, "s", {}), say.Work(1, 0, None, 0, "s", {"x": 1j}),
     say.Hello("a", "", 1, "", 1, {"x": object()})],
    ids=["request", "attempt", "value", "fact"],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_where_it_is_said(message):
    with pytest.raises(WireError):
        frames.pack(message)


def test_arrays_are_not_copied_to_be_sent_nor_when_they_arrive():
    array = np.arange(1000.0)
    parts = frames.pack(say.Call(1, "m", {}, {"x": array}))
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), array)
    assert np.shares_memory(frames.unpack(parts).values["x"], array)


def test_a_header_is_what_the_page_says():
    first = sent(say.Cancel(7, 2))[0]
    assert struct.unpack("<4sHHQIHHd", first[:32]) == (b"EDRM", frames.VERSION, 12, 7, 2, 0, 0, math.inf)
    assert first[32:] == b"[]"


@given(json_values)
@settings(deadline=None)
def test_an_error_from_a_peer_is_an_error_whatever_it_holds(fields):
    told = {"type": "RunFailed", "message": "m", "remedy": "r", "fields": fields}
    for data in (
        told,
        {"type": fields, "message": fields, "fields": {"args": 1, "__class__": int, "self": 2, "ok": 3}},
    ):
        assert isinstance(errors.from_json(data), errors.EdgertError)
    assert errors.from_json(errors.to_json(RunFailed("m", "r", n=3))).n == 3
