"""An open loop at half the capacity, with a fault a second: every request answered once, none wrong, and how soon.

    python -m bench.faults [--each 20] [--seconds 120] [--every 1.0]

Two stages of 5 ms on simulated devices. In turn an executor is killed, stopped, exits in the middle of a run, hangs in
a run, or sends garbage, first of one stage, then of the other. It goes on for so many seconds, and until there were so
many faults of each kind: the next comes when a second has passed and what failed is back, since what is down cannot
fail. A request was hit when it was under way at the fault; its recovery is the time from the fault to its answer.
The command fails when a request was not answered exactly once, or wrongly, or a recovery missed its mark.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.executors import answer, pipeline_of, write_chain
from edgert.errors import Overloaded
from edgert.execution.executor import Executor, Hosted
from edgert.execution.limits import Limits
from edgert.execution.mail import open_values
from edgert.execution.staged import StagedPipeline

STAGES, STAGE_S = 2, 0.005
MARKS = {"exits in mid-run": 1e6, "hangs in a run": 2e6, "garbage reply": 3e6}
"""First number of a value that makes the executor which reads it misbehave."""
KINDS = ("SIGKILL", "SIGSTOP", *MARKS)
HANGS = ("SIGSTOP", "hangs in a run")
"""Noticed by a limit of time, the others at once."""
EXIT_S, BEYOND_HANG_S = 0.5, 0.1
"""What the 99th percentile of a recovery may take: from exits, and beyond the limit for hangs."""
STOOD_STILL_S = 0.5
"""A loop that is so late does not make up for it: nobody sends a second's requests at once."""


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


@dataclass(frozen=True, slots=True)
class Fault:
    """One that was made."""

    kind: str
    at_s: float


def main() -> int:
    """Run and report; 1 when a mark was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--each", type=int, default=20)
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
            sent, faults = run(pipeline, options.each, options.seconds, options.every)
        finally:
            pipeline.close()
    return report(sent, faults)


def run(pipeline: StagedPipeline, each: int, seconds: float, every_s: float) -> tuple[list[Sent], list[Fault]]:
    """The open loop: every request and every fault."""
    while pipeline.run({"x": np.zeros((1, 64), np.float32)}).reason:
        pass
    sent: list[Sent] = []
    faults: list[Fault] = []
    gap_s, stood_still_s = 2 * STAGE_S, 0.0
    started_s = next_s = time.perf_counter()
    next_fault_s = started_s + every_s
    rng = np.random.default_rng(1)
    while (now_s := time.perf_counter()) - started_s < seconds or len(faults) < each * len(KINDS):
        mark = None
        if now_s >= next_fault_s and not pipeline.degraded:
            next_fault_s = now_s + every_s
            kind, stage = KINDS[len(faults) % len(KINDS)], len(faults) // len(KINDS) % STAGES
            mark = strike(pipeline, kind, stage)
            faults.append(Fault(kind, time.perf_counter()))
        inputs = rng.integers(0, 1000, (1, 64)).astype(np.float32)
        if mark is not None:
            inputs[:] = mark
        submit(pipeline, inputs, sent)
        next_s += gap_s
        now_s = time.perf_counter()
        if now_s - next_s > STOOD_STILL_S:
            stood_still_s += now_s - next_s
            next_s = now_s
        time.sleep(max(0.0, next_s - now_s))
    if stood_still_s:
        sys.stdout.write(f"the machine stood still for {stood_still_s:.0f} s: recoveries then mean nothing\n")
    deadline_s = time.perf_counter() + 30
    while any(not one.answers for one in sent) and time.perf_counter() < deadline_s:
        time.sleep(0.05)
    return sent, faults


def strike(pipeline: StagedPipeline, kind: str, stage: int) -> float | None:
    """Make the fault, or give the number that makes it."""
    if kind in MARKS:
        return MARKS[kind] - stage * (stage + 1) / 2
    os.kill(next(each.pid for each in pipeline.members() if each.place.device == f"npu:{stage}"), getattr(signal, kind))
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

    try:
        pipeline.submit({"x": inputs}, lambda made: made).add_done_callback(ended)
    except Overloaded:  # at once, by a machine that is too busy for half of its capacity
        one.answers, one.ended_s, one.wrong = 1, time.perf_counter(), "refused as Overloaded"


def report(sent: list[Sent], faults: list[Fault]) -> int:
    """What was seen; 1 when a mark was missed."""
    write = sys.stdout.write
    took_s = sent[-1].at_s - sent[0].at_s
    write(f"{len(sent)} requests and {len(faults)} faults in {took_s:.0f} s\n")
    hang_s = Limits().hang_s(STAGE_S)
    kept = True
    for kind in KINDS:
        times = recoveries(sent, [each.at_s for each in faults if each.kind == kind])
        p99_s = times[min(len(times) - 1, int(0.99 * len(times)))]
        mark_s = hang_s + BEYOND_HANG_S if kind in HANGS else EXIT_S
        kept = kept and p99_s <= mark_s
        count = sum(each.kind == kind for each in faults)
        write(
            f"{kind:<17} {count:3} faults, {len(times):4} requests hit: p50 {1e3 * statistics.median(times):6.1f} ms, "
            f"p99 {1e3 * p99_s:6.1f} ms ({'within' if p99_s <= mark_s else 'BEYOND'} {1e3 * mark_s:.0f} ms), "
            f"worst {1e3 * times[-1]:6.1f} ms\n"
        )
    once = sum(each.answers == 1 for each in sent)
    wrong = Counter(each.wrong for each in sent if each.wrong)
    fallback = sum(each.degraded for each in sent)
    write(
        f"answered exactly once: {once} of {len(sent)}, {fallback} of them by a fallback; wrong or refused: "
        f"{sum(wrong.values())} {dict(wrong) or ''}\n"
    )
    return 0 if kept and once == len(sent) and not wrong else 1


def recoveries(sent: list[Sent], faults_s: list[float]) -> list[float]:
    """Of every request that was under way at one of these faults, sorted."""
    return sorted(
        each.ended_s - at_s for at_s in faults_s for each in sent if each.at_s <= at_s + 0.002 and each.ended_s > at_s
    ) or [0.0]


if __name__ == "__main__":
    raise SystemExit(main())
