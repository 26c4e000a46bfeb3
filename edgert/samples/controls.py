"""Inputs that steer a graph: what arrives there as an axis, a shape, a scale, a count or a branch."""

from __future__ import annotations

from collections.abc import Mapping

from edgert.graph import Graph, Value
from edgert.samples.scope import Scope, seen_by

_LARGEST = 64
"""Elements: a list of axes or sizes has fewer; a mask or a batch of tokens is data, whatever it reaches."""
_FLOATS = frozenset(("Resize", "Upsample", "Range"))
"""Operations that are steered by floats; elsewhere a float is data."""

_SITES: Mapping[str, tuple[int, ...]] = {  # operation -> positions of the inputs that steer it
    **dict.fromkeys(("Reshape", "Expand", "Tile", "CenterCropPad", "AffineGrid", "SplitToSequence", "Squeeze",
                     "Unsqueeze", "Split", "TopK", "CumSum", "CumProd", "Trilu", "OneHot"), (1,)),
    **{f"Reduce{kind}": (1,) for kind in
       ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
    **dict.fromkeys(("ConstantOfShape", "HannWindow", "HammingWindow", "BlackmanWindow", "If"), (0,)),
    "MaxUnpool": (2,), "NonMaxSuppression": (2,), "Col2Im": (1, 2), "STFT": (1, 3), "DFT": (1, 2),
    "MelWeightMatrix": (0, 1, 2, 3, 4), "Slice": (1, 2, 3, 4), "Range": (0, 1, 2), "Resize": (1, 2, 3),
    "Upsample": (1,), "Pad": (1, 3), "Loop": (0, 1),
    **dict.fromkeys(("RESHAPE", "TILE", "BROADCAST_TO", "PAD", "PADV2", "MIRROR_PAD", "TRANSPOSE", "EXPAND_DIMS",
                     "ARG_MAX", "ARG_MIN", "CUMSUM", "TOPK_V2", "ONE_HOT", "MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN",
                     "REDUCE_PROD", "REVERSE_V2", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), (1,)),
    **dict.fromkeys(("FILL", "SPLIT", "IF"), (0,)),
    "SLICE": (1, 2), "STRIDED_SLICE": (1, 2, 3), "SPLIT_V": (1, 2), "RANGE": (0, 1, 2),
}  # fmt: skip


def controls(graph: Graph) -> tuple[str, ...]:
    """Names of the inputs, in order, of which some element arrives where it steers what a kernel does.

    Those of another kind than tensors are left out, and large ones. An index into a table is data: kernels do
    the same for each.
    """
    scope = Scope(graph, {})
    return tuple(value.name for value in graph.inputs if _may_steer(value) and _steers(scope, value))


def _may_steer(value: Value) -> bool:
    count = 1
    for size in value.shape or ():
        count *= size if isinstance(size, int) else 1
    return value.kind == "tensor" and value.dtype not in (None, "string") and count <= _LARGEST


def _steers(scope: Scope, value: Value) -> bool:
    floats = "float" in (value.dtype or "")
    return any(
        seen.site.position in _SITES.get(seen.site.node.op, ()) and (not floats or seen.site.node.op in _FLOATS)
        for seen in seen_by(scope, value.name)
    )
