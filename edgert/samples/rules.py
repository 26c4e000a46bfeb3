"""What each operation asks of the elements of its inputs: one small function a kind of input, one table.

The reference is the ONNX operator specification and the TFLite kernels' own checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from edgert.graph import Value
from edgert.samples.draw import ANY, WORDS, Fact
from edgert.samples.scope import KnownShape, Scope, Seen, Site, seen_by
from edgert.tensor import Data

Rule: TypeAlias = Callable[[Site], Fact]


def fact_of(scope: Scope, value: Value) -> Fact:
    """What all readers of an input ask of it, and what its name hints at where they ask nothing."""
    integer = value.dtype is not None and "int" in value.dtype
    fact = ANY
    for seen in seen_by(scope, value.name):
        rule = RULES.get((seen.site.node.op, seen.site.position))
        if rule is not None:
            fact &= rule(seen.site).before(seen.scale, seen.shift, integer=integer)
        fact &= _mask(seen)
    if fact.empty and "mask" in value.name.lower() and value.dtype in ("int32", "int64", "float32", "float16"):
        return Fact(mask=True)
    return fact


# Indices into a table.


def _index(size: int | None) -> Fact:
    """An index below `size`; only zero is safe where the size is unknown."""
    return Fact(low=0, high=0 if size is None else max(size - 1, 0))


def _at(shape: KnownShape | None, axis: int) -> int | None:
    return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None


def index_into(table: int, axis: int = 0) -> Rule:
    """Elements index axis `axis` (attribute 'axis' first) of the node's input `table`."""
    return lambda site: _index(_at(site.shape(table), site.integer("axis", axis)))


def _index_tuple(site: Site) -> Fact:
    """GatherND, ScatterND: the last axis holds one index for each of the first axes (after the batch ones)."""
    table, indices = site.shape(0), site.shape(site.position)
    depth = _at(indices, -1)
    if table is None or depth is None:
        return Fact(low=0, high=0)
    batch = site.integer("batch_dims", 0)
    sizes = table[batch : batch + depth]
    return Fact(low=0, high=np.asarray([0 if size is None else size - 1 for size in sizes], np.float64))


def _one_hot_index(site: Site) -> Fact:
    depth = site.constant(1)
    if depth is not None:
        return _index(int(depth.reshape(-1)[0]))
    return _index(_at(site.made(), site.integer("axis", -1)))


def _class_index(site: Site) -> Fact:
    """Losses: classes are axis 1 of the scores."""
    return _index(_at(site.shape(0), 1))


# Masks.


def _mask(seen: Seen) -> Fact:
    """Whether the place is one that only masks reach: cast to bool, compared with zero, or (1 - m) * -10000."""
    site = seen.site
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


# Shapes, axes and lengths.


def _ints(numbers: Sequence[int | None] | None, unknown: int = 1) -> Fact:
    """Exactly these integers; `unknown` where one of them is not known."""
    if numbers is None:
        return Fact(low=unknown, high=unknown)
    return Fact(
        low=unknown,
        high=unknown,
        exact=np.asarray([unknown if number is None else number for number in numbers], np.int64),
    )


def _made_shape(site: Site) -> Fact:
    """The shape that the output has; all ones where it is unknown."""
    return _ints(site.made())


def _reshape(site: Site) -> Fact:
    made = site.made()
    if made is not None and None not in made:
        return _ints(made)
    length = _at(site.shape(1), 0)
    return _ints(None if length is None else [1] * (length - 1) + [-1], unknown=-1)


def _expand(site: Site) -> Fact:
    made = site.made()
    return _ints(made if made is not None and None not in made else None)


def _tile(site: Site) -> Fact:
    made, given = site.made(), site.shape(0)
    if made is None or given is None or len(made) != len(given):
        return _ints(None)
    return _ints([(out // size if out and size else 1) for out, size in zip(made, given, strict=True)])


def _axes(site: Site, position: int, count: int) -> list[int]:
    """The axes that the node's input `position` names; the first `count` where it is not constant."""
    axes = site.constant(position)
    return list(range(count)) if axes is None else [int(axis) for axis in axes.reshape(-1)]


def _slice_ends(site: Site) -> Fact:
    """Ends that give the output's shape from starts of zero and steps of one."""
    made, given, count = site.made(), site.shape(0), _at(site.shape(2), 0)
    if count is None:
        return _ints(None)
    starts, axes = site.constant(1), _axes(site, 3, count)
    ends: list[int | None] = []
    for index, axis in enumerate(axes):
        size = _at(made, axis) if _at(made, axis) is not None else _at(given, axis)
        start = 0 if starts is None else int(starts.reshape(-1)[index])
        ends.append(None if size is None else start + size)
    return _ints(ends, unknown=1)


def _count_up(site: Site) -> Fact:
    """0, 1, 2, ...: distinct axes."""
    length = _at(site.shape(site.position), 0)
    return _ints(None if length is None else list(range(length)), unknown=0)


def _moved_axes(site: Site) -> Fact:
    """Axes of Squeeze, Unsqueeze or a reduction, found by comparing the shapes before and after."""
    given, made = site.shape(0), site.made()
    count = _at(site.shape(1), 0)
    if count is None:
        count = 1
    if given is None:
        return _ints(list(range(count)), unknown=0)
    if site.node.op in ("Unsqueeze", "EXPAND_DIMS"):
        return _ints(_extra_axes(made, given, count), unknown=0)
    if site.node.op in ("Squeeze", "SQUEEZE"):
        return _ints([axis for axis, size in enumerate(given) if size == 1][:count], unknown=0)
    if made is not None and len(made) == len(given):
        changed = [axis for axis, (old, new) in enumerate(zip(given, made, strict=True)) if old != new]
        spare = [axis for axis in range(len(given)) if axis not in changed and made[axis] in (1, None)]
        return _ints((changed + spare)[:count], unknown=0)
    return _ints(_extra_axes(given, made, count), unknown=0)


def _extra_axes(longer: KnownShape | None, shorter: KnownShape | None, count: int) -> list[int]:
    """Axes of `longer` that `shorter` lacks; the first `count` where the shapes do not tell."""
    if longer is None or shorter is None or len(longer) - len(shorter) != count:
        return list(range(count))
    found: list[int] = []
    for axis, size in enumerate(longer):
        here = axis - len(found)
        if len(found) < count and (here >= len(shorter) or shorter[here] != size):
            found.append(axis)
    return (found + [axis for axis in range(len(longer)) if axis not in found])[:count]


def _any_axis(site: Site) -> Fact:
    shape = site.shape(1) if site.node.op == "SPLIT" else site.shape(0)
    return Fact(low=0, high=0 if not shape else len(shape) - 1)


def _split_sizes(site: Site) -> Fact:
    given, axis = site.shape(0), site.integer("axis", 0)
    made = [_at(site.made(index), axis) for index in range(len(site.node.outputs))]
    if None not in made:
        return _ints(made)
    size, length = _at(given, axis), _at(site.shape(1), 0)
    if size is None or not length:
        return _ints(None)
    return _ints([size // length] * (length - 1) + [size - size // length * (length - 1)])


def _top_k(site: Site) -> Fact:
    size = _at(site.made(), site.integer("axis", -1))
    most = _at(site.shape(0), site.integer("axis", -1))
    return _ints([size if size is not None else min(5, most or 1)])


def _range_limit(site: Site) -> Fact:
    size = _at(site.made(), 0)
    start, delta = site.constant(0), site.constant(2)
    first = 0.0 if start is None else float(start.reshape(-1)[0])
    step = 1.0 if delta is None else float(delta.reshape(-1)[0])
    return Fact(exact=np.asarray([first + step * (4 if size is None else size)]))


def _exactly(number: float) -> Rule:
    return lambda site: Fact(low=number, high=number)


def _between(low: float | None, high: float | None) -> Rule:
    return lambda site: Fact(low=low, high=high)


def _resize_sizes(site: Site) -> Fact:
    made, given, length = site.made(), site.shape(0), _at(site.shape(site.position), 0)
    axes = site.attribute("axes")
    shape = made if made is not None and None not in made else given
    if shape is None:
        return _ints(None)
    if isinstance(axes, tuple) and len(axes) == length:
        return _ints([_at(shape, int(axis)) for axis in axes])
    return _ints(shape[-length:] if length else shape)


def _resize_scales(site: Site) -> Fact:
    made, given, length = site.made(), site.shape(0), _at(site.shape(site.position), 0)
    if made is None or given is None or len(made) != len(given):
        return Fact(low=1, high=1)
    ratio = [(out / size if out and size else 1.0) for out, size in zip(made, given, strict=True)]
    axes = site.attribute("axes")
    if isinstance(axes, tuple) and len(axes) == length:
        ratio = [ratio[int(axis)] for axis in axes]
    return Fact(low=1, high=1, exact=np.asarray(ratio, np.float64))


def _pads(site: Site) -> Fact:
    """ONNX: all pads before, then all after; everything is added after."""
    made, given = site.made(), site.shape(0)
    length = _at(site.shape(1), 0)
    if made is None or given is None or length is None or len(made) != len(given):
        return Fact(low=0, high=1)
    axes = _axes(site, 3, length // 2)
    after = [(_at(made, axis) or 0) - (_at(given, axis) or 0) if _at(made, axis) is not None else 0 for axis in axes]
    return _ints([0] * len(after) + after, unknown=0)


def _tflite_pads(site: Site) -> Fact:
    """TFLite: one row (before, after) an axis."""
    made, given = site.made(), site.shape(0)
    if made is None or given is None or len(made) != len(given) or None in made:
        return Fact(low=0, high=1)
    rows = [(0, (out or 0) - (size or 0)) for out, size in zip(made, given, strict=True)]
    return Fact(low=0, high=1, exact=np.asarray(rows, np.int64))


def _trip_count(site: Site) -> Fact:
    carried = len(site.node.inputs) - 2
    scanned = [_at(site.made(index), 0) for index in range(carried, len(site.node.outputs))]
    return _ints([next((size for size in scanned if size is not None), 3)])


def _sequence_lens(axis: int) -> Rule:
    """RNN, LSTM, GRU, ReverseSequence: at most the size of the time axis."""

    def rule(site: Site) -> Fact:
        size = _at(site.shape(0), axis)
        return Fact(low=1, high=1 if size is None else size)

    return rule


def _reverse_lens(site: Site) -> Fact:
    size = _at(site.shape(0), site.integer("time_axis", site.integer("seq_dim", 0)))
    return Fact(low=1, high=1 if size is None else size)


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


def _listed(*names: str) -> Rule:
    """One of the texts (or numbers) that an attribute lists."""

    def rule(site: Site) -> Fact:
        for name in names:
            listed = site.attribute(name)
            if isinstance(listed, tuple) and listed:
                return Fact(choices=tuple(item if isinstance(item, str) else float(item) for item in listed))
        return ANY

    return rule


def _number_text(site: Site) -> Fact:
    """Cast of a string: text that reads as a number."""
    value = site.value(0)
    return Fact(choices=("0", "1", "2.5", "-3")) if value is not None and value.dtype == "string" else ANY


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


def sequence_length(scope: Scope, value: Value) -> int | None:
    """How many elements an input has that is a sequence (or an optional one); None when it is a tensor."""
    if value.kind == "sequence":
        return 3
    if value.kind == "optional":
        for seen in seen_by(scope, value.name):
            inner = scope.value(seen.site.node.outputs[0]) if seen.site.node.op == "OptionalGetElement" else None
            if inner is not None and inner.kind == "sequence":
                return 3
    return None


def _position(site: Site) -> Fact:
    return Fact(low=0, high=2)  # `sequence_length` gives three elements


_UNIT = _between(0.0, 1.0)
_POSITIVE = _between(0.05, None)
_COUNT: Rule = _exactly(0)


def _nonzero(site: Site) -> Fact:
    return Fact(nonzero=True)


def _shift_bits(site: Site) -> Fact:
    return Fact(low=0, high=3)


RULES: Mapping[tuple[str, int], Rule] = {  # (operation, input position) -> what its elements must be
    # indices
    ("Gather", 1): index_into(0), ("GatherElements", 1): index_into(0), ("GatherND", 1): _index_tuple,
    ("ScatterElements", 1): index_into(0), ("Scatter", 1): index_into(0), ("ScatterND", 1): _index_tuple,
    ("OneHot", 0): _one_hot_index, ("NegativeLogLikelihoodLoss", 1): _class_index,
    ("SoftmaxCrossEntropyLoss", 1): _class_index, ("RoiAlign", 2): index_into(0),
    ("ai.onnx.ml::ArrayFeatureExtractor", 1): index_into(0, -1),
    ("GATHER", 1): index_into(0), ("EMBEDDING_LOOKUP", 0): index_into(1), ("GATHER_ND", 1): _index_tuple,
    ("ONE_HOT", 0): _one_hot_index,
    ("SequenceAt", 1): _position, ("SequenceErase", 1): _position, ("SequenceInsert", 2): _position,
    # shapes, axes, lengths
    ("Reshape", 1): _reshape, ("Expand", 1): _expand, ("Tile", 1): _tile, ("ConstantOfShape", 0): _made_shape,
    ("CenterCropPad", 1): _made_shape, ("AffineGrid", 1): _made_shape,
    ("Slice", 1): _exactly(0), ("Slice", 2): _slice_ends, ("Slice", 3): _count_up, ("Slice", 4): _exactly(1),
    ("Squeeze", 1): _moved_axes, ("Unsqueeze", 1): _moved_axes, ("Split", 1): _split_sizes, ("TopK", 1): _top_k,
    **{(f"Reduce{kind}", 1): _moved_axes for kind in
       ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
    ("CumSum", 1): _any_axis, ("CumProd", 1): _any_axis,
    ("Range", 0): _exactly(0), ("Range", 1): _range_limit, ("Range", 2): _exactly(1),
    ("Resize", 2): _resize_scales, ("Resize", 3): _resize_sizes, ("Upsample", 1): _resize_scales,
    ("Pad", 1): _pads, ("Pad", 3): _count_up, ("Loop", 0): _trip_count, ("Loop", 1): _exactly(1),
    ("RNN", 4): _sequence_lens(0), ("LSTM", 4): _sequence_lens(0), ("GRU", 4): _sequence_lens(0),
    ("ReverseSequence", 1): _reverse_lens, ("Trilu", 1): _exactly(0),
    ("RESHAPE", 1): _reshape, ("TILE", 1): _tile, ("BROADCAST_TO", 1): _made_shape, ("FILL", 0): _made_shape,
    ("PAD", 1): _tflite_pads, ("PADV2", 1): _tflite_pads, ("MIRROR_PAD", 1): _tflite_pads,
    ("SLICE", 1): _exactly(0), ("SLICE", 2): _made_shape, ("TRANSPOSE", 1): _count_up, ("EXPAND_DIMS", 1): _moved_axes,
    ("ARG_MAX", 1): _any_axis, ("ARG_MIN", 1): _any_axis, ("CUMSUM", 1): _any_axis, ("SPLIT", 0): _any_axis,
    ("TOPK_V2", 1): _top_k, ("RANGE", 0): _exactly(0), ("RANGE", 1): _range_limit, ("RANGE", 2): _exactly(1),
    ("REVERSE_SEQUENCE", 1): _reverse_lens,
    **{(kind, 1): _moved_axes for kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REVERSE_V2")},
    # domains of functions
    ("QuantizeLinear", 0): _representable, ("QuantizeLinear", 1): _POSITIVE, ("DequantizeLinear", 1): _POSITIVE,
    ("Log", 0): _POSITIVE, ("Sqrt", 0): _POSITIVE, ("Reciprocal", 0): _POSITIVE, ("Pow", 0): _POSITIVE,
    ("LOG", 0): _POSITIVE, ("SQRT", 0): _POSITIVE, ("RSQRT", 0): _POSITIVE, ("POW", 0): _POSITIVE,
    ("Asin", 0): _UNIT, ("Acos", 0): _UNIT, ("Atanh", 0): _between(-0.9, 0.9), ("Acosh", 0): _between(1.05, 9.0),
    ("Div", 1): _nonzero, ("Mod", 1): _nonzero, ("DIV", 1): _nonzero, ("FLOOR_DIV", 1): _nonzero,
    ("FLOOR_MOD", 1): _nonzero, ("BitShift", 1): _shift_bits,
    ("BatchNormalization", 4): _POSITIVE, ("Bernoulli", 0): _UNIT, ("GridSample", 1): _between(-1.0, 1.0),
    ("NonMaxSuppression", 0): _UNIT, ("NonMaxSuppression", 1): _UNIT, ("NonMaxSuppression", 2): _exactly(3),
    ("NonMaxSuppression", 3): _between(0.3, 0.6), ("NonMaxSuppression", 4): _between(0.1, 0.4),
    # strings
    ("Cast", 0): _number_text,
    ("ai.onnx.ml::LabelEncoder", 0): _listed("keys_strings", "keys_int64s", "keys_floats"),
    ("ai.onnx.ml::CategoryMapper", 0): _listed("cats_strings", "cats_int64s"),
    ("ai.onnx.ml::OneHotEncoder", 0): _listed("cats_strings", "cats_int64s"),
    ("TfIdfVectorizer", 0): _listed("pool_strings", "pool_int64s"),
}  # fmt: skip
