"""Whether a backend counts right on a device: a small network with known answers, run where a driver may crash or hang.

The models and their answers come from cross/make_conformance.py, which computes the answers with numpy alone. Float32
must be within 1e-4 of the output's range, so that a device that computes in half precision without saying so is found
out; int8 within two steps, for rounding may differ by one in each of the two layers. Several inputs follow each other,
and the first comes again at the end: a device that repeats a stale answer is found out too.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgert import devices
from edgert.devices.backend import Source
from edgert.devices.remote import Remote
from edgert.errors import ChildDied, ChildTimeout, EdgertError, PrepareRefused
from edgert.graph import Format, Quantization, Value
from edgert.machine import Device, Reach
from edgert.profile import Precision, Target
from edgert.tensor import Array, Data, dtype_of

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parent
FLOAT_LIMIT = 1e-4
"""Of the output's range."""
STEP_LIMIT = 2
LIMIT_S = 60.0
"""For one answer of a child: a GPU's first compilation on a small board takes tens of seconds."""

CLOTHES: tuple[tuple[Format, Precision], ...] = (("onnx", "f32"), ("onnx", "i8"), ("tflite", "f32"), ("tflite", "i8"))


@dataclass(frozen=True, slots=True)
class Case:
    """One model with what it must answer."""

    source: Source
    inputs: tuple[Array, ...]
    """Of its only input 'x', one a run."""
    outputs: tuple[Array, ...]
    """Of its only output 'y'."""
    limit: float
    """Largest difference that is right, in units of the output's own values."""

    @property
    def name(self) -> str:
        return f"{self.source.format} {self.source.precision}"


def check(remote: Remote, reach: Reach, device: Device, limit_s: float = LIMIT_S) -> Reach:
    """The same reach with the verdict of its conformance run.

    ok: every model that it takes gave the right numbers, and it takes at least one. wrong: some model gave others.
    failed: it refused all, crashed, hung beyond `limit_s`, or is not usable; the detail says which.

    Args:
        remote: the child to run in; it may die of it.
        reach: 'untested'; any other comes back as it is.
        device: that it reaches.
        limit_s: for one answer of the child.
    """
    if reach.health != "untested":
        return reach
    reasons: list[str] = []
    right = 0
    for case in cases():
        try:
            target = _target(case.source, reach, device)
            if target is None:
                continue
            difference = _run(remote, case, target, device, limit_s)
        except PrepareRefused as error:
            reasons.append(f"{case.name}: {error.message}")
            continue
        except EdgertError as error:
            return replace(reach, health="failed", detail=f"{case.name}: {_words(error)}")
        if difference:
            return replace(reach, health="wrong", detail=f"{case.name}: {difference}")
        right += 1
    if right:
        return replace(reach, health="ok")
    return replace(reach, health="failed", detail="; ".join(reasons) or "it offers no way to run a model there")


@functools.cache
def cases() -> tuple[Case, ...]:
    """The network in its four clothes."""
    with np.load(FOLDER / "conformance.npz", allow_pickle=False) as data:
        return tuple(_case(data, kind, precision) for kind, precision in CLOTHES)


def _case(data: Mapping[str, Array], kind: Format, precision: Precision) -> Case:
    steps, wanted = data["inputs"], data[f"outputs_{precision}"]
    in_scale, in_zero = (float(number) for number in data["input_quantization"])
    out_scale, out_zero = (float(number) for number in data["output_quantization"])
    limit = FLOAT_LIMIT * float(np.ptp(data["outputs_f32"])) if precision == "f32" else STEP_LIMIT * out_scale * 1.01
    given: Array = ((steps.astype(np.float32) - np.float32(in_zero)) * np.float32(in_scale)).astype(np.float32)
    quantised: tuple[Quantization | None, Quantization | None] = (None, None)
    if kind == "tflite" and precision == "i8":  # TFLite's int8 is QDQ's uint8 less 128
        given, wanted = (steps.astype(np.int16) - 128).astype(np.int8), (wanted.astype(np.int16) - 128).astype(np.int8)
        quantised = _steps(in_scale, in_zero - 128), _steps(out_scale, out_zero - 128)
        limit = STEP_LIMIT
    elif precision == "i8":
        wanted = ((wanted.astype(np.float32) - out_zero) * out_scale).astype(np.float32)
    if kind == "tflite":
        given = given.transpose(0, 2, 3, 1)
    inputs = tuple(np.ascontiguousarray(each[None]) for each in given)
    outputs = tuple(each[None] for each in wanted)
    source = Source(
        FOLDER / f"conformance_{precision}.{kind}",
        kind,
        (Value("x", dtype_of(inputs[0]), inputs[0].shape, quantization=quantised[0]),),
        (Value("y", dtype_of(outputs[0]), outputs[0].shape, quantization=quantised[1]),),
        precision,
    )
    return Case(source, (*inputs, inputs[0]), (*outputs, outputs[0]), limit)


def _steps(scale: float, zero: float) -> Quantization:
    return Quantization((scale,), (int(zero),))


def _target(source: Source, reach: Reach, device: Device) -> Target | None:
    """The target for a model at its own precision, with the fewest threads that its variant takes; None when the
    backend has none for its format.
    """
    offered = devices.backend(reach.backend).targets(source, device, reach.variant, (1, 2))
    return next((target for target in offered if target.precision == source.precision), None)


def _run(remote: Remote, case: Case, target: Target, device: Device, limit_s: float) -> str:
    """How the answers differ from the right ones; '' when they do not."""
    runnable = remote.prepare(case.source, target, device, timeout_s=limit_s)
    runnable.timeout_s = limit_s
    elsewhere = [where for where in runnable.ran_on if where != device.id]
    if elsewhere:
        return f"asked for {device.id}, ran on {', '.join(elsewhere)}"
    for given, expected in zip(case.inputs, case.outputs, strict=True):
        if reason := _difference(runnable.run({"x": given}).get("y"), expected, case.limit):
            return reason
    runnable.close()
    return ""


def _difference(answer: Data, expected: Array, limit: float) -> str:
    if not isinstance(answer, np.ndarray):
        return f"answered {type(answer).__name__}, a tensor was expected"
    if answer.shape != expected.shape or answer.dtype != expected.dtype:
        return f"answered {answer.dtype} {answer.shape}, expected {expected.dtype} {expected.shape}"
    worst = float(np.max(np.abs(answer.astype(np.float64) - expected)))
    if worst <= limit:  # false also for NaN
        return ""
    return f"numbers are off by {worst:.3g}, at most {limit:.3g} is right"


def _words(error: EdgertError) -> str:
    """What a child's end, or an error that it sent, says to people."""
    if isinstance(error, ChildTimeout):
        return f"hung: no answer within {error.timeout_s:g} s"
    if isinstance(error, ChildDied):
        return f"crashed: {error.message}"
    return f"{error.message} {error.remedy}".rstrip()
