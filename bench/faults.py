"""An open loop at half the capacity, with a fault a second: every request answered once, none wrong, and how soon.

    python -m bench.faults [--seconds 120] [--every 1.0]

Two stages of 5 ms on simulated devices. In turn an executor is killed, stopped, exits in the middle of a run, hangs in
a run, or sends garbage. Recovery is the time from the fault to the answer of a request that was under way then.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.executors import answer, pipeline_of, write_chain
from edgert.execution.executor import Executor, Hosted
from edgert.execution.limits import Limits
from edgert.execution.mail import open_values
from edgert.execution.staged import StagedPipeline

STAGES, STAGE_S = 2, 0.005
MARKS = {"exits in mid-run": 1e6, "hangs in a run": 2e6, "garbage reply": 3e6}
"""First number of a value that makes the executor which reads it misbehave."""
KINDS = ("SIGKILL", "SIGSTOP", *MARKS)


class Faulty(Executor):
    """Misbehaves when a request says so."""

    def _run(self, job: Any) -> None:
        mark = float(np.asarray(next(iter(open_values(self._mail, job.values).values()))).flat[0])
        if mark == MARKS["exits in mid-run"]:
            threading.Timer(0.002, os._exit, (3,)).start()
        if mark == MARKS["hangs in a run"]:
            segment = self._segments[job.work.segment]
            self._segments[job.work.segment] = replace(segment, runnable=_Hung())
        self._lies = mark == MARKS["garbage reply"]
        super()._run(job)

    def _hand_on(self, job: Any, outputs: Mapping[str, Any], run_s: float) -> None:
        if self._lies:
            outputs = {name: array.astype(np.int8) for name, array in outputs.items()}
        super()._hand_on(job, outputs, run_s)


class _Hung:
    ran_on: Mapping[str, int] = {}

    def run(self, inputs: Any) -> Any:
        threading.Event().wait()

    def close(self) -> None:
        """Nothing to release."""


class FaultyHosted(Hosted):
    """As `Hosted`."""

    kind = Faulty


@dataclass(slots=True)
class Sent:
    """A request of the open loop."""

    at_s: float
    inputs: Any
    answers: int = 0
    ended_s: float = 0.0
    wrong: str = ""
    degraded: bool = False


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_chain(Path(folder) / "chain.onnx", STAGES)
        pipeline = pipeline_of(
            model, [STAGE_S] * STAGES, Path(folder) / "parts",
            limits=Limits(most_backoff_s=0.2, first_run_s=1.0), service="bench.faults:FaultyHosted",
        )  # fmt: skip
        try:
            run(pipeline, options.seconds, options.every)
        finally:
            pipeline.close()


def run(pipeline: StagedPipeline, seconds: float, every_s: float) -> None:
    """The open loop."""
    for _ in range(20):
        pipeline.run({"x": np.zeros((1, 64), np.float32)})
    sent: list[Sent] = []
    faults: list[tuple[float, str]] = []
    kinds = itertools.cycle(KINDS)
    gap_s = 2 * STAGE_S
    started_s = next_s = time.perf_counter()
    next_fault_s = started_s + every_s
    rng = np.random.default_rng(1)
    while (now_s := time.perf_counter()) - started_s < seconds:
        mark = None
        if now_s >= next_fault_s and not pipeline.degraded:  # what is down cannot fail
            next_fault_s = now_s + every_s
            kind = next(kinds)
            mark = strike(pipeline, kind, len(faults) // len(KINDS) % STAGES)
            if kind not in MARKS or mark is not None:
                faults.append((time.perf_counter(), kind))
        inputs = rng.integers(0, 1000, (1, 64)).astype(np.float32)
        if mark is not None:
            inputs[:] = mark
        submit(pipeline, inputs, sent)
        next_s += gap_s
        time.sleep(max(0.0, next_s - time.perf_counter()))
    deadline_s = time.perf_counter() + 30
    while any(not each.answers for each in sent) and time.perf_counter() < deadline_s:
        time.sleep(0.05)
    report(sent, faults, pipeline)


def strike(pipeline: StagedPipeline, kind: str, stage: int) -> float | None:
    """Make the fault, or give the number that makes it."""
    if kind in MARKS:
        return MARKS[kind] - stage * (stage + 1) / 2
    pid = next(each.pid for each in pipeline.members() if each.place.device == f"npu:{stage}")
    if pid:
        os.kill(pid, getattr(signal, kind))
    return None


def submit(pipeline: StagedPipeline, inputs: Any, sent: list[Sent]) -> None:
    """One request; its answer is checked when it comes."""
    one = Sent(time.perf_counter(), inputs)
    sent.append(one)

    def ended(future: Any) -> None:
        one.answers += 1
        one.ended_s = time.perf_counter()
        error = future.exception()
        if error is not None:
            one.wrong = str(error)
            return
        made = future.result()
        one.degraded = bool(made.reason)
        if not np.array_equal(made.outputs["y"], answer(inputs, STAGES)):
            one.wrong = "wrong numbers"

    pipeline.submit({"x": inputs}, lambda made: made).add_done_callback(ended)


def report(sent: list[Sent], faults: list[tuple[float, str]], pipeline: StagedPipeline) -> None:
    """What was seen."""
    bad = Counter(each.wrong for each in sent if each.wrong)
    once = sum(each.answers == 1 for each in sent)
    write = sys.stdout.write
    write(f"{len(sent)} requests, {once} answered exactly once, {sum(bad.values())} wrong {dict(bad) or ''}\n")
    write(f"{sum(each.degraded for each in sent)} by a fallback\n")
    recoveries: dict[str, list[float]] = defaultdict(list)
    for at_s, kind in faults:
        recoveries[kind] += [each.ended_s - at_s for each in sent if each.at_s <= at_s + 0.002 and each.ended_s > at_s]
    counts = Counter(kind for _, kind in faults)
    limit_ms = 1e3 * pipeline.limits.hang_s(STAGE_S)
    for kind, times in recoveries.items():
        times.sort()
        p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
        write(
            f"{kind:<17} {counts[kind]:3} faults, {len(times):4} requests under way: p50 "
            f"{1e3 * statistics.median(times):6.1f} ms, p99 {1e3 * p99:6.1f} ms, worst {1e3 * times[-1]:6.1f} ms\n"
        )
    write(f"hang limit {limit_ms:.0f} ms\n")


if __name__ == "__main__":
    main()
