"""How far an answer is from the reference's, and whether that is near enough.

Distances are measured raw (`compare`) and judged apart (`judge`), so that a cached measurement serves any tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgert.graph import Graph
from edgert.plan import Tolerance
from edgert.profile import OutputError, Precision
from edgert.tensor import BITS, FLOATS, Array, Data, dtype_of

_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Spacing of 1.0: an output of that type cannot be nearer than this."""
_CODES = frozenset(name for name in FLOATS if BITS[name] <= 8)
"""Floats of so few values that they are counted in steps, like integers: a share of their range would forgive all."""
_RANDOM = frozenset((
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli",
    "RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL",
))  # fmt: skip
_SAME_VALUES = frozenset((
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Relu", "Clip", "MaxPool", "Slice",
    "Gather", "RESHAPE", "TRANSPOSE", "SQUEEZE",
))  # fmt: skip
_EIGHT_OR_SIXTEEN_BITS = frozenset(("int8", "uint8", "int16", "uint16"))


def compare(
    reference: Mapping[str, Data], answer: Mapping[str, Data], steps: Mapping[str, float], relative: float = 0.0
) -> tuple[OutputError, ...]:
    """Distance of every output of `answer` from that of `reference`.

    Args:
        reference: outputs by name.
        answer: outputs by name, of the same model on the same inputs.
        steps: as `output_steps` gives: the real-valued size of one integer step, for float outputs that have one.
        relative: `Tolerance.relative`, for `OutputError.excess`.
    """
    return tuple(
        _distance(name, expected, answer[name], steps.get(name, 0.0), relative)
        if name in answer
        else _mismatch(name, "is missing")
        for name, expected in reference.items()
    )


def worst(many: Sequence[tuple[OutputError, ...]]) -> tuple[OutputError, ...]:
    """The worst of each output over several samples."""
    joined = []
    for errors in zip(*many, strict=True):
        joined.append(
            OutputError(
                errors[0].name,
                max(error.range_fraction for error in errors),
                max(error.lsb for error in errors),
                min(error.sqnr_db for error in errors),
                all(error.top1 for error in errors),
                max(error.excess for error in errors),
                next((error.mismatch for error in errors if error.mismatch), ""),
            )
        )
    return tuple(joined)


def judge(
    errors: Sequence[OutputError],
    tolerance: Tolerance,
    own: Precision,
    precision: Precision,
    dtypes: Mapping[str, str | None],
) -> str:
    """Why these errors leave the tolerance; '' when they do not.

    Args:
        errors: from `compare`.
        tolerance: the user's, or the default.
        own: the model's own precision.
        precision: the target's.
        dtypes: element type of each output, by name.
    """
    for error in errors:
        reason = error.mismatch or _outside(error, tolerance, own, precision, dtypes.get(error.name) or "float32")
        if reason:
            return f"output {error.name!r}: {reason}"
    return ""


def _outside(  # noqa: PLR0911 - one return a rule, in the order in which they apply
    error: OutputError, tolerance: Tolerance, own: Precision, precision: Precision, dtype: str
) -> str:
    if dtype not in FLOATS and not dtype.startswith("complex"):
        quantised = own == "i8" and dtype in _EIGHT_OR_SIXTEEN_BITS
        steps = tolerance.lsb if quantised else 0
        if error.lsb <= steps or (quantised and not _too_noisy(error, tolerance, tolerance.quantised_sqnr_db)):
            return ""
        return f"off by {error.lsb}, {steps} allowed" + (f" (SQNR {error.sqnr_db:.1f} dB)" if quantised else "")
    if tolerance.relative is not None:
        allowed = f"{tolerance.absolute:g} + {tolerance.relative:g} |x|"
        return f"an element is off by more than {allowed}" if error.excess > tolerance.absolute else ""
    coarse = precision != own or own in ("i8", "f16", "bf16")
    if dtype in _CODES and not math.isinf(error.range_fraction):
        steps = tolerance.lsb if coarse else 0
        if error.lsb <= steps or (precision != own and not _too_noisy(error, tolerance, tolerance.sqnr_db)):
            return ""
        return f"off by {error.lsb} values of {dtype}, {steps} allowed"
    if error.range_fraction <= max(tolerance.range_fraction, 2 * _EPSILON.get(dtype, 0.0)):
        return ""
    if own == "i8" and precision == "i8" and 0 < error.lsb <= tolerance.lsb:
        return ""
    # Rounding differs between kernels wherever arithmetic is coarse: there the noise counts, not one element.
    if coarse:
        needed_db = tolerance.quantised_sqnr_db if precision == own == "i8" else tolerance.sqnr_db
        if not math.isinf(error.range_fraction):
            return _too_noisy(error, tolerance, needed_db)
    if math.isinf(error.range_fraction):
        return "NaN or infinity where the reference has none, or the other way round"
    return f"off by {error.range_fraction:.2g} of its range, {tolerance.range_fraction:g} allowed"


def _too_noisy(error: OutputError, tolerance: Tolerance, needed_db: float) -> str:
    if error.sqnr_db < needed_db:
        return f"SQNR {error.sqnr_db:.1f} dB, {needed_db:g} needed"
    return "" if error.top1 or not tolerance.same_top1 else f"another top-1 (SQNR {error.sqnr_db:.1f} dB)"


def _mismatch(name: str, reason: str) -> OutputError:
    return OutputError(name, math.inf, 0, -math.inf, False, math.inf, reason)


def _distance(name: str, expected: Data, got: Data, step: float, relative: float) -> OutputError:
    pairs = list(_leaves(expected, got))
    bad = next((pair for pair in pairs if isinstance(pair, str)), None)
    if bad is not None:
        return _mismatch(name, bad)
    distances = [_array_distance(name, *pair, step, relative) for pair in pairs if not isinstance(pair, str)]
    return worst([(distance,) for distance in distances])[0] if distances else OutputError(name, 0.0, 0, math.inf, True)


def _leaves(expected: Any, got: Any) -> Iterator[tuple[Array, Array] | str]:
    """Pairs of arrays at the same place of two nested values, or what is wrong about the nesting."""
    if expected is None or got is None:
        if expected is not got:
            yield "is empty on one side only"
    elif isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or set(expected) != set(got):
            yield "has other keys"
        else:
            for key, item in expected.items():
                yield from _leaves(item, got[key])
    elif isinstance(expected, list | tuple):
        if not isinstance(got, list | tuple) or len(expected) != len(got):
            yield "is a sequence of another length"
        else:
            for item, other in zip(expected, got, strict=True):
                yield from _leaves(item, other)
    else:
        yield (np.asarray(expected), np.asarray(got))


def _array_distance(name: str, expected: Array, got: Array, step: float, relative: float) -> OutputError:
    dtype = dtype_of(expected)
    if dtype != dtype_of(got):
        return _mismatch(name, f"has dtype {dtype_of(got)}, not {dtype}")
    if expected.shape != got.shape:
        return _mismatch(name, f"has shape {got.shape}, not {expected.shape}")
    if expected.size == 0:
        return OutputError(name, 0.0, 0, math.inf, True)
    if dtype in ("string", "bool"):
        same = bool(np.array_equal(expected.astype(str), got.astype(str)))
        return OutputError(name, 0.0, 0, math.inf, True) if same else _mismatch(name, f"differs ({dtype})")
    if dtype in FLOATS or dtype.startswith("complex"):
        return _float_distance(name, expected, got, step, relative)
    return _integer_distance(name, expected, got)


def _integer_distance(name: str, expected: Array, got: Array) -> OutputError:
    wide = np.asarray(expected).astype(object if expected.dtype.itemsize == 8 else np.int64)
    difference = np.abs(wide - got.astype(wide.dtype))
    signal, noise = expected.astype(np.float64), difference.astype(np.float64)
    spread = float(signal.max() - signal.min()) or 1.0
    return OutputError(
        name,
        float(noise.max()) / spread,
        int(difference.max()),
        _sqnr_db(signal - signal.mean(), noise),  # an offset (zero point) is no signal
        _same_top1(signal, got.astype(np.float64)),
    )


def _float_distance(name: str, expected: Array, got: Array, step: float, relative: float) -> OutputError:
    wide: Any = np.complex128 if expected.dtype.kind == "c" else np.float64
    reference, answer = expected.astype(wide), got.astype(wide)
    finite = np.isfinite(reference)
    if not np.array_equal(reference[~finite], answer[~finite], equal_nan=True) or not np.isfinite(answer[finite]).all():
        return OutputError(name, math.inf, 0, -math.inf, False, math.inf)
    kept, difference = reference[finite], np.abs(answer[finite] - reference[finite])
    if not kept.size or not difference.any():
        return OutputError(name, 0.0, 0, math.inf, True)
    largest = float(difference.max())
    # A constant output has no range; its magnitude serves then (and 1 for zeros: an absolute error).
    magnitude = np.abs(kept)
    spread = float(kept.max() - kept.min()) if wide is np.float64 else float(magnitude.max())
    spread = spread or float(magnitude.max()) or 1.0
    lsb = math.ceil(largest / step - 1e-3) if step else 0
    if dtype_of(expected) in _CODES:
        lsb = _codes_apart(expected[finite], got[finite])
    top1 = _same_top1(reference, answer) if wide is np.float64 and finite.all() else True
    excess = max(0.0, float((difference - relative * magnitude).max()))
    return OutputError(name, largest / spread, lsb, _sqnr_db(kept, difference), top1, excess)


def _codes_apart(one: Array, other: Array) -> int:
    """How many values of a small float type lie between two arrays of it, at most; all finite."""
    every = np.arange(256, dtype=np.uint8).view(one.dtype).astype(np.float32)
    values = np.unique(every[np.isfinite(every)])
    places = [np.searchsorted(values, each.astype(np.float32)) for each in (one, other)]
    return int(np.abs(places[0] - places[1]).max())


def _sqnr_db(signal: Array, noise: Array) -> float:
    """10 log10(sum |signal|^2 / sum |noise|^2)."""
    noise_power = float((np.abs(noise) ** 2).sum())
    signal_power = float((np.abs(signal) ** 2).sum())
    if noise_power == 0:
        return math.inf
    return 10 * math.log10(signal_power / noise_power) if signal_power else -math.inf


def _same_top1(reference: Array, answer: Array) -> bool:
    """Same index of the maximum, for what looks like class scores: a vector, or one a row of a batch. A tie in the
    reference (within a millionth of its range) may go either way. Maps and boxes have no top-1.
    """
    if reference.ndim not in (1, 2) or reference.shape[-1] < 2:
        return True
    rows = reference.reshape(-1, reference.shape[-1])
    chosen = answer.reshape(rows.shape).argmax(axis=1)
    lost = rows.max(axis=1) - np.take_along_axis(rows, chosen[:, None], axis=1)[:, 0]
    return bool((lost <= 1e-6 * (rows.max() - rows.min())).all())


def output_steps(graph: Graph) -> dict[str, float]:
    """Real-valued size of one integer step of each float output that a DequantizeLinear makes, directly or through
    nodes that only move values or pick among them.
    """
    steps = {}
    for output in graph.outputs:
        name = output.name
        while name in graph.producers:
            node = graph.nodes[graph.producers[name]]
            if node.op == "DequantizeLinear" and node.inputs[1] in graph.constants:
                scale = graph.constants[node.inputs[1]].read()
                if scale.size == 1:
                    steps[output.name] = float(scale.reshape(-1)[0])
            if node.op not in _SAME_VALUES:
                break
            name = node.inputs[0]
    return steps


def draws_random_numbers(graph: Graph) -> bool:
    """Whether two right answers may differ, because a node draws random numbers."""
    return any(
        node.op in _RANDOM
        or (node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2] != "")
        or any(draws_random_numbers(body) for body in node.subgraphs)
        for node in graph.nodes
    )


def same_form(reference: Mapping[str, Data], answer: Mapping[str, Data]) -> tuple[OutputError, ...]:
    """As `compare`, but only shapes and dtypes count: for models that draw random numbers."""
    errors = compare(reference, answer, {})
    return tuple(
        OutputError(error.name, 0.0, 0, math.inf, True, 0.0, error.mismatch if error.mismatch[:3] != "dif" else "")
        for error in errors
    )
