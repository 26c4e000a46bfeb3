"""One network on two cores in every way there is, and whether the planner's way is the best of them.

    python -m bench.two_executors MODEL.onnx [--rounds 10] [--seconds 0.7]

Throughput with several requests under way: ONNX Runtime with two threads, two instances of one thread, the same two in
executors of one core each, a half of the network in each of two executors, and what `edgert.load(MODEL,
objective="throughput")` chose. All ways are visited in random order in every round; a figure is a ratio to the better
of the first two in the same round, so that a loaded machine slows both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import edgert
from edgert import samples
from edgert.devices import backend
from edgert.devices.backend import Source
from edgert.devices.probe import probe
from edgert.execution.fleet import Fleet
from edgert.execution.pipeline import Pipeline
from edgert.execution.segments import parts_of
from edgert.execution.staging import stage
from edgert.formats import ModelFile, open_model
from edgert.graph import Graph
from edgert.machine import Machine
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import Target
from edgert.tensor import Data

_IN_FLIGHT = 6
_PROBES = 6
"""Cuts whose halves are timed, to find the even one."""
THREADS, INSTANCES, REPLICAS, HALVES, CHOSEN = (
    "ONNX Runtime, 2 threads", "two instances of 1 thread", "two executors, a network each",
    "two executors, a half each", "what edgert.load chose",
)  # fmt: skip
Submit = Callable[[], "Future[Any]"]


def main() -> None:
    """Measure and print one line a way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each way in each round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        ways = all_ways(options.model.absolute(), Path(folder), opened)
        rates = measure(ways, options.rounds, options.seconds)
    report(rates)


def all_ways(path: Path, folder: Path, opened: ExitStack) -> dict[str, Submit]:
    """Every way, ready to take requests; closed with `opened`."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    file, machine = open_model(path), probe()
    inputs = samples.synthesise(file.graph)[0]
    source = Source(path, file.format, file.graph.inputs, file.graph.outputs, file.precision)
    one = Target("onnxruntime", "cpu:0", "f32", 1)
    two = [Instance(0, (cores[0],)), Instance(0, (cores[-1],))]
    halves = halved(file, source, machine, one, folder)
    plans = {
        THREADS: plan_of(file, machine, [Segment(dataclasses.replace(one, threads=2))], [Instance(0)]),
        INSTANCES: plan_of(file, machine, [Segment(one)], two),
        REPLICAS: plan_of(file, machine, [Segment(one)], two),
        HALVES: plan_of(file, machine, halves, [Instance(0, (cores[0],)), Instance(1, (cores[-1],))]),
    }
    ways: dict[str, Submit] = {}
    for name, plan in plans.items():
        if name in (THREADS, INSTANCES):
            ways[name] = submitter(Pipeline(plan, source, machine, folder), inputs, opened)
        else:
            pipeline = stage(
                plan, source, machine, folder, parts=None, limits=None, fleet=Fleet(), drifted=lambda _drift: None
            )
            ways[name] = submitter(pipeline, inputs, opened)
    model = opened.enter_context(edgert.load(path, objective="throughput", cache_dir=folder / "cache"))
    plan = model.plan
    sys.stdout.write(f"edgert.load chose {len(plan.instances)} x {' and '.join(map(str, plan.targets))}\n")
    ways[CHOSEN] = lambda: model.submit(inputs)
    return ways


def submitter(pipeline: Any, inputs: Mapping[str, Data], opened: ExitStack) -> Submit:
    """Sends one request to a pipeline."""
    opened.callback(pipeline.close)
    return lambda: pipeline.submit(inputs, lambda made: made)  # type: ignore[no-any-return]


def plan_of(file: ModelFile, machine: Machine, segments: list[Segment], instances: list[Instance]) -> Plan:
    """A plan by hand."""
    graph = file.graph
    crossing = {name for segment in segments for name in (*segment.inputs, *segment.outputs)}
    return Plan(
        file.digest, machine.fingerprint, {}, "throughput", "own", file.format, file.precision, graph.inputs,
        graph.outputs, tuple(segments), tuple(instances), fallbacks=(Target("onnxruntime", "cpu:0", "f32", 1),),
        verification=Verification("onnx"), values=tuple(graph.values[name] for name in sorted(crossing)),
    )  # fmt: skip


def halved(file: ModelFile, source: Source, machine: Machine, target: Target, folder: Path) -> list[Segment]:
    """Two segments of about equal time: bisection over the cuts that one value crosses, by measured time."""
    graph = file.graph
    cuts = single_cuts(graph)
    low, high = 0, len(cuts) - 1
    best: tuple[float, list[Segment]] = (float("inf"), [])
    for _ in range(_PROBES):
        if low > high:
            break
        middle = (low + high) // 2
        segments = cut_at(graph, cuts[middle], target)
        plan = plan_of(file, machine, segments, [Instance(0), Instance(1)])
        first_s, second_s = (time_of(plan, number, source, machine, folder / f"cut{middle}") for number in (0, 1))
        best = min(best, (max(first_s, second_s), segments), key=lambda item: item[0])
        low, high = (middle + 1, high) if first_s < second_s else (low, middle - 1)
    return best[1]


def single_cuts(graph: Graph) -> list[int]:
    """Numbers of nodes after which one value alone is still needed."""
    cuts = []
    outputs = {value.name for value in graph.outputs}
    for end in range(1, len(graph.nodes)):
        made = {name for node in graph.nodes[:end] for name in node.writes}
        needed = {name for node in graph.nodes[end:] for name in node.reads} | outputs
        given = {value.name for value in graph.inputs}
        if len(made & needed) == 1 and not given & needed:
            cuts.append(end)
    return cuts


def cut_at(graph: Graph, end: int, target: Target) -> list[Segment]:
    """Two segments: the nodes before `end`, and the rest."""
    made = {name for node in graph.nodes[:end] for name in node.writes}
    crossing = tuple(made & {name for node in graph.nodes[end:] for name in node.reads})
    inputs, outputs = (tuple(value.name for value in ends) for ends in (graph.inputs, graph.outputs))
    names = [node.name for node in graph.nodes]
    return [
        Segment(target, tuple(names[:end]), inputs, crossing),
        Segment(target, tuple(names[end:]), crossing, outputs),
    ]


def time_of(plan: Plan, number: int, source: Source, machine: Machine, folder: Path) -> float:
    """Seconds of a run of one segment in this process: the least of several."""
    segment = plan.segments[number]
    values = {value.name: value for value in (*plan.inputs, *plan.values, *plan.outputs)}
    part = parts_of(plan, source, folder).source(segment, values)
    runnable = backend(segment.target.backend).prepare(
        part, segment.target, machine.device(segment.target.device), None
    )
    try:
        inputs = samples.synthesise(open_model(part.path).graph)[0]
        times_s = []
        for _ in range(8):
            started_s = time.perf_counter()
            runnable.run(inputs)
            times_s.append(time.perf_counter() - started_s)
        return min(times_s)
    finally:
        runnable.close()


def measure(ways: Mapping[str, Submit], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Requests a second of each way in each round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for name in order:
        rate(ways[name], seconds / 2)  # the first runs allocate
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            rates[name].append(rate(ways[name], seconds))
    return rates


def rate(submit: Submit, seconds: float) -> float:
    """Answers a second with several requests under way."""
    flying = deque(submit() for _ in range(_IN_FLIGHT))
    count, started_s = 0, time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        flying.popleft().result()
        flying.append(submit())
        count += 1
    ended_s = time.perf_counter()
    for future in flying:
        future.result()
    return count / (ended_s - started_s)


def report(rates: Mapping[str, list[float]]) -> None:
    """One line a way: median rate, and its ratio to the better of the first two with the middle half of the rounds."""
    better = [max(pair) for pair in zip(rates[THREADS], rates[INSTANCES], strict=True)]
    for name, own in rates.items():
        ratios = sorted(one / best for one, best in zip(own, better, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        sys.stdout.write(
            f"{name:30} {statistics.median(own):8.1f} requests/s  {statistics.median(ratios):.3f} of the better of the "
            f"first two ({low:.3f} to {high:.3f})\n"
        )


if __name__ == "__main__":
    main()
