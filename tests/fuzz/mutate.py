"""Seeds and mutations for the fuzzer: bytes, and the fields of protobuf messages."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnx import ModelProto

from edgert.formats.flat import schema
from tests.formats import models

_INTERESTING = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_WORDS = (
    "",
    "x",
    "y",
    "a",
    "w",
    "Relu",
    "If",
    "Loop",
    "Concat",
    "Reshape",
    "ConstantOfShape",
    "Range",
    "Expand",
    "local",
)


def seeds() -> list[bytes]:
    """The tests' own models, and those of EDGERT_MODELS that are small."""
    made = [
        models.chain, models.control_flow, models.with_function, models.qdq, models.sequences, models.cyclic
    ]  # fmt: skip
    found = [make().SerializeToString() for make in made]
    found += [models.tflite_rich(), models.tflite_while(), models.tflite_variable()]
    folder = os.environ.get("EDGERT_MODELS")
    if folder:
        files = [path for path in sorted(Path(folder).iterdir()) if path.suffix in (".onnx", ".tflite")]
        found += [path.read_bytes() for path in files if path.stat().st_size < 1_500_000]
    return found


def mutants(rng: random.Random) -> Iterator[bytes]:
    """Endless mutants."""
    corpus = seeds()
    protos = [content for content in corpus if content[4:8] != b"TFL3"]
    flats = [content for content in corpus if content[4:8] == b"TFL3"]
    while True:
        kind = rng.random()
        if kind < 0.4:
            yield _mutate_proto(rng, rng.choice(protos))
            continue
        if kind < 0.6:
            yield _mutate_flat(rng, rng.choice(flats))
            continue
        content = bytearray(rng.choice(corpus))
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            content = rng.choice(_BYTE_MUTATIONS)(rng, content)
        yield bytes(content)


def _position(rng: random.Random, content: bytearray) -> int:
    # Structure sits at the ends of a file far more than in the weights between.
    if rng.random() < 0.6:
        return rng.randrange(min(len(content), 2000) or 1)
    return max(0, len(content) - 1 - rng.randrange(len(content) or 1) // rng.choice((1, 16)))


def _flip(rng: random.Random, content: bytearray) -> bytearray:
    if content:
        content[_position(rng, content)] ^= 1 << rng.randrange(8)
    return content


def _set_word(rng: random.Random, content: bytearray) -> bytearray:
    at = _position(rng, content) & ~3
    if at + 4 <= len(content):
        content[at : at + 4] = struct.pack("<I", rng.choice(_INTERESTING))
    return content


def _nudge_word(rng: random.Random, content: bytearray) -> bytearray:
    at = _position(rng, content) & ~3
    if at + 4 <= len(content):
        word = struct.unpack_from("<I", content, at)[0]
        content[at : at + 4] = struct.pack("<I", (word + rng.randrange(-16, 17)) & 0xFFFFFFFF)
    return content


def _truncate(rng: random.Random, content: bytearray) -> bytearray:
    return content[: _position(rng, content) + 1]


def _cut_out(rng: random.Random, content: bytearray) -> bytearray:
    at = _position(rng, content)
    del content[at : at + rng.randrange(1, 64)]
    return content


def _repeat(rng: random.Random, content: bytearray) -> bytearray:
    at = _position(rng, content)
    content[at:at] = content[at : at + rng.randrange(1, 64)] * rng.choice((1, 2, 50))
    return content


_BYTE_MUTATIONS: tuple[Callable[[random.Random, bytearray], bytearray], ...] = (
    _flip, _flip, _set_word, _set_word, _nudge_word, _truncate, _cut_out, _repeat
)  # fmt: skip


def _mutate_proto(rng: random.Random, content: bytes) -> bytes:
    model = ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _mutate_message(rng, model)
    return model.SerializeToString()


def _mutate_message(rng: random.Random, message: Any) -> None:
    """Walk down to a random field and change it."""
    while True:
        fields = [field for field, _ in message.ListFields()]
        if not fields:
            return
        field = rng.choice(fields)
        content = getattr(message, field.name)
        if not field.is_repeated:
            if field.message_type is None:
                numbers = list(field.enum_type.values_by_number) if field.enum_type else None
                setattr(message, field.name, rng.choice(numbers) if numbers else _scalar(rng, content))
                return
            if rng.random() < 0.1:
                message.ClearField(field.name)
                return
            message = content
        elif rng.random() < 0.25 or field.message_type is None:
            _mutate_repeated(rng, content, field.message_type is not None)
            return
        else:
            message = rng.choice(list(content)[:200])


def _mutate_repeated(rng: random.Random, content: Any, messages: bool) -> None:
    index = rng.randrange(len(content))
    action = rng.choice(("delete", "repeat", "change"))
    if action == "delete":
        del content[index]
    elif action == "repeat":
        content.extend([content[index]] * rng.choice((1, 3)))
    elif not messages:
        content[index] = _scalar(rng, content[index])


def _mutate_flat(rng: random.Random, content: bytes) -> bytes:
    """Through the schema's object API, so that the file stays a valid flatbuffer that says something odd."""
    flat = models.Flat()
    flat.model = schema().ModelT.InitFromPackedBuf(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _mutate_object(rng, flat.model)
    try:
        return flat.bytes()
    except (struct.error, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, AssertionError):
        return content  # the writer has no room for what was asked


def _mutate_object(rng: random.Random, owner: Any) -> None:
    while True:
        fields = [name for name, item in vars(owner).items() if item is not None and item is not False]
        name = rng.choice(fields) if fields else None
        if name is None:
            return
        content = getattr(owner, name)
        if isinstance(content, (int, float)):
            setattr(owner, name, rng.choice((0, 1, 2, 3, 5, 17, 100, 127)))
            return
        if isinstance(content, (bytes, str)):
            setattr(owner, name, rng.choice(_WORDS))
            return
        if hasattr(content, "__len__"):
            items = list(content)
            if items and hasattr(items[0], "__dict__") and rng.random() < 0.8:
                owner = rng.choice(items)
                continue
            _mutate_items(rng, items)
            setattr(owner, name, items)
            return
        owner = content


def _mutate_items(rng: random.Random, items: list[Any]) -> None:
    if not items:
        return
    action = rng.choice(("delete", "repeat", "change"))
    if action == "delete":
        del items[rng.randrange(len(items))]
    elif action == "repeat":
        items.append(rng.choice(items))
    elif not hasattr(items[0], "__dict__"):
        items[rng.randrange(len(items))] = rng.choice((0, 1, 2, 3, 7, 127))


def _scalar(rng: random.Random, content: Any) -> Any:
    if isinstance(content, str):
        return rng.choice(_WORDS)
    if isinstance(content, bytes):
        return content[: rng.randrange(len(content) + 1)]
    if isinstance(content, float):
        return rng.choice((0.0, -1.0, 1e30, float("nan")))
    # Small enough for every enumeration and 32-bit field, large enough to be absurd.
    return rng.choice((0, 1, 2, 3, 5, 7, 11, 13, 28, 64, 1000, (1 << 31) - 1))
