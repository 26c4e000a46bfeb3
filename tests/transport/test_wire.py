"""Messages: what goes in comes out, and nothing that comes in does harm."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgert.errors import WireError
from edgert.tensor import BITS, numpy_dtype
from edgert.transport import wire

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from([name for name in BITS if name != "string"]))
    shape = draw(shapes)
    seed = draw(st.integers(0, 99))
    numbers = np.random.default_rng(seed).integers(0, 2, shape)
    return numbers.astype(numpy_dtype(dtype))


@st.composite
def texts(draw):
    shape = draw(shapes)
    array = np.empty(shape, object)
    for index in np.ndindex(shape):
        array[index] = draw(st.text(st.characters(codec="utf-8"), max_size=3))
    return array


keys = st.integers(-(1 << 60), 1 << 60) | st.text(st.characters(codec="utf-8"), max_size=3)
leaves = st.none() | arrays() | texts() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)


def travel(body, data):
    message = b"".join(wire.encode(body, data))
    header_bytes, payload_bytes = wire.sizes(message[: wire.PREFIX.size])
    start = wire.PREFIX.size
    assert len(message) == start + header_bytes + payload_bytes
    return wire.decode(message[start : start + header_bytes], bytearray(message[start + header_bytes :]))


def same(one, other):
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, item in one.items():
            same(item, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for item, twin in zip(one, other, strict=True):
            same(item, twin)
    else:
        assert type(one) is type(other)
        assert one == other


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), trees, max_size=4))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_everything_that_a_model_may_carry_comes_back_equal(data):
    body, values = travel({"method": "x", "n": 1.5}, data)
    assert body == {"method": "x", "n": 1.5}
    same(data, values)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3, 2)])
def test_every_element_type_travels_at_every_rank(dtype, shape):
    array = np.zeros(shape, numpy_dtype(dtype))
    if dtype == "string":
        array[...] = "é"
    _, values = travel({}, {"a": array, "b": np.ones(3, np.float32)})
    same({"a": array, "b": np.ones(3, np.float32)}, values)


def test_arrays_that_arrive_are_aligned_and_writable():
    _, values = travel({}, {"a": np.ones(3, np.int8), "b": np.arange(5, dtype=np.float64)})
    assert values["b"].flags.aligned
    values["b"][0] = 7
    assert values["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "array",
    [np.arange(12, dtype=np.float32).reshape(3, 4).T, np.arange(12)[::-2], np.broadcast_to(np.float32(3), (2, 2)),
     np.arange(3, dtype=">f4"), np.arange(3, dtype=">i8")],
    ids=["transposed", "reversed", "broadcast", "big-endian floats", "big-endian integers"],
)  # fmt: skip
def test_arrays_of_any_layout_arrive_with_their_values(array):
    _, values = travel({}, {"a": array})
    assert values["a"].tolist() == array.tolist()


def test_keys_of_a_map_may_be_numpy_scalars():
    _, values = travel({}, {"m": {np.int64(3): np.float32(0.5)}})
    assert values == {"m": {3: 0.5}}


@pytest.mark.parametrize("thing", [object(), 1j, b"bytes", {1, 2}])
def test_what_is_no_data_is_refused(thing):
    with pytest.raises(WireError, match="cannot be written"):
        wire.encode({}, {"a": thing})


@given(st.binary(max_size=300), st.binary(max_size=64))
@settings(deadline=None)
def test_random_bytes_give_a_wire_error(header, payload):
    with pytest.raises(WireError):
        wire.decode(header, bytearray(payload))


GOOD = wire.encode({"m": 1}, {"a": np.arange(4), "t": np.array(["x"], object), "l": [None, {"k": 1.0}], "s": 3})
HEADER, PAYLOAD = bytes(GOOD[1]), b"".join(GOOD[2:])


@given(st.integers(0, len(HEADER) - 1), st.binary(min_size=1, max_size=4), st.integers(0, 4), st.integers(0, 64))
@settings(deadline=None, max_examples=500)
def test_a_damaged_message_gives_a_value_or_a_wire_error(at, noise, cut, lost):
    header = HEADER[:at] + noise + HEADER[at + cut :]
    try:
        body, data = wire.decode(header, bytearray(PAYLOAD[: len(PAYLOAD) - lost]))
    except WireError:
        return
    assert isinstance(body, dict)
    assert isinstance(data, dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("aostvlmnx"), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_in_place_of_a_tree_gives_a_value_or_a_wire_error(tree):
    header = json.dumps({"body": {}, "data": {"x": tree}}).encode()
    try:
        wire.decode(header, bytearray(16))
    except WireError:
        return


@pytest.mark.parametrize(
    "tree",
    [{"a": "float32", "s": [2], "o": 0, "n": 8}, {"a": "float32", "s": [1], "o": -4, "n": 4},
     {"a": "float32", "s": [1], "o": 2, "n": 4}, {"a": "float32", "s": [-1], "o": 0, "n": -4},
     {"a": "string", "s": [0], "o": 0, "n": 0}, {"a": "object", "s": [0], "o": 0, "n": 0},
     {"a": "float31", "s": [1], "o": 0, "n": 4}, {"a": ["float32"], "s": [1], "o": 0, "n": 4},
     {"a": "float32", "s": [1 << 62, 1 << 62], "o": 0, "n": 4}, {"t": [3], "v": ["a"]}, {"t": [-1], "v": ["a"]},
     {"m": [[[1], None]]}, {"a": "float32", "s": ["1"], "o": 0, "n": 4}, {}, 5, "a"],
)  # fmt: skip
def test_an_array_that_leaves_its_payload_or_is_malformed_is_refused(tree):
    with pytest.raises(WireError):
        wire.decode(json.dumps({"body": {}, "data": {"x": tree}}).encode(), bytearray(4))


def test_nesting_is_bounded_on_both_ends():
    deep = None
    for _ in range(40):
        deep = [deep]
    with pytest.raises(WireError, match="nests deeper"):
        wire.encode({}, {"x": deep})
    tree = None
    for _ in range(40):
        tree = {"l": [tree]}
    with pytest.raises(WireError, match="nests deeper"):
        wire.decode(json.dumps({"body": {}, "data": {"x": tree}}).encode(), bytearray())
    with pytest.raises(WireError):
        wire.decode(b'{"body":{},"data":{"x":' + b"[" * 100_000, bytearray())


@pytest.mark.parametrize(
    ("prefix", "culprit"),
    [(b"", "0 bytes"), (b"HTTP" + bytes(16), "HTTP"), (wire.PREFIX.pack(b"EDRT", 9, 0, 0, 0), "version 9"),
     (wire.PREFIX.pack(b"EDRT", 1, 0, 0, 1 << 60), "more than is allowed"),
     (wire.PREFIX.pack(b"EDRT", 1, 0, 1 << 31, 0), "more than is allowed")],
)  # fmt: skip
def test_a_prefix_of_another_kind_version_or_absurd_size_is_refused(prefix, culprit):
    with pytest.raises(WireError, match=culprit):
        wire.sizes(prefix)


def test_contiguous_arrays_are_not_copied_to_be_sent():
    array = np.arange(1000.0)
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in wire.encode({}, {"a": array})[2:])
