"""How fast a device's memory and arithmetic are, measured: a large copy, and a chain of large matrix products.

Rough on purpose, and bounded to about two seconds a device: the figures tell people and planners what a device is,
while the choice of a target rests on measurements of the model itself.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgert import devices
from edgert.devices import memory
from edgert.devices.backend import Source
from edgert.devices.remote import Remote
from edgert.errors import EdgertError, WrongNumbers
from edgert.graph import Value
from edgert.machine import Device, Reach
from edgert.profile import Precision, Target
from edgert.tensor import Array, DType

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parent
STEPS = 4
"""Products, or passes, in each model of cross/make_conformance.py."""
BUDGET_S = 2.0
"""For one device; what is under way when it ends is still counted."""
LIMIT_S = 20.0
"""For one answer of the child."""
NAMES: Mapping[Precision, DType] = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8"}

_COPY_BYTES = 32 << 20
"""A thread's source; as much again is its sink. More than its share of any last-level cache."""
_MAX_THREADS = 16
_ROUNDS = 6


def measured(device: Device, reaches: Sequence[Reach], budget_s: float = BUDGET_S) -> Device:
    """The same device with its bandwidth and peak; as it was when it is emulated or nothing drives it.

    Args:
        device: to measure.
        reaches: that gave the right numbers on it; others of the sequence are passed over.
        budget_s: no new measurement starts after it.
    """
    mine = [reach for reach in reaches if reach.device == device.id and reach.health == "ok"]
    if device.software or not mine:
        return device
    bandwidth = copy_bandwidth(device) if device.kind == "cpu" else None
    deadline_s = time.monotonic() + budget_s
    remote = Remote(f"measuring {device.id}")
    peak: dict[str, float] = {}
    try:
        # The plain way of each backend first, and every kind of model in turn: time may run out.
        for reach in sorted(mine, key=lambda reach: reach.variant):
            if device.kind != "cpu":
                passes = _rates(remote, device, reach, _model("copy", device), deadline_s)
                bandwidth = max([bandwidth or 0.0, *passes.values()]) or None
            for kind in ("f32", "i8"):
                for dtype, rate in _rates(remote, device, reach, _model(kind, device), deadline_s).items():
                    peak[dtype] = max(rate, peak.get(dtype, 0.0))
    finally:
        remote.close()
    return replace(device, bandwidth_bytes_per_s=bandwidth, peak_ops_per_s=peak)


def copy_bandwidth(device: Device) -> float:
    """Bytes read plus bytes written per second while every core of a CPU's cluster copies; the best of six rounds.

    At most a 32nd of the memory is touched, and an eighth of what is left of it, so that a small board is not brought
    to swap, nor a service with a limit to its end.
    """
    cores = device.cores[: min(_MAX_THREADS, int(device.attributes.get("physical_cores", len(device.cores))))]
    spare_bytes = device.memory_bytes // 32 or _COPY_BYTES
    if (left := memory.available()) is not None:
        spare_bytes = min(spare_bytes, left.size_bytes // 8)
    size = max(1, min(_COPY_BYTES, spare_bytes // (2 * len(cores))))
    buffers: list[tuple[Array, Array]] = []

    def prepare(index: int) -> tuple[Array, Array]:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {cores[index]})  # of this thread alone
        return np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)  # written, so that their pages are really there

    def copy(index: int) -> None:
        np.copyto(buffers[index][1], buffers[index][0])  # without the interpreter lock

    with ExitStack() as stack:
        # One pool a core: a shared one would let a thread take two turns.
        pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in cores]
        buffers += [future.result() for future in [pool.submit(prepare, index) for index, pool in enumerate(pools)]]
        best_s = float("inf")
        for _ in range(_ROUNDS):
            started_s = time.perf_counter()
            for future in [pool.submit(copy, index) for index, pool in enumerate(pools)]:
                future.result()
            best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * size * len(cores) / best_s


@dataclass(frozen=True, slots=True)
class _Model:
    source: Source
    size: int
    """Side of its matrices."""
    work: float
    """Of one run: operations, or bytes moved."""


def _model(kind: str, device: Device) -> _Model:
    """'f32' and 'i8' are products, 'copy' is passes over memory. A GPU on a bus needs a larger one to be busy."""
    size = 4096 if device.kind == "gpu" and "pci" in device.attributes else 1024
    column, row = (size, 1), (1, size)
    source = Source(
        FOLDER / f"peak_{kind}_{size}.onnx",
        "onnx",
        (Value("x", "float32", column),),
        (Value("y", "float32", column if kind == "copy" else row),),
        "i8" if kind == "i8" else "f32",
    )
    # A product is size^3 multiply-adds; a pass reads and writes size^2 floats.
    return _Model(source, size, STEPS * (8.0 * size**2 if kind == "copy" else 2.0 * size**3))


def _rates(remote: Remote, device: Device, reach: Reach, model: _Model, deadline_s: float) -> dict[str, float]:
    """Element type -> the model's work per second, at each precision that a backend can be told to use.

    On a CPU all physical cores work, and a backend without threads (an evaluator) is passed over.
    """
    rates: dict[str, float] = {}
    threads = (int(device.attributes.get("physical_cores", "1")),)
    for target in devices.backend(reach.backend).targets(model.source, device, reach.variant, threads):
        if target.precision not in NAMES or (device.kind == "cpu" and not target.threads):
            continue
        if time.monotonic() > deadline_s:
            break
        try:
            rates[NAMES[target.precision]] = model.work / _seconds(remote, model, target, device)
        except EdgertError as error:  # it refuses this model, or died of it: then another gives the figure
            log.debug("no peak from %s: %s", target, error)
    return rates


def _seconds(remote: Remote, model: _Model, target: Target, device: Device) -> float:
    """The fastest of a few runs; an error when the answer is not 1/size, as it must be."""
    runnable = remote.prepare(model.source, target, device, timeout_s=LIMIT_S)
    remote.hold("peak", {"x": np.full((model.size, 1), 1 / model.size, np.float32)})
    outputs, _ = runnable.run_held("peak", timeout_s=LIMIT_S)
    answer = outputs["y"]
    if not isinstance(answer, np.ndarray) or not np.allclose(answer * model.size, 1, atol=0.05):
        raise WrongNumbers(f"{target}: the matrix product's answer is wrong.", "It is not counted.")
    seconds = min(runnable.time("peak", 5, at_most_s=0.1, timeout_s=LIMIT_S))
    runnable.close()
    return seconds
