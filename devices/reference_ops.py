"""What onnx's evaluator gets wrong in silence, put right or refused.

Its classes follow the newest definition of an op, also for models of older opsets, and some ignore inputs and
attributes. Each entry says which models it is for. Found by running every op of opsets 7 to 22 beside ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgert.tensor import Array

NEWEST = 1 << 30
"""An opset beyond every fix: ones that hold for all of them."""


def corrected(opset: int) -> list[type]:
    """Classes for `ReferenceEvaluator(new_ops=...)`, for models of this opset of the standard's domain."""
    return [make() for until, make in _FIXES if opset < until]


def _softmax() -> type:
    from onnx.reference.ops.op_softmax import Softmax as Today

    compute: Any = Today._run

    class Softmax(Today):
        def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
            return (_in_two_dimensions(self, x, lambda flat: compute(self, flat, -1)[0]),)

    return Softmax


def _log_softmax() -> type:
    from onnx.reference.op_run import OpRun

    class LogSoftmax(OpRun):
        def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
            return (_in_two_dimensions(self, x, _log_softmax_rows),)

    return LogSoftmax


def _hardmax() -> type:
    from onnx.reference.op_run import OpRun

    class Hardmax(OpRun):
        def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
            return (_in_two_dimensions(self, x, _hardmax_rows),)

    return Hardmax


def _batch_normalization() -> type:
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        """Before opset 14 one output means inference; the evaluator computes the statistics of the batch."""

        def __init__(self, node: Any, run_params: dict[str, Any]) -> None:
            super().__init__(node, run_params)
            if len([name for name in node.output if name]) > 1 or _stated(node, "spatial", 1) != 1:
                raise NotImplementedError("BatchNormalization in training, or not spatial")

        def _run(
            self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, **attributes: Any
        ) -> tuple[Array]:
            shape = (-1, *[1] * (x.ndim - 2))
            scale, bias, mean, variance = (each.reshape(shape) for each in (scale, bias, mean, variance))
            root = np.sqrt(variance + np.asarray(attributes["epsilon"], variance.dtype))
            return (((x - mean) / root * scale + bias).astype(x.dtype),)

    return BatchNormalization


def _dequantize_linear() -> type:
    from onnx.reference.op_run import OpRun

    class DequantizeLinear(OpRun):
        """The evaluator has none before opset 19."""

        def _run(
            self, x: Array, scale: Array, zero_point: Array | None = None, axis: int = 1, **_: Any
        ) -> tuple[Array]:
            shape = [1] * x.ndim
            if scale.size > 1:
                shape[axis] = scale.size
            shifted = x.astype(np.int32)
            if zero_point is not None:
                shifted = shifted - zero_point.astype(np.int32).reshape(shape)
            return ((shifted * scale.reshape(shape)).astype(scale.dtype),)

    return DequantizeLinear


def _lp_normalization() -> type:
    from onnx.reference.op_run import OpRun

    class LpNormalization(OpRun):
        """The norm is of absolute values; the evaluator lets negative ones cancel at p = 1."""

        def _run(self, x: Array, axis: int = -1, p: int = 2) -> tuple[Array]:
            norm = np.power(np.power(np.abs(x), p).sum(axis=axis, keepdims=True), 1.0 / p)
            return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)

    return LpNormalization


def _roi_align() -> type:
    from onnx.reference.op_run import OpRun

    class RoiAlign(OpRun):
        """Before opset 16 its coordinates are not shifted by half a pixel; the evaluator shifts them."""

        def __init__(self, node: Any, run_params: dict[str, Any]) -> None:
            super().__init__(node, run_params)
            raise NotImplementedError("RoiAlign before opset 16")

    return RoiAlign


def _lrn() -> type:
    from onnx.reference.op_run import OpRun

    class LRN(OpRun):
        """Squares summed over the channels around each one; the evaluator leaves out the channels after the first N."""

        def _run(
            self, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1
        ) -> tuple[Array]:
            before, after = (size - 1) // 2, size // 2
            squares = np.square(x)
            sums = [squares[:, max(0, c - before) : c + after + 1].sum(axis=1) for c in range(x.shape[1])]
            return ((x / (bias + alpha / size * np.stack(sums, axis=1)) ** beta).astype(x.dtype),)

    return LRN


def _pool(name: str, module: str, today: str, wrong: Callable[[_Window], bool]) -> Callable[[], type]:
    """Pooling without the windows that the evaluator puts elsewhere, or counts otherwise."""

    def make() -> type:
        from importlib import import_module

        base: Any = getattr(import_module(f"onnx.reference.ops.{module}"), today)
        reason = f"{name} with these of auto_pad, ceil_mode, dilations, pads and strides"

        def init(self: Any, node: Any, run_params: dict[str, Any]) -> None:
            base.__init__(self, node, run_params)
            self.window = _Window.of(node)
            if wrong(self.window):
                raise NotImplementedError(reason)

        def run(self: Any, x: Array, **attributes: Any) -> Any:
            if name != "MaxPool" and self.window.moved(x.shape[2:]):
                raise NotImplementedError(reason)
            return base._run(self, x, **attributes)

        return type(name, (base,), {"__init__": init, "_run": run})

    return make


@dataclass(frozen=True, slots=True)
class _Window:
    """What a pooling node states of its windows, axis by axis; empty where it does not say."""

    placed: str
    """Its `auto_pad`: NOTSET, SAME_UPPER, SAME_LOWER or VALID."""
    ceil: bool
    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Sequence[int]
    """Before each axis, then behind each."""

    @classmethod
    def of(cls, node: Any) -> _Window:
        return cls(
            _stated(node, "auto_pad", b"NOTSET").decode(),
            bool(_stated(node, "ceil_mode", 0)),
            *(_stated(node, name, []) for name in ("kernel_shape", "strides", "dilations", "pads")),
        )

    @property
    def forgotten(self) -> bool:
        """Beside auto_pad the evaluator looks neither at dilations nor at ceil_mode."""
        return self.placed != "NOTSET" and (self.ceil or any(each != 1 for each in self.dilations))

    @property
    def wrong_for_max(self) -> bool:
        """Besides, ceil_mode adds windows that begin outside, and SAME_LOWER leaves out the last ones."""
        short = self.placed == "SAME_LOWER" and any(each > 1 for each in self.strides)
        return self.forgotten or short or (self.ceil and any(self.pads))

    def moved(self, shape: Sequence[int]) -> bool:
        """Whether the last window lacks two or more: the evaluator puts half of that in front, and all of them move."""
        if not self.ceil:
            return False
        axes = len(shape)
        kernel, strides, dilations = (
            each or [1] * axes for each in (self.kernel, self.strides, self.dilations)
        )  # fmt: skip
        pads = self.pads or [0] * 2 * axes
        for axis, size in enumerate(shape):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            padded = size + pads[axis] + pads[axes + axis]
            last = -(-(padded - reach) // strides[axis])
            if last * strides[axis] >= size + pads[axis]:  # it would begin behind the input
                last -= 1
            if last * strides[axis] + reach - padded > 1:
                return True
        return False


def _optional() -> type:
    from onnx.reference.op_run import OpRun

    class Optional(OpRun):
        """An optional is its value, or None; the evaluator makes a list of it, which nothing takes apart again."""

        def _run(self, x: Any = None, **_: Any) -> tuple[Any]:
            if x is None:
                raise NotImplementedError("an empty Optional")  # the evaluator lets no op return None
            return (x,)

    return Optional


def _loop() -> type:
    from onnx.reference.op_run import OpRun

    class Loop(OpRun):
        """A condition that is left out is true (the evaluator runs such a loop never), a value of the body goes before
        one of the same name outside, and what is made in each turn is stacked along an axis of its own.
        """

        def need_context(self) -> bool:
            return True

        def _run(
            self, most: Array | None = None, condition: Array | None = None, *carried: Any,
            context: dict[str, Any] | None = None, attributes: Any = None, bindings: Any = None, **_: Any,
        ) -> tuple[Any, ...]:  # fmt: skip
            body: Any = self.body  # type: ignore[attr-defined]  # set from the node's attribute
            counter, again, *names = body.input_names
            turns: list[list[Any]] = []
            going = condition is None or bool(condition.item())
            while going and (most is None or len(turns) < most.item()):
                fed = {**(context or {}), counter: np.array(len(turns), np.int64), again: np.array(going)}
                fed.update(zip(names, carried, strict=True))
                keeps_on, *made = self._run_body(fed, attributes=attributes, bindings=bindings)  # type: ignore[attr-defined]
                going, carried = bool(np.asarray(keeps_on).item()), tuple(made[: len(names)])
                turns.append(made[len(names) :])
            if not turns and len(body.output_names) > 1 + len(names):
                raise NotImplementedError("Loop without a turn that stacks values: nothing tells their shape")
            return (*carried, *(np.stack(values) for values in zip(*turns, strict=True)))

    return Loop


def _scan() -> type:
    from onnx.reference.ops.op_scan import Scan as Today

    class Scan(Today):
        """Without what the evaluator takes for something else: batches, as before opset 9, and axes from the end."""

        def __init__(self, node: Any, run_params: dict[str, Any]) -> None:
            super().__init__(node, run_params)  # type: ignore[no-untyped-call]  # onnx states no types
            if len(node.input) != len(self.input_names):
                raise NotImplementedError("Scan before opset 9")
            if any(any(_stated(node, each, [])) for each in ("scan_input_axes", "scan_output_axes")):
                raise NotImplementedError("Scan along other axes than the first")

    return Scan


def _recurrent(name: str, activations: tuple[str, ...]) -> Callable[[], type]:
    """LSTM, GRU or RNN without what the evaluator ignores: sequence lengths, clipping, other activations, ..."""

    def make() -> type:
        from importlib import import_module

        today: Any = getattr(import_module(f"onnx.reference.ops.op_{name.lower()}"), name, None)
        if today is None:  # RNN has a class a version, and the same body
            today = import_module(f"onnx.reference.ops.op_{name.lower()}").RNN_14

        def init(self: Any, node: Any, run_params: dict[str, Any]) -> None:
            today.__init__(self, node, run_params)
            asked = _stated(node, "activations", [])
            if any(_stated(node, each, 0) for each in ("clip", "input_forget")):
                raise NotImplementedError(f"{name} with clip or input_forget")
            directions = 2 if _stated(node, "direction", b"forward") == b"bidirectional" else 1
            if activations and asked and [each.decode() for each in asked] != [*activations] * directions:
                raise NotImplementedError(f"{name} with activations of its own")

        def run(self: Any, x: Array, *others: Array | None, **attributes: Any) -> Any:
            lengths = others[3] if len(others) > 3 else None
            steps = x.shape[1 if attributes.get("layout") else 0]
            if lengths is not None and (np.asarray(lengths) != steps).any():
                raise NotImplementedError(f"{name} with sequences of different lengths")
            return today._run(self, x, *others, **attributes)

        return type(name, (today,), {"__init__": init, "_run": run})

    return make


def _string_normalizer() -> type:
    from onnx.reference.op_run import OpRun

    class StringNormalizer(OpRun):
        """Drops elements that are stopwords, then changes case (by the specification). The evaluator takes accents off,
        drops empty texts and looks for stopwords inside of texts as well.
        """

        def _run(
            self, x: Array, case_change_action: str = "NONE", is_case_sensitive: int = 0,
            locale: str | None = None, stopwords: list[str] | None = None,
        ) -> tuple[Array]:  # fmt: skip
            if x.ndim == 2 and len(x) != 1:
                raise ValueError("StringNormalizer takes texts of shape C or 1xC")
            change: Any = {"LOWER": str.lower, "UPPER": str.upper, "NONE": str}[case_change_action]
            alike: Any = str if is_case_sensitive else str.lower
            dropped = {alike(word) for word in stopwords or ()}
            kept = [change(text) for text in map(str, x.reshape(-1)) if alike(text) not in dropped]
            made = np.array(kept or [""], dtype=object)
            return (made if x.ndim == 1 else made[None],)

    return StringNormalizer


def _zip_map() -> type:
    from onnx.reference.op_run import OpRun

    class ZipMap(OpRun):
        """Scores by label, a map for each row; the evaluator has none."""

        op_domain = "ai.onnx.ml"

        def _run(
            self, x: Array, classlabels_int64s: list[int] | None = None, classlabels_strings: list[str] | None = None
        ) -> tuple[list[dict[str | int, float]]]:
            labels = classlabels_strings or classlabels_int64s or []
            return ([dict(zip(labels, map(float, row), strict=True)) for row in np.atleast_2d(x)],)

    return ZipMap


_FIXES: tuple[tuple[int, Callable[[], type]], ...] = (  # for models of an opset below, class
    (13, _softmax),
    (13, _log_softmax),
    (13, _hardmax),
    (14, _batch_normalization),
    (16, _roi_align),
    (19, _dequantize_linear),
    (NEWEST, _lp_normalization),
    (NEWEST, _lrn),
    (NEWEST, _pool("MaxPool", "op_max_pool", "MaxPool", lambda window: window.wrong_for_max)),
    (NEWEST, _pool("AveragePool", "op_average_pool", "AveragePool_19", lambda window: window.forgotten)),
    (NEWEST, _pool("LpPool", "op_lp_pool", "LpPool", lambda window: window.forgotten or window.ceil)),
    (NEWEST, _optional),
    (NEWEST, _string_normalizer),
    (NEWEST, _zip_map),
    (NEWEST, _loop),
    (NEWEST, _scan),
    (NEWEST, _recurrent("LSTM", ("Sigmoid", "Tanh", "Tanh"))),
    (NEWEST, _recurrent("GRU", ("Sigmoid", "Tanh"))),
    (NEWEST, _recurrent("RNN", ())),
)


def _in_two_dimensions(op: Any, x: Array, rows: Callable[[Array], Array]) -> Array:
    """Softmax and its kin before opset 13: over all axes from `axis` (1 unless stated) on, as one."""
    axis = _stated(op.onnx_node, "axis", 1) % max(x.ndim, 1)
    flat = x.reshape(int(np.prod(x.shape[:axis])), -1) if x.size else x
    return rows(flat).reshape(x.shape) if x.size else x


def _log_softmax_rows(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _hardmax_rows(x: Array) -> Array:
    result = np.zeros_like(x)
    np.put_along_axis(result, x.argmax(axis=-1)[:, None], 1, axis=-1)
    return result


def _stated(node: Any, name: str, default: Any) -> Any:
    """An attribute as the node states it; not the newest opset's default, which the evaluator would fill in."""
    from onnx.helper import get_attribute_value

    return next((get_attribute_value(each) for each in node.attribute if each.name == name), default)
