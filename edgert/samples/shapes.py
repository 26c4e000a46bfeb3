"""Shapes through a graph, forward from the sizes that its inputs have, as far as they can be known without running it.

Not a complete inference: an operation that is not in the table keeps what its file says. What is here finds sizes that
cannot be: a dense layer that gets another number of features than its weight has, parts that do not join.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from edgert.graph import Graph
from edgert.samples.conflict import NONSENSE, Conflict, check
from edgert.samples.joints import attention, boxes, classified, recurrent
from edgert.samples.scope import KnownShape, Scope, Site
from edgert.tensor import Array

Shaper: TypeAlias = Callable[[Site], "KnownShape | None"]


def forward(graph: Graph, given: Mapping[str, KnownShape], allowed: int) -> tuple[dict[str, KnownShape], int]:
    """Shapes of all values whose rank is known, and the number of sizes that their nodes cannot take.

    Args:
        graph: the model; bodies of control flow are not entered.
        given: shapes of the inputs.
        allowed: conflicts after which counting stops.
    """
    shapes: dict[str, KnownShape] = {name: constant.value.shape or () for name, constant in graph.constants.items()}  # type: ignore[misc]  # a constant's shape has no free dimension
    shapes.update(given)
    scope = Scope(graph, shapes)
    conflicts = 0
    for node in graph.nodes:
        made: KnownShape | None = None
        shaper = SHAPERS.get(node.op)
        if shaper is not None and node.inputs:
            try:
                made = shaper(Site(scope, node, 0))
            except Conflict as conflict:
                conflicts += conflict.count
                if conflicts > allowed:
                    break
            except NONSENSE:
                made = None
        for position, name in enumerate(node.writes):
            found = _joined(made if position == 0 else None, _declared(graph, name))
            if found is not None:
                shapes[name] = found
    return shapes, conflicts


def _declared(graph: Graph, name: str) -> KnownShape | None:
    value = graph.values.get(name)
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _joined(made: KnownShape | None, declared: KnownShape | None) -> KnownShape | None:
    """What follows from the inputs counts; the file fills what does not follow."""
    if made is None or declared is None or len(made) != len(declared):
        return declared if made is None else made
    return tuple(old if new is None else new for new, old in zip(made, declared, strict=True))


def _same(site: Site) -> KnownShape | None:
    return site.shape(0)


def _broadcast(site: Site) -> KnownShape | None:
    shapes = [site.shape(position) for position, name in enumerate(site.node.inputs) if name]
    if any(shape is None for shape in shapes):
        return None
    return broadcast([shape for shape in shapes if shape is not None])


def broadcast(shapes: Sequence[KnownShape]) -> KnownShape:
    """The joint shape by numpy's rule.

    Raises:
        Conflict: two sizes above one differ.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    joint: list[int | None] = []
    for axis in range(rank):
        sizes = [shape[axis - rank + len(shape)] for shape in shapes if axis - rank + len(shape) >= 0]
        known = {size for size in sizes if size is not None and size != 1}
        if len(known) > 1:
            raise Conflict
        joint.append(known.pop() if known else (None if None in sizes else 1))
    return tuple(joint)


def _numbers(site: Site, name: str, usual: Sequence[int]) -> list[int]:
    found = site.attribute(name)
    return [int(number) for number in found] if isinstance(found, tuple) and found else list(usual)


def _window(site: Site, size: int | None, axis: int, kernel: int) -> int | None:
    """Output size of a convolution or pooling along spatial axis number `axis` (ONNX operator specification)."""
    if size is None:
        return None
    rank = axis + 1
    stride = _numbers(site, "strides", [1] * rank)[axis]
    if str(site.attribute("auto_pad", "")).startswith("SAME"):
        return -(-size // stride)
    reach = _numbers(site, "dilations", [1] * rank)[axis] * (kernel - 1) + 1
    pads = site.attribute("pads")
    added = int(pads[axis]) + int(pads[axis + len(pads) // 2]) if isinstance(pads, tuple) and pads else 0
    room = size + added - reach
    if room < 0:
        return 0  # the caller raises for all axes together
    return (-(-room // stride) if site.integer("ceil_mode", 0) else room // stride) + 1


def _conv(site: Site) -> KnownShape | None:
    x, weight = site.shape(0), site.shape(1)
    if weight is None or x is None or len(x) != len(weight):
        return None
    group = site.integer("group", 1)
    kernels = _numbers(site, "kernel_shape", [size or 1 for size in weight[2:]])
    spatial = [_window(site, size, axis, kernels[axis]) for axis, size in enumerate(x[2:])]
    pairs = [(x[1], None if weight[1] is None else weight[1] * group), *zip(weight[2:], kernels, strict=False)]
    check(*pairs, *((1, 0) for size in spatial if size == 0))
    return (x[0], weight[0], *spatial)


def _transposed_conv(site: Site) -> KnownShape | None:
    x, weight = site.shape(0), site.shape(1)
    if x is None or weight is None or len(x) != len(weight):
        return None
    check((x[1], weight[0]))
    out = None if weight[1] is None else weight[1] * site.integer("group", 1)
    return (x[0], out, *[None] * (len(x) - 2))


def _pool(site: Site) -> KnownShape | None:
    x, kernel = site.shape(0), _numbers(site, "kernel_shape", [])
    if x is None or len(kernel) != len(x) - 2:
        return None
    spatial = [_window(site, size, axis, kernel[axis]) for axis, size in enumerate(x[2:])]
    check(*((1, 0) for size in spatial if size == 0))
    return (*x[:2], *spatial)


def _global_pool(site: Site) -> KnownShape | None:
    x = site.shape(0)
    return None if x is None else (*x[:2], *[1] * (len(x) - 2))


def _matmul(site: Site) -> KnownShape | None:
    first, second = site.shape(0), site.shape(1)
    if first is None or second is None or len(first) < 2 or len(second) < 2:
        return None
    check((first[-1], second[-2]))
    return (*broadcast([first[:-2], second[:-2]]), first[-2], second[-1])


def _gemm(site: Site) -> KnownShape | None:
    first, second = site.shape(0), site.shape(1)
    if first is None or second is None or len(first) != 2 or len(second) != 2:
        return None
    rows, inner = first[::-1] if site.integer("transA", 0) else first
    inner_too, columns = second[::-1] if site.integer("transB", 0) else second
    check((inner, inner_too))
    return (rows, columns)


def _product(sizes: Sequence[int | None]) -> int | None:
    total = 1
    for size in sizes:
        if size is None:
            return None
        total *= size
    return total


def _flatten(site: Site) -> KnownShape | None:
    x, axis = site.shape(0), site.integer("axis", 1)
    return None if x is None else (_product(x[:axis]), _product(x[axis:]))


def _reshape(site: Site) -> KnownShape | None:
    x, target = site.shape(0), site.constant(1)
    if target is None:
        return None
    sizes: list[int | None] = [int(size) for size in target.reshape(-1)]
    for axis, size in enumerate(sizes):
        if size == 0 and not site.integer("allowzero", 0):
            sizes[axis] = x[axis] if x is not None and axis < len(x) else None
    total, rest = None if x is None else _product(x), _product([size for size in sizes if size != -1])
    if total is not None and rest:
        if total % rest or (-1 not in sizes and total != rest):
            raise Conflict
        return tuple(total // rest if size == -1 else size for size in sizes)
    return tuple(None if size == -1 else size for size in sizes)


def _transpose(site: Site) -> KnownShape | None:
    x, order = site.shape(0), site.attribute("perm")
    if x is None:
        return None
    if not isinstance(order, tuple):
        return x[::-1]
    return tuple(x[int(axis)] for axis in order) if len(order) == len(x) else None


def _concat(site: Site) -> KnownShape | None:
    shapes = [site.shape(position) for position in range(len(site.node.inputs))]
    known = [shape for shape in shapes if shape is not None]
    axis = site.integer("axis", 0)
    if (
        len(known) != len(shapes)
        or len({len(shape) for shape in known}) != 1
        or not -len(known[0]) <= axis < len(known[0])
    ):
        return None
    joint: list[int | None] = []
    for index, sizes in enumerate(zip(*known, strict=True)):
        if index == axis % len(known[0]):
            joint.append(None if None in sizes else sum(size for size in sizes if size is not None))
            continue
        different = {size for size in sizes if size is not None}
        if len(different) > 1:
            raise Conflict
        joint.append(different.pop() if different else None)
    return tuple(joint)


def _constant_axes(site: Site) -> list[int] | None:
    axes: Array | None = site.constant(1)
    if axes is not None:
        return [int(axis) for axis in axes.reshape(-1)]
    named = site.attribute("axes")
    return [int(axis) for axis in named] if isinstance(named, tuple) else None


def _unsqueeze(site: Site) -> KnownShape | None:
    x, axes = site.shape(0), _constant_axes(site)
    if x is None or axes is None:
        return None
    rank = len(x) + len(axes)
    places, rest = {axis % rank for axis in axes}, iter(x)
    return tuple(1 if axis in places else next(rest) for axis in range(rank))


def _squeeze(site: Site) -> KnownShape | None:
    x, axes = site.shape(0), _constant_axes(site)
    if x is None or axes is None or not x:
        return None
    places = {axis % len(x) for axis in axes}
    check(*((x[axis], 1) for axis in places))
    return tuple(size for axis, size in enumerate(x) if axis not in places)


def _reduce(site: Site) -> KnownShape | None:
    x, axes = site.shape(0), _constant_axes(site)
    if x is None or axes is None or not x:
        return None
    places = {axis % len(x) for axis in axes}
    kept = site.integer("keepdims", 1)
    return tuple(1 if axis in places else size for axis, size in enumerate(x) if kept or axis not in places)


def _gather(site: Site) -> KnownShape | None:
    table, indices = site.shape(0), site.shape(1)
    axis = site.integer("axis", 0)
    if table is None or indices is None or not -len(table) <= axis < len(table):
        return None
    axis %= len(table)
    return (*table[:axis], *indices, *table[axis + 1 :])


def _split(site: Site) -> KnownShape | None:
    """At least one row a part; where the sizes are given they add up."""
    x, axis, sizes = site.shape(0), site.integer("axis", 0), site.constant(1)
    if x is None or not -len(x) <= axis < len(x) or x[axis] is None:
        return None
    size = x[axis] or 0
    count = site.integer("num_outputs", len(site.node.outputs))
    named = site.attribute("split")
    if sizes is not None or isinstance(named, tuple):
        numbers = sizes.reshape(-1).tolist() if sizes is not None else named
        assert isinstance(numbers, list | tuple), "one of the two is there"
        check((size, sum(int(number) for number in numbers)))
    elif size % count:
        raise Conflict
    return None


def _depth_to_space(site: Site) -> KnownShape | None:
    x, block = site.shape(0), site.integer("blocksize", 1)
    if x is None or len(x) != 4 or x[1] is None:
        return None
    check((x[1] % (block * block), 0))
    return (x[0], x[1] // (block * block), *(None if size is None else size * block for size in x[2:]))


def _as_long_as_rank(position: int, factor: int = 1) -> Shaper:
    """Input `position` has one number (or `factor`) for each axis of input 0, unless axes are named."""

    def shaper(site: Site) -> KnownShape | None:
        x, numbers = site.shape(0), site.shape(position)
        if x is not None and numbers and not site.attribute("axes") and site.shape(3 if factor == 2 else 99) is None:
            check((numbers[0], len(x) * factor))
        return None

    return shaper


def _resized(site: Site) -> KnownShape | None:
    return _as_long_as_rank(3 if site.shape(3) is not None else 2)(site)


def _normalised(site: Site) -> KnownShape | None:
    """BatchNormalization, InstanceNormalization: one scale a channel."""
    x, scale = site.shape(0), site.shape(1)
    if x is not None and scale is not None and len(x) > 1 and len(scale) == 1:
        check((x[1], scale[0]))
    return x


def _fully_connected(site: Site) -> KnownShape | None:
    """TFLite: flattens what it gets to rows of the weight's width."""
    x, weight = site.shape(0), site.shape(1)
    total, width = None if x is None else _product(x), None if weight is None or len(weight) != 2 else weight[1]
    if total is not None and width and total % width:
        raise Conflict
    return None


_SAME = (
    "Identity", "Cast", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Sigmoid",
    "HardSigmoid", "HardSwish", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Reciprocal", "Sign", "Floor",
    "Ceil", "Round", "Sin", "Cos", "Tan", "Softplus", "Softsign", "Softmax", "LogSoftmax", "Hardmax", "Not", "Clip",
    "Dropout", "IsNaN", "IsInf", "LayerNormalization", "RMSNormalization", "LpNormalization", "LRN",
    "MeanVarianceNormalization", "GroupNormalization", "QuantizeLinear", "DequantizeLinear", "CumSum",
    "ThresholdedRelu", "Swish", "RELU", "RELU6", "LOGISTIC", "TANH", "SOFTMAX", "LOG_SOFTMAX", "EXP", "LOG", "SQRT",
    "RSQRT", "NEG", "ABS", "CAST", "QUANTIZE", "DEQUANTIZE", "HARD_SWISH", "ELU", "GELU",
)  # fmt: skip
_BROADCAST = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Where", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "ADD",
    "SUB", "MUL", "DIV", "POW", "MAXIMUM", "MINIMUM", "EQUAL", "GREATER", "LESS", "SELECT_V2",
)  # fmt: skip

SHAPERS: Mapping[str, Shaper] = {  # operation -> shape of its first output
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    "Conv": _conv, "ConvInteger": _conv, "ConvTranspose": _transposed_conv, "MaxPool": _pool, "AveragePool": _pool,
    "LpPool": _pool, **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    "MatMul": _matmul, "MatMulInteger": _matmul, "Gemm": _gemm, "Flatten": _flatten, "Reshape": _reshape,
    "Transpose": _transpose, "Concat": _concat, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Gather": _gather,
    **{f"Reduce{kind}": _reduce for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp")},
    "Split": _split, "DepthToSpace": _depth_to_space, "Attention": attention, "NonMaxSuppression": boxes,
    "NegativeLogLikelihoodLoss": classified, "SoftmaxCrossEntropyLoss": classified, "Tile": _as_long_as_rank(1),
    "Upsample": _as_long_as_rank(1), "Resize": _resized, "Pad": _as_long_as_rank(1, 2),
    "LSTM": recurrent, "GRU": recurrent, "RNN": recurrent, "BatchNormalization": _normalised,
    "InstanceNormalization": _normalised, "FULLY_CONNECTED": _fully_connected,
}  # fmt: skip
