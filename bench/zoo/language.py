"""Networks over sequences and tables: BERT, LSTM, DLRM."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from bench.zoo.builder import Builder

VOCABULARY = 8192
"""Words that the BERTs know: smaller than the real 30,522, whose table costs memory and no time."""


def bert(name: str, layers: int, width: int, batch: int | str, seed: int) -> onnx.ModelProto:
    """A BERT encoder (Devlin et al., 2019) over 128 tokens, heads of 64, with its pooler."""
    build = Builder(name, seed)
    length = 128
    ids, mask, kinds = (
        build.input(each, [batch, length], TensorProto.INT64)
        for each in ("input_ids", "attention_mask", "token_type_ids")
    )
    words = build.node("Gather", build.normal(VOCABULARY, width, fan_in=1), ids)
    types = build.node("Gather", build.normal(2, width, fan_in=4), kinds)
    x = build.node("Add", build.node("Add", words, types), build.normal(length, width, fan_in=4))
    x = _normalise(build, x, width)
    blocked = _blocked(build, mask)
    for _ in range(layers):
        x = _encoder_layer(build, x, width, length, blocked)
    x = build.node("Identity", x, out="last_hidden_state")
    first = build.node("Gather", x, build.weight(np.asarray(0, np.int64), "first"), axis=1)
    build.node("Tanh", build.dense(first, (width, width)), out="pooled")
    build.output("last_hidden_state", [batch, length, width])
    build.output("pooled", [batch, width])
    return build.model()


def _blocked(build: Builder, mask: str) -> str:
    """What is added to the scores: 0 where the mask is 1, -10000 where it is 0."""
    wide = build.node("Unsqueeze", build.node("Cast", mask, to=TensorProto.FLOAT), build.ints(1, 2))
    inverted = build.node("Sub", build.weight(np.asarray(1, np.float32), "one"), wide)
    return build.node("Mul", inverted, build.weight(np.asarray(-10000, np.float32), "blocked"))


def _normalise(build: Builder, x: str, width: int) -> str:
    scale = build.weight(1 + build.rng.standard_normal(width, np.float32) * np.float32(0.1), "gamma")
    return build.node("LayerNormalization", x, scale, build.bias(width, 0.1), axis=-1, epsilon=1e-5)


def _linear(build: Builder, x: str, sizes: tuple[int, int], gain: float = 1.0) -> str:
    weight = build.normal(*sizes, fan_in=sizes[0], gain=gain)
    return build.node("Add", build.node("MatMul", x, weight), build.bias(sizes[1]))


def _heads(build: Builder, x: str, shape: str, order: list[int]) -> str:
    return build.node("Transpose", build.node("Reshape", x, shape), perm=order)


def _encoder_layer(build: Builder, x: str, width: int, length: int, blocked: str) -> str:
    heads = width // 64
    split = build.ints(0, length, heads, 64)
    # A gain above one spreads the scores, so that attention attends to something.
    query = _heads(build, _linear(build, x, (width, width), 1.5), split, [0, 2, 1, 3])
    key = _heads(build, _linear(build, x, (width, width), 1.5), split, [0, 2, 3, 1])
    value = _heads(build, _linear(build, x, (width, width)), split, [0, 2, 1, 3])
    scores = build.node("Div", build.node("MatMul", query, key), build.weight(np.asarray(8, np.float32), "root"))
    attention = build.node("Softmax", build.node("Add", scores, blocked), axis=-1)
    mixed = build.node("Transpose", build.node("MatMul", attention, value), perm=[0, 2, 1, 3])
    mixed = build.node("Reshape", mixed, build.ints(0, length, width))
    x = _normalise(build, build.node("Add", x, _linear(build, mixed, (width, width))), width)
    y = _gelu(build, _linear(build, x, (width, 4 * width)))
    return _normalise(build, build.node("Add", x, _linear(build, y, (4 * width, width), 1.5)), width)


def _gelu(build: Builder, x: str) -> str:
    """GELU, x (1 + erf(x / sqrt 2)) / 2, in the five nodes that every exporter writes and every backend fuses."""
    half, one, root = (build.weight(np.asarray(number, np.float32), "gelu") for number in (0.5, 1.0, np.sqrt(2.0)))
    erf = build.node("Erf", build.node("Div", x, root))
    return build.node("Mul", build.node("Mul", x, build.node("Add", erf, one)), half)


def lstm(batch: int | str) -> onnx.ModelProto:
    """A speech front end: dense, two LSTMs of 256 over 100 frames of 80 bands, dense."""
    build = Builder("lstm", seed=33)
    frames, bands, width = 100, 80, 256
    x = build.input("bands", [batch, frames, bands])
    x = build.node("Relu", _linear(build, x, (bands, 128), np.sqrt(2.0)))
    x = build.node("Transpose", x, perm=[1, 0, 2])
    inside = 128
    for _ in range(2):
        weights = build.normal(1, 4 * width, inside, fan_in=inside), build.normal(1, 4 * width, width, fan_in=width)
        bias = build.weight(build.rng.standard_normal((1, 8 * width), np.float32) * np.float32(0.1), "b")
        x = build.nodes("LSTM", x, *weights, bias, outputs=1, hidden_size=width)[0]
        x = build.node("Squeeze", x, build.ints(1))
        inside = width
    x = build.node("Transpose", x, perm=[1, 0, 2])
    build.node("Identity", _linear(build, x, (width, 40), 3.0), out="phonemes")
    build.output("phonemes", [batch, frames, 40])
    return build.model()


TABLES = (1000, 5000, 200, 10000, 3000, 50, 8000, 2000)
"""Rows of the DLRM's tables."""


def dlrm(batch: int | str) -> onnx.ModelProto:
    """DLRM (Naumov et al., 2019) in small: 13 numbers, 8 tables of 32-wide embeddings, their dot products, two MLPs."""
    build = Builder("dlrm", seed=34)
    width = 32
    dense = build.input("dense", [batch, 13])
    indices = build.input("indices", [batch, len(TABLES)], TensorProto.INT64)
    x = dense
    for sizes in ((13, 256), (256, 128), (128, width)):
        x = build.dense(x, sizes, act="relu")
    rows = [build.node("Unsqueeze", x, build.ints(1))]
    for column, count in enumerate(TABLES):
        index = build.node("Gather", indices, build.ints(column), axis=1)
        rows.append(build.node("Gather", build.normal(count, width, fan_in=4), index))
    rows_together = build.node("Concat", *rows, axis=1)
    products = build.node("MatMul", rows_together, build.node("Transpose", rows_together, perm=[0, 2, 1]))
    size = len(rows)
    lower = [row * size + column for row in range(size) for column in range(row)]
    flat = build.node("Gather", build.node("Flatten", products), build.ints(*lower), axis=1)
    x = build.node("Concat", x, flat, axis=1)
    inside = width + len(lower)
    # Dot products of 32 numbers spread wider than the numbers: the first gain brings them back.
    for sizes, gain in (((inside, 256), 0.5), ((256, 128), None)):
        x = build.dense(x, sizes, act="relu", gain=gain)
    build.node("Sigmoid", build.dense(x, (128, 1), gain=4.0), out="click")
    build.output("click", [batch, 1])
    return build.model()
