"""Message bytes: a JSON body beside raw arrays. Nothing in a message is ever executed or unpickled.

One message is

    magic 'EDRT' | version u16 | reserved u16 | header bytes u32 | payload bytes u64 | header | payload

all little-endian. The header is JSON: {"body": ..., "data": {name: tree}}. A tree is

    null                                                  an absent optional
    {"a": dtype, "s": shape, "o": offset, "n": bytes}     an array in the payload
    {"t": shape, "v": [text, ...]}                        an array of strings
    {"l": [tree, ...]}                                    a sequence
    {"m": [[key, tree], ...]}                             a map
    {"x": value}                                          a bare scalar

Arrays start at multiples of 64 bytes, so that a receiver can use them in place.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from edgert.errors import MissingPackage, OptionError, WireError
from edgert.tensor import BITS, Array, Data, dtype_of, numpy_dtype

VERSION = 1
PREFIX = struct.Struct("<4sHHIQ")
MAX_HEADER_BYTES = 64 << 20
MAX_PAYLOAD_BYTES = 64 << 30
_MAGIC = b"EDRT"
FIXED = frozenset(BITS) - {"string"}
"""Element types whose arrays are raw bytes."""
_ALIGN = 64
_MAX_DEPTH = 16
MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, OptionError,
              MissingPackage, StopIteration, struct.error)  # fmt: skip
"""What reading bytes that are no message can end in."""

Body: TypeAlias = Mapping[str, Any]
Message: TypeAlias = tuple[dict[str, Any], dict[str, Data]]
Place: TypeAlias = Callable[[Array], int]
"""Takes an array, gives the number (offset or frame) where it will be found."""
Find: TypeAlias = Callable[[int, int], memoryview]
"""Where the bytes of an array are: (offset or frame, count) -> the bytes."""


def encode(body: Body, data: Mapping[str, Data] | None = None) -> list[bytes | memoryview]:
    """The pieces of one message, to be sent one after another; arrays are not copied where they are contiguous.

    Raises:
        WireError: something in it is neither JSON nor data, or nests too deep.
    """
    payload: list[bytes | memoryview] = []
    end = 0

    def place(array: Array) -> int:
        nonlocal end
        padding = -end % _ALIGN
        raw = raw_bytes(array)
        payload.extend((bytes(padding), raw))
        start = end + padding
        end = start + len(raw)
        return start

    trees = {name: write_tree(value, place) for name, value in (data or {}).items()}
    try:
        header = json.dumps({"body": body, "data": trees}, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise WireError(f"a message cannot be written: {error}.") from error
    return [PREFIX.pack(_MAGIC, VERSION, 0, len(header), end), header, *payload]


def sizes(prefix: bytes) -> tuple[int, int]:
    """Header and payload bytes that follow a prefix.

    Raises:
        WireError: not a message of this version, or larger than any message may be.
    """
    if len(prefix) != PREFIX.size:
        raise WireError(f"message prefix has {len(prefix)} bytes, not {PREFIX.size}.")
    magic, version, _, header_bytes, payload_bytes = PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise WireError(f"message starts with {magic!r}, not {_MAGIC!r}.")
    if version != VERSION:
        raise WireError(
            f"message has version {version}, this edgert speaks {VERSION}.", "Use the same edgert on both ends."
        )
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise WireError(f"message announces {header_bytes} + {payload_bytes} bytes, more than is allowed.")
    return header_bytes, payload_bytes


def decode(header: bytes | bytearray, payload: bytearray) -> Message:
    """Body and data of a message. Arrays are writable views of `payload`, which the caller hands over.

    Raises:
        WireError: the header is not what the format says, or an array leaves the payload.
    """
    try:
        content = json.loads(bytes(header))
        body, trees = content["body"], content["data"]
        if not isinstance(body, dict) or not isinstance(trees, dict):
            raise WireError("message header is malformed.")
        return body, {name: read_tree(tree, partial(_within, payload)) for name, tree in trees.items()}
    except MALFORMED as error:
        raise WireError(f"message header is malformed: {error!r}.") from error


def write_tree(value: Data | Any, place: Place, depth: int = 0) -> Any:
    """A value as a tree of JSON; `place` takes its arrays and says where each went."""
    if depth > _MAX_DEPTH:
        raise WireError(f"a value nests deeper than {_MAX_DEPTH} levels.")
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        if dtype_of(value) == "string":
            return {"t": list(value.shape), "v": [_text(item) for item in value.reshape(-1).tolist()]}
        native = value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
        return {"a": dtype_of(value), "s": list(value.shape), "o": place(native), "n": value.nbytes}
    if isinstance(value, Mapping):
        return {"m": [[_plain(key), write_tree(item, place, depth + 1)] for key, item in value.items()]}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return {"l": [write_tree(item, place, depth + 1) for item in value]}
    return {"x": _plain(value)}


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _text(item: object) -> str:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def read_tree(tree: Any, find: Find, depth: int = 0) -> Any:
    """The value that `write_tree` described; malformed ones raise `WireError` or one of `MALFORMED`."""
    if depth > _MAX_DEPTH:
        raise WireError(f"a value nests deeper than {_MAX_DEPTH} levels.")
    if tree is None:
        return None
    if "a" in tree:
        return _array(tree["a"], _shape(tree["s"]), int(tree["n"]), find(int(tree["o"]), int(tree["n"])))
    if "t" in tree:
        texts = np.empty(len(tree["v"]), dtype=object)
        texts[:] = [str(item) for item in tree["v"]]
        return texts.reshape(_shape(tree["t"]))
    if "l" in tree:
        return [read_tree(item, find, depth + 1) for item in tree["l"]]
    if "m" in tree:
        return {key: read_tree(item, find, depth + 1) for key, item in tree["m"]}
    return tree["x"]


def _shape(sizes_: Any) -> tuple[int, ...]:
    shape = tuple(sizes_)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise WireError(f"shape {shape} is malformed.")
    return shape


def _array(dtype: str, shape: tuple[int, ...], count: int, raw: memoryview) -> Array:
    kind = numpy_dtype(dtype)
    if math.prod(shape) * kind.itemsize != count or len(raw) != count or dtype == "string":
        raise WireError(f"array of {dtype} {shape} does not fit its {count} bytes.")
    return np.frombuffer(raw, dtype=kind).reshape(shape) if count else np.empty(shape, kind)


def _within(payload: bytearray, start: int, count: int) -> memoryview:
    if start < 0 or count < 0 or start + count > len(payload):
        raise WireError(f"{count} bytes at {start} leave the payload of {len(payload)}.")
    return memoryview(payload)[start : start + count]


def raw_bytes(array: Array) -> bytes | memoryview:
    """The bytes of an array in C order; not copied where it is contiguous."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) if array.size else b""


def pieces(message: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The non-empty pieces, in order."""
    return (piece for piece in message if len(piece))
