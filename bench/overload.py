"""Ten times more requests than can be answered: refused at once, accepted ones in time, memory bounded.

    python -m bench.overload [--seconds 60] [--factor 10]

Two stages of 5 ms on simulated devices, so 200 requests a second at most; each comes with a deadline of 250 ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from bench.executors import answer, pipeline_of, resident_bytes, write_chain
from edgert.errors import DeadlineExceeded, Overloaded

STAGES, STAGE_S, DEADLINE_S = 2, 0.005, 0.25


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_chain(Path(folder) / "chain.onnx", STAGES)
        pipeline = pipeline_of(model, [STAGE_S] * STAGES, Path(folder) / "parts")
        try:
            run(pipeline, options.seconds, options.factor / STAGE_S)
        finally:
            pipeline.close()


def run(pipeline: Any, seconds: float, per_s: float) -> None:
    """The open loop."""
    inputs = np.ones((1, 64), np.float32)
    expected = answer(inputs, STAGES)
    flood(pipeline, inputs, expected, 2.0, per_s)  # what is allocated once is allocated
    before = [resident_bytes(), *(resident_bytes(each.pid) for each in pipeline.members())]
    refusals, latencies, late, sent = flood(pipeline, inputs, expected, seconds, per_s)
    after = [resident_bytes(), *(resident_bytes(each.pid) for each in pipeline.members())]
    write = sys.stdout.write
    write(
        f"{sent} requests in {seconds:.0f} s: {len(refusals)} refused, {len(latencies)} answered, {late} accepted and "
        f"then past the deadline of {1e3 * DEADLINE_S:.0f} ms\n"
    )
    write(f"refused after {_times(refusals)}\naccepted, answered after {_times(latencies)}\n")
    growth = ", ".join(f"{end / start:.3f}" for start, end in zip(before, after, strict=True))
    write(f"resident memory after / before, this process and each executor: {growth}\n")


def flood(
    pipeline: Any, inputs: Any, expected: Any, seconds: float, per_s: float
) -> tuple[list[float], list[float], int, int]:
    """Times to refusals and to answers, how many were late, and how many were sent."""
    refusals: list[float] = []
    flying: deque[tuple[float, Any]] = deque()
    latencies: list[float] = []
    late = 0

    def land() -> None:
        nonlocal late
        at_s, future = flying.popleft()
        try:
            ended_s, made = future.result(30)
        except DeadlineExceeded:
            late += 1
            return
        assert np.array_equal(made.outputs["y"], expected), made
        latencies.append(ended_s - at_s)

    started_s = time.perf_counter()
    sent = 0
    while (elapsed_s := time.perf_counter() - started_s) < seconds:
        while sent < elapsed_s * per_s:
            at_s = time.perf_counter()
            sent += 1
            try:
                future = pipeline.submit({"x": inputs}, lambda made: (time.perf_counter(), made), deadline_s=DEADLINE_S)
                flying.append((at_s, future))
            except Overloaded:
                refusals.append(time.perf_counter() - at_s)
        while flying and flying[0][1].done():  # the bench must not be what grows
            land()
        time.sleep(0.001)
    while flying:
        land()
    return refusals, latencies, late, sent


def _times(seconds: list[float]) -> str:
    ordered = sorted(seconds) or [0.0]
    p99 = ordered[int(0.99 * (len(ordered) - 1))]
    middle = statistics.median(ordered)
    return f"p50 {1e3 * middle:.2f} ms, p99 {1e3 * p99:.2f} ms, worst {1e3 * ordered[-1]:.2f} ms"


if __name__ == "__main__":
    main()
