"""Throughput of a pipeline of equal stages, as a share of the ideal: as many times one device that does it all.

    python -m bench.stages [--stages 2 4] [--stage-ms 5] [--rounds 7] [--seconds 2]

Devices are simulated in real time: a run waits as long as it is declared to take. Both sides of a ratio are measured
in turn, so that a loaded machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from bench.executors import answer, pipeline_of, write_chain
from edgert.execution.staged import StagedPipeline

_IN_FLIGHT = 32


def main() -> None:
    """Measure and print one line a number of stages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--stage-ms", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for stages in options.stages:
            shares = measure(Path(folder), stages, options.stage_ms / 1e3, options.rounds, options.seconds)
            low, middle, high = min(shares), statistics.median(shares), max(shares)
            text = f"{stages} stages of {options.stage_ms:g} ms: {middle:.3f} of the ideal ({low:.3f} to {high:.3f})"
            sys.stdout.write(f"{text}\n")


def measure(folder: Path, stages: int, stage_s: float, rounds: int, seconds: float) -> list[float]:
    """Share of the ideal in each round."""
    model = write_chain(folder / f"chain{stages}.onnx", stages)
    one = pipeline_of(model, [stages * stage_s], folder / "one")
    split = pipeline_of(model, [stage_s] * stages, folder / f"split{stages}")
    try:
        shares = []
        for _ in range(rounds):
            alone = rate(one, stages, seconds)
            shares.append(rate(split, stages, seconds) / (stages * alone))
        return shares
    finally:
        one.close()
        split.close()


def rate(pipeline: StagedPipeline, stages: int, seconds: float) -> float:
    """Answers a second with enough requests under way; every answer is checked."""
    inputs = np.ones((1, 64), np.float32)
    expected = answer(inputs, stages)
    flying: deque[Future[Any]] = deque()
    count, started_s = 0, time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        while len(flying) < _IN_FLIGHT:
            flying.append(pipeline.submit({"x": inputs}, lambda made: made))
        made = flying.popleft().result()
        assert np.array_equal(made.outputs["y"], expected), made
        assert not made.reason, made.reason
        count += 1
    ended_s = time.perf_counter()
    for future in flying:
        future.result()
    return count / (ended_s - started_s)


if __name__ == "__main__":
    main()
