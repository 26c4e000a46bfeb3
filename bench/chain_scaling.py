"""How long placing takes as a chain grows, and on graphs of 5,000 blocks; without measuring anything.

    python -m bench.chain_scaling [--most 16000] [--rounds 5] [--json]

Chains of doubling length, three devices under the rules of real plans, are planned in interleaved rounds; the exponent
is the slope of log(time) over log(length), by least squares: n log n has 1.1 in this range. The graphs (of
`bench.placement_families`) and the chains of 5,000 blocks have a time limit of 5 s. Times of growing chains are CPU
time of this process, which other work on the machine disturbs least; those with a limit are by the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from bench.placement_families import FAMILIES
from edgert.machine import Link
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Flow, Problem, TargetSpec
from edgert.partitioner.solve import solve

SHORTEST = 1000
LARGE = 5000
LIMIT_S = 5.0
_DEVICES = ("cpu:0", "gpu:0", "npu:0")


@dataclass(frozen=True, slots=True)
class Chain:
    """One length."""

    blocks: int
    seconds: float
    """Median CPU time of a solution that is proved optimal."""


@dataclass(frozen=True, slots=True)
class Large:
    """One problem of `LARGE` blocks with a time limit of `LIMIT_S`."""

    name: str
    blocks: int
    seconds: float
    """By the clock on the wall."""
    gap: float


def problem_of(edges: Sequence[tuple[int, int]], count: int, seed: int, room: float = math.inf) -> Problem:
    """Blocks with log-normal costs on three devices, launches and links as on a small board; `room` is the share of all
    weights that an accelerator holds.
    """
    chance = random.Random(seed)
    names = [f"b{number}" for number in range(count)]
    blocks = []
    for name in names:
        slow = 1e-4 * chance.lognormvariate(0, 1)
        cost = {"cpu:0": slow, "gpu:0": slow / chance.uniform(1, 8), "npu:0": slow / chance.uniform(1, 16)}
        if chance.random() < 0.1:
            del cost["npu:0"]
        blocks.append(BlockSpec(name, cost, memory_bytes=chance.lognormvariate(10, 1)))
    total = sum(block.memory_bytes for block in blocks)
    readers: dict[int, list[str]] = {}
    for source, sink in edges:
        readers.setdefault(source, []).append(names[sink])
    return Problem(
        tuple(blocks),
        tuple(DeviceSpec(name, math.inf if name == "cpu:0" else room * total) for name in _DEVICES),
        tuple(TargetSpec(name, name, launch_s=1e-5) for name in _DEVICES),
        tuple(Flow(names[a], tuple(b), size_bytes=1e5 * chance.lognormvariate(0, 1)) for a, b in readers.items()),
        tuple(Link(a, b, 2e-5, 8e9) for a in _DEVICES for b in _DEVICES if a != b),
    )


def chain(count: int, room: float = math.inf) -> Problem:
    """Each block reads from the one before."""
    return problem_of([(number, number + 1) for number in range(count - 1)], count, count, room)


def chains(most: int, rounds: int) -> list[Chain]:
    """Times of doubling lengths, in interleaved rounds.

    Raises:
        AssertionError: a chain was not proved optimal.
    """
    lengths = [SHORTEST << power for power in range(int(math.log2(most / SHORTEST)) + 1)]
    problems = {length: chain(length) for length in lengths}
    times: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length, problem in problems.items():
            began = time.process_time()
            solution = solve(problem, 600.0)
            times[length].append(time.process_time() - began)
            assert solution.proved, f"a chain of {length} blocks was not proved optimal"
    return [Chain(length, statistics.median(seconds)) for length, seconds in times.items()]


def exponent(found: Sequence[Chain]) -> float:
    """Slope of log(seconds) over log(blocks)."""
    x = [math.log(each.blocks) for each in found]
    y = [math.log(each.seconds) for each in found]
    return statistics.linear_regression(x, y).slope


def larges() -> list[Large]:
    """Graphs of `LARGE` blocks within the time limit."""
    makers: dict[str, Callable[[], Problem]] = {
        "chain": lambda: chain(LARGE),
        "chain, memory limit": lambda: chain(LARGE, 0.3),
    }
    for name, family in FAMILIES.items():
        edges = family(LARGE, random.Random(name))
        count = 1 + max(max(edge) for edge in edges)
        makers[name] = lambda edges=edges, count=count: problem_of(edges, count, 1)  # type: ignore[misc]
        makers[f"{name}, memory limit"] = lambda edges=edges, count=count: problem_of(edges, count, 1, 0.3)  # type: ignore[misc]
    found = []
    for name, make in makers.items():
        problem = make()
        began = time.perf_counter()
        solution = solve(problem, LIMIT_S)
        found.append(Large(name, len(problem.blocks), time.perf_counter() - began, solution.gap))
    return found


def show(found: Sequence[Chain], large: Sequence[Large]) -> str:
    """As Markdown."""
    lines = ["| chain of | CPU time |", "|---|---|"]
    lines += [f"| {each.blocks} blocks | {each.seconds:.3f} s |" for each in found]
    lines += [
        "",
        f"Exponent {exponent(found):.2f}.",
        "",
        f"| {LIMIT_S:g} s for | blocks | took | gap |",
        "|---|---|---|---|",
    ]
    lines += [f"| {each.name} | {each.blocks} | {each.seconds:.2f} s | {each.gap:.0%} |" for each in large]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(prog="python -m bench.chain_scaling", description="Planning time against size.")
    parser.add_argument("--most", type=int, default=16_000, help="blocks of the longest chain")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = chains(max(2 * SHORTEST, options.most), max(1, options.rounds))
    large = larges()
    data = {"chains": [asdict(x) for x in found], "exponent": exponent(found), "large": [asdict(x) for x in large]}
    sys.stdout.write(json.dumps(data, indent=2) + "\n" if options.json else show(found, large))


if __name__ == "__main__":
    main()
