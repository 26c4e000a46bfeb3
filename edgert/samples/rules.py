"""What each operation asks of the elements of its inputs: one small function a kind of input, one table.

The reference is the ONNX operator specification and the TFLite kernels' own checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgert.graph import Value
from edgert.samples.conflict import NONSENSE
from edgert.samples.draw import ANY, WORDS, Fact
from edgert.samples.lengths import (
    Rule,
    any_axis,
    at,
    axes_input,
    between,
    block_shape,
    count_up,
    crop_shape,
    dft_length,
    exactly,
    expand,
    frame_length,
    frame_step,
    grid_size,
    image_shape,
    ints,
    made_shape,
    moved_axes,
    onnx_pads,
    range_limit,
    reshape,
    resize_scales,
    resize_sizes,
    reverse_lens,
    sequence_lens,
    sequence_split,
    signal_axis,
    signal_length,
    size_of,
    slice_ends,
    split_sizes,
    tflite_pads,
    tile,
    top_k,
    trip_count,
    valid_keys,
)
from edgert.samples.scope import Scope, Site, seen_by
from edgert.tensor import Data


def fact_of(scope: Scope, value: Value) -> Fact:
    """What all readers of an input ask of it, and what its name hints at where they ask nothing."""
    integer = value.dtype is not None and "int" in value.dtype
    fact = ANY
    for seen in seen_by(scope, value.name):
        for rule in (RULES.get((seen.site.node.op, seen.site.position)), _mask):
            try:
                found = ANY if rule is None else rule(seen.site)
            except NONSENSE:
                continue
            if rule is not _mask:
                found = found.before(seen.scale, seen.shift, integer=integer)
            bounded = integer and found.low is not None and found.high is not None
            fact &= found.in_column(*seen.column) if seen.column is not None and bounded else found
    if fact.empty and "mask" in value.name.lower() and value.dtype in ("int32", "int64", "float32", "float16"):
        return Fact(mask=True)
    return fact


# Indices into a table.


def _index(size: int | None) -> Fact:
    """An index below `size`; only zero is safe where the size is unknown."""
    return Fact(low=0, high=0 if size is None else max(size - 1, 0))


def index_into(table: int, axis: int = 0) -> Rule:
    """Elements index axis `axis` (attribute 'axis' first) of the node's input `table`."""
    return lambda site: _index(at(site.shape(table), site.integer("axis", axis)))


def _index_tuple(site: Site) -> Fact:
    """GatherND, ScatterND: the last axis holds one index for each of the first axes (after the batch ones)."""
    table, indices = site.shape(0), site.shape(site.position)
    depth = at(indices, -1)
    if table is None or depth is None:
        return Fact(low=0, high=0)
    batch = site.integer("batch_dims", 0)
    sizes = table[batch : batch + depth]
    return Fact(low=0, high=np.asarray([0 if size is None else size - 1 for size in sizes], np.float64))


def _depth(site: Site) -> int:
    """How many classes a one-hot code has: by its constant, its output's shape, or eight."""
    depth = site.constant(1)
    if depth is not None:
        return int(depth.reshape(-1)[0])
    size = at(site.made(), site.integer("axis", -1))
    return 8 if size is None else size


def _one_hot_index(site: Site) -> Fact:
    return _index(_depth(site))


def _one_hot_depth(site: Site) -> Fact:
    return ints([_depth(site)])


def _write_index(site: Site) -> Fact:
    """TensorScatter: the update has to fit behind it."""
    axis = site.integer("axis", -2)
    whole, part = at(site.shape(0), axis), at(site.shape(1), axis)
    return _index(None if whole is None or part is None else whole - part + 1)


def _unpool_index(site: Site) -> Fact:
    """MaxUnpool: places in the flattened output, each used once."""
    made = site.made()
    count = None if made is None or None in made else int(np.prod([size or 1 for size in made]))
    return Fact(low=0, high=0 if count is None else count - 1, distinct=True)


def _class_index(site: Site) -> Fact:
    """Losses: classes are axis 1 of the scores."""
    return _index(at(site.shape(0), 1))


# Masks.


def _mask(site: Site) -> Fact:
    """Whether the place is one that only masks reach: cast to bool, compared with zero, or (1 - m) * -10000."""
    if site.node.op == "Cast" and site.attribute("to") == 9:  # TensorProto.BOOL
        return Fact(mask=True)
    if site.node.op in ("Mul", "MUL") and len(site.node.inputs) == 2:
        factor = site.constant(1 - site.position)
        if factor is not None and factor.size == 1 and factor.dtype.kind == "f" and float(factor.reshape(-1)[0]) < -99:
            return Fact(mask=True)
    if site.node.op in ("Equal", "EQUAL") and site.position == 0:
        other = site.constant(1)
        if other is not None and other.size == 1 and float(other.reshape(-1)[0]) in (0.0, 1.0):
            return Fact(mask=True)
    return ANY


# Quantisation.

_CODES: Mapping[str, tuple[int, int]] = {
    "uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767),
    "uint4": (0, 15), "int4": (-8, 7), "uint2": (0, 3), "int2": (-2, 1),
}  # fmt: skip


def _representable(site: Site) -> Fact:
    """A float that is quantised: inside the range that the integers stand for."""
    scale, zero = site.constant(1), site.constant(2)
    if scale is None or scale.size != 1:
        return ANY
    kind = "uint8" if zero is None else zero.dtype.name
    if kind not in _CODES:
        return ANY
    least, most = _CODES[kind]
    step, origin = float(scale.reshape(-1)[0]), 0.0 if zero is None else float(zero.reshape(-1)[0])
    return Fact(low=step * (least - origin), high=step * (most - origin))


# Strings and maps.


_SMALL_FLOATS: Mapping[int, str] = {  # TensorProto's number -> element type; wider ones overflow alike everywhere
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
}
_EDGES = (1e6, -1e6, float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.1, 0.45, 448.0, 470.0, 3.0, 0.124, 1e-7,
          -2.5, 6e4, 1e-3, 5.0)  # fmt: skip
"""Beyond every 8-bit float, on both sides of a rounding, below the smallest."""


def _listed(*names: str) -> Rule:
    """One of the texts (or numbers) that an attribute lists."""

    def rule(site: Site) -> Fact:
        for name in names:
            listed = site.attribute(name)
            if isinstance(listed, tuple) and listed:
                return Fact(choices=tuple(item if isinstance(item, str) else float(item) for item in listed))
        return ANY

    return rule


def _cast(site: Site) -> Fact:
    """Cast, CastLike: text that reads as a number; floats that an 8-bit one saturates, rounds or cannot hold."""
    value = site.value(0)
    if value is not None and value.dtype == "string":
        return Fact(choices=("0", "1", "2.5", "-3"))
    like = site.value(1)
    to = like.dtype if like is not None else _SMALL_FLOATS.get(site.integer("to", 0))
    return Fact(corners=_EDGES) if to in _SMALL_FLOATS.values() else ANY


def map_of(scope: Scope, value: Value, rng: np.random.Generator) -> Data:
    """A mapping for an input of kind map: keys from the vocabulary of its reader, else small integers."""
    keys: Sequence[Any] = (0, 1, 2)
    for seen in seen_by(scope, value.name):
        for name in ("string_vocabulary", "int64_vocabulary"):
            listed = seen.site.attribute(name)
            if isinstance(listed, tuple) and listed:
                keys = listed
    if value.dtype == "string":
        return {key: WORDS[index % len(WORDS)] for index, key in enumerate(keys)}
    return {key: float(number) for key, number in zip(keys, rng.random(len(keys)).round(3), strict=True)}


SEQUENCE_LENGTH = 3


def is_sequence(scope: Scope, value: Value) -> bool:
    """Whether an input is a sequence, or an optional whose reader takes a sequence out of it."""
    if value.kind == "optional":
        takers = [seen.site.node for seen in seen_by(scope, value.name) if seen.site.node.op == "OptionalGetElement"]
        taken = [scope.value(node.outputs[0]) for node in takers]
        return any(inner is not None and inner.kind == "sequence" for inner in taken)
    return value.kind == "sequence"


def is_opened(scope: Scope, value: Value) -> bool:
    """Whether anything looks into an optional input; where nothing does, the file does not tell what would fit."""
    openers = ("OptionalGetElement", "OptionalHasElement")
    return any(seen.site.node.op in openers for seen in seen_by(scope, value.name))


def _position(site: Site) -> Fact:
    return Fact(low=0, high=SEQUENCE_LENGTH - 1)


_UNIT = between(0.0, 1.0)
_POSITIVE = between(0.05, None)
_SCALE = between(0.02, 0.1)


def _nonzero(site: Site) -> Fact:
    return Fact(nonzero=True)


def _shift_bits(site: Site) -> Fact:
    return Fact(low=0, high=3)


RULES: Mapping[tuple[str, int], Rule] = {  # (operation, input position) -> what its elements must be
    # indices
    ("Gather", 1): index_into(0), ("GatherElements", 1): index_into(0), ("GatherND", 1): _index_tuple,
    ("ScatterElements", 1): index_into(0), ("Scatter", 1): index_into(0), ("ScatterND", 1): _index_tuple,
    ("OneHot", 0): _one_hot_index, ("OneHot", 1): _one_hot_depth, ("NegativeLogLikelihoodLoss", 1): _class_index,
    ("SoftmaxCrossEntropyLoss", 1): _class_index, ("RoiAlign", 2): index_into(0),
    ("ai.onnx.ml::ArrayFeatureExtractor", 1): index_into(0, -1),
    ("GATHER", 1): index_into(0), ("EMBEDDING_LOOKUP", 0): index_into(1), ("GATHER_ND", 1): _index_tuple,
    ("ONE_HOT", 0): _one_hot_index, ("ONE_HOT", 1): _one_hot_depth,
    ("TensorScatter", 2): _write_index, ("MaxUnpool", 1): _unpool_index,
    ("SequenceAt", 1): _position, ("SequenceErase", 1): _position, ("SequenceInsert", 2): _position,
    # shapes, axes, lengths
    ("Reshape", 1): reshape, ("Expand", 1): expand, ("Tile", 1): tile, ("ConstantOfShape", 0): made_shape,
    ("CenterCropPad", 1): crop_shape, ("AffineGrid", 1): grid_size, ("MaxUnpool", 2): made_shape,
    ("Col2Im", 1): image_shape, ("Col2Im", 2): block_shape, ("SplitToSequence", 1): sequence_split,
    **{(f"{kind}Window", 0): size_of(0, 8) for kind in ("Hann", "Hamming", "Blackman")},
    ("MelWeightMatrix", 0): size_of(1, 8), ("MelWeightMatrix", 1): dft_length,
    ("MelWeightMatrix", 2): exactly(8192), ("MelWeightMatrix", 3): exactly(0), ("MelWeightMatrix", 4): exactly(4096),
    ("DFT", 1): signal_length, ("DFT", 2): signal_axis, ("STFT", 1): frame_step,
    ("STFT", 3): frame_length, ("Attention", 6): valid_keys,
    ("Slice", 1): exactly(0), ("Slice", 2): slice_ends, ("Slice", 3): axes_input(), ("Slice", 4): exactly(1),
    ("Squeeze", 1): moved_axes, ("Unsqueeze", 1): moved_axes, ("Split", 1): split_sizes, ("TopK", 1): top_k,
    **{(f"Reduce{kind}", 1): moved_axes for kind in
       ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
    ("CumSum", 1): any_axis, ("CumProd", 1): any_axis,
    ("Range", 0): exactly(0), ("Range", 1): range_limit, ("Range", 2): exactly(1),
    ("Resize", 2): resize_scales, ("Resize", 3): resize_sizes, ("Upsample", 1): resize_scales,
    ("Pad", 1): onnx_pads, ("Pad", 3): axes_input(), ("Loop", 0): trip_count, ("Loop", 1): exactly(1),
    ("RNN", 4): sequence_lens(0), ("LSTM", 4): sequence_lens(0), ("GRU", 4): sequence_lens(0),
    ("ReverseSequence", 1): reverse_lens, ("Trilu", 1): exactly(0),
    ("RESHAPE", 1): reshape, ("TILE", 1): tile, ("BROADCAST_TO", 1): made_shape, ("FILL", 0): made_shape,
    ("PAD", 1): tflite_pads, ("PADV2", 1): tflite_pads, ("MIRROR_PAD", 1): tflite_pads,
    ("SLICE", 1): exactly(0), ("SLICE", 2): made_shape, ("TRANSPOSE", 1): count_up, ("EXPAND_DIMS", 1): moved_axes,
    ("ARG_MAX", 1): any_axis, ("ARG_MIN", 1): any_axis, ("CUMSUM", 1): any_axis, ("SPLIT", 0): any_axis,
    ("TOPK_V2", 1): top_k, ("RANGE", 0): exactly(0), ("RANGE", 1): range_limit, ("RANGE", 2): exactly(1),
    ("REVERSE_SEQUENCE", 1): reverse_lens,
    **{(kind, 1): moved_axes for kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REVERSE_V2")},
    # domains of functions
    ("QuantizeLinear", 0): _representable, ("QuantizeLinear", 1): _POSITIVE, ("DequantizeLinear", 1): _POSITIVE,
    ("QLinearConv", 1): _SCALE, ("QLinearConv", 4): _SCALE, ("QLinearConv", 6): _SCALE,
    ("QLinearMatMul", 1): _SCALE, ("QLinearMatMul", 4): _SCALE, ("QLinearMatMul", 6): _SCALE,
    ("Dropout", 1): between(0.0, 0.5), ("ReduceLogSum", 0): _POSITIVE,
    ("Log", 0): _POSITIVE, ("Sqrt", 0): _POSITIVE, ("Reciprocal", 0): _POSITIVE, ("Pow", 0): _POSITIVE,
    ("LOG", 0): _POSITIVE, ("SQRT", 0): _POSITIVE, ("RSQRT", 0): _POSITIVE, ("POW", 0): _POSITIVE,
    ("Asin", 0): _UNIT, ("Acos", 0): _UNIT, ("Atanh", 0): between(-0.9, 0.9), ("Acosh", 0): between(1.05, 9.0),
    ("Div", 1): _nonzero, ("Mod", 1): _nonzero, ("DIV", 1): _nonzero, ("FLOOR_DIV", 1): _nonzero,
    ("FLOOR_MOD", 1): _nonzero, ("BitShift", 1): _shift_bits,
    ("BatchNormalization", 4): _POSITIVE, ("Bernoulli", 0): _UNIT, ("GridSample", 1): between(-1.0, 1.0),
    ("NonMaxSuppression", 0): _UNIT, ("NonMaxSuppression", 1): _UNIT, ("NonMaxSuppression", 2): exactly(3),
    ("NonMaxSuppression", 3): between(0.3, 0.6), ("NonMaxSuppression", 4): between(0.1, 0.4),
    # strings
    ("Cast", 0): _cast, ("CastLike", 0): _cast,
    ("ai.onnx.ml::LabelEncoder", 0): _listed("keys_strings", "keys_int64s", "keys_floats"),
    ("ai.onnx.ml::CategoryMapper", 0): _listed("cats_strings", "cats_int64s"),
    ("ai.onnx.ml::OneHotEncoder", 0): _listed("cats_strings", "cats_int64s"),
    ("TfIdfVectorizer", 0): _listed("pool_strings", "pool_int64s"),
}  # fmt: skip
