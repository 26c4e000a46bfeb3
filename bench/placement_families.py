"""Placement problems that nobody has solved before: what 2 s give against 60.

    python -m bench.placement_families [--families layered ...] [--networks bert6_operators ... | all]
      [--rules latency throughput contiguous] [--sizes 100 300] [--seeds 2] [--short 2] [--long 60] [--cpu] [--json]

Graphs are random (layered, series-parallel, like transformers), or those of networks (`bench.placement_models`). With
`--cpu` the short time is that of the solving thread alone, as on a machine without other work. For each problem: the
answer after `--short` seconds, the best of that and the answer after `--long`, the proved bound, and how far the short
answer lies above the best; at most 15% is asked. Problems are in the form of the published placement files. The
random ones have costs drawn log-normally, accelerators that are 2 to 20 times faster per node, and memory that they
have to share.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from bench.placement_models import NETWORKS, Pass, network_file
from edgert.partitioner.files import problem_from_json
from edgert.partitioner.problem import Problem
from edgert.partitioner.solve import solve

Edges: TypeAlias = "list[tuple[int, int]]"
Rules: TypeAlias = 'Literal["latency", "throughput", "contiguous"]'


def layered(size: int, chance: random.Random) -> Edges:
    """Layers of 1 to 8 nodes; each node reads one to three of the two layers before."""
    layers: list[list[int]] = [[0]]
    count = 1
    while count < size:
        width = min(chance.randint(1, 8), size - count)
        layers.append(list(range(count, count + width)))
        count += width
    edges = []
    for number, layer in enumerate(layers[1:], 1):
        above = layers[number - 1] + (layers[number - 2] if number > 1 else [])
        for node in layer:
            edges += [(parent, node) for parent in chance.sample(above, min(len(above), chance.randint(1, 3)))]
        read = {parent for parent, _ in edges}
        edges += [(parent, chance.choice(layer)) for parent in layers[number - 1] if parent not in read]
    return sorted(set(edges))


def series_parallel(size: int, chance: random.Random) -> Edges:
    """An edge that is replaced, again and again, by two in series or by two ways side by side."""
    edges, count = [(0, 1)], 2
    while count < size:
        source, sink = edges.pop(chance.randrange(len(edges)))
        if chance.random() < 0.6:
            edges += [(source, count), (count, sink)]
            count += 1
        else:
            edges += [(source, count), (count, sink), (source, count + 1), (count + 1, sink)]
            count += 2
    return _in_order(edges, count)


def transformer(size: int, chance: random.Random) -> Edges:
    """Layers of attention with 2 to 8 heads and a feed-forward part, each with a skip connection."""
    edges: Edges = []
    last = 0
    count = 1
    while count < size:
        heads, start = chance.randint(2, 8), last
        joined = count + 4 * heads
        for head in range(count, joined, 4):  # query, key, value, product
            edges += [(start, head), (start, head + 1), (start, head + 2)]
            edges += [(head, head + 3), (head + 1, head + 3), (head + 2, head + 3), (head + 3, joined)]
        edges += [
            (start, joined),
            (joined, joined + 1),
            (joined + 1, joined + 2),
            (joined + 2, joined + 3),
            (joined, joined + 3),
        ]
        last, count = joined + 3, joined + 4
    return edges


def _in_order(edges: Edges, count: int) -> Edges:
    """The same graph with nodes numbered along the edges."""
    waits = [0] * count
    after: list[list[int]] = [[] for _ in range(count)]
    for source, sink in edges:
        waits[sink] += 1
        after[source].append(sink)
    ready = [node for node, waiting in enumerate(waits) if not waiting]
    number: dict[int, int] = {}
    while ready:
        node = ready.pop()
        number[node] = len(number)
        for sink in after[node]:
            waits[sink] -= 1
            if not waits[sink]:
                ready.append(sink)
    return sorted({(number[source], number[sink]) for source, sink in edges})


FAMILIES: Mapping[str, Callable[[int, random.Random], Edges]] = {
    "layered": layered,
    "series-parallel": series_parallel,
    "transformer": transformer,
}


def problem_file(family: str, size: int, seed: int) -> dict[str, Any]:
    """A problem in the form of the published files."""
    chance = random.Random(f"{family} {size} {seed}")
    edges = FAMILIES[family](size, chance)
    count = 1 + max(max(edge) for edge in edges)
    nodes = []
    for node in range(count):
        slow = chance.lognormvariate(1.0, 1.0)
        nodes.append({
            "id": node, "cpuLatency": slow, "fpgaLatency": slow / chance.uniform(2, 20),
            "size": chance.lognormvariate(0, 1), "supportedOnFpga": int(chance.random() > 0.05),
        })  # fmt: skip
    moved = [chance.lognormvariate(-1.0, 1.0) for _ in range(count)]
    accelerators = chance.randint(2, 6)
    room = sum(node["size"] for node in nodes) * chance.uniform(1.0, 1.6) / accelerators
    return {
        "nodes": nodes, "edges": [{"sourceId": a, "destId": b, "cost": moved[a]} for a, b in edges],
        "maxFPGAs": accelerators, "maxCPUs": 1, "maxSizePerFPGA": room,
    }  # fmt: skip


def network_problem_file(name: str, seed: int) -> dict[str, Any]:
    """A network on 2 to 8 accelerators with little or much memory, as a problem in the form of the published files."""
    chance = random.Random(f"{name} {seed}")
    kinds: tuple[Pass, ...] = ("forward", "mirrored", "training")
    return network_file(
        name, chance.randint(2, 8), chance.choice((0.6, 1.1, 1.3, 2.0, 20.0)), kind=kinds[seed % 3], seed=seed
    )


def stated(data: dict[str, Any], rules: Rules) -> Problem:
    """The problem of a file under one objective."""
    objective: Literal["latency", "throughput"] = "latency" if rules == "latency" else "throughput"
    return problem_from_json(data, objective, rules == "contiguous")


def problem_of(family: str, size: int, seed: int, rules: Rules) -> Problem:
    """A random problem under one objective."""
    return stated(problem_file(family, size, seed), rules)


@dataclass(frozen=True, slots=True)
class Answer:
    """One problem."""

    family: str
    blocks: int
    accelerators: int
    rules: str
    short: float
    """Cost of the answer in the short time."""
    best: float
    """Of it and of the answer in the long time."""
    bound: float
    """No placement costs less."""

    @property
    def above(self) -> float:
        """How far the short answer lies above the best known, as a fraction."""
        return self.short / self.best - 1


def own_clock() -> Callable[[], float]:
    """CPU time of the calling thread, which other threads may ask for, too."""
    ident = threading.current_thread().ident
    assert ident is not None
    clock = time.pthread_getcpuclockid(ident)
    return lambda: time.clock_gettime(clock)


def measure(
    name: str, problem: Problem, rules: Rules, *, short_s: float, long_s: float, clock: Callable[[], float]
) -> Answer:
    """Solve one problem twice, the first time by that clock."""
    short, long = solve(problem, short_s, clock), solve(problem, long_s)
    return Answer(
        name, len(problem.blocks), len(problem.devices) - 1, rules, short.cost, min(short.cost, long.cost),
        max(short.bound, long.bound),
    )  # fmt: skip


def table(found: Sequence[Answer]) -> str:
    """As Markdown."""
    lines = [
        "| family | blocks, accelerators | rules | short | best | above it | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        lines.append(
            f"| {each.family} | {each.blocks}, {each.accelerators} | {each.rules} | {each.short:.4g} | "
            f"{each.best:.4g} | {each.above:.1%} | {each.bound:.4g} |"
        )
    above = [each.above for each in found]
    lines += ["", f"Above the best: median {statistics.median(above):.1%}, worst {max(above):.1%}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(prog="python -m bench.placement_families", description="Random placements.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--short", type=float, default=2.0)
    parser.add_argument("--long", type=float, default=60.0)
    kinds: tuple[Rules, ...] = ("latency", "throughput", "contiguous")
    parser.add_argument("--families", nargs="*", choices=[*FAMILIES], default=[*FAMILIES])
    parser.add_argument("--networks", nargs="*", choices=[*NETWORKS, "all"], default=[])
    parser.add_argument("--rules", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--cpu", action="store_true", help="--short is CPU time of the solving thread")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    networks = [*NETWORKS] if "all" in options.networks else options.networks
    clock = own_clock() if options.cpu else time.monotonic
    files = [
        *(
            (f, problem_file(f, size, s))
            for f in options.families
            for size in options.sizes
            for s in range(options.seeds)
        ),
        *((n, network_problem_file(n, s)) for n in networks for s in range(options.seeds)),
    ]
    found = []
    for name, data in files:
        for rules in options.rules:
            problem = stated(data, rules)
            found.append(measure(name, problem, rules, short_s=options.short, long_s=options.long, clock=clock))
            sys.stderr.write(table(found[-1:]).splitlines()[2] + "\n")
    sys.stdout.write(json.dumps([asdict(each) for each in found], indent=2) + "\n" if options.json else table(found))


if __name__ == "__main__":
    main()
