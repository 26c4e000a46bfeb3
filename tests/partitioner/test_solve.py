"""Solvers against trying everything, and certificates."""

from __future__ import annotations

import itertools
import math
import os
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.placement_families import own_clock
from edgert.errors import Infeasible, OptionError
from edgert.partitioner import integer
from edgert.partitioner.anneal import anneal
from edgert.partitioner.chain import is_chain, place_chain, price_chain
from edgert.partitioner.contract import contract
from edgert.partitioner.evaluate import cost_of, evaluate
from edgert.partitioner.exhaustive import search_all
from edgert.partitioner.files import problem_from_json
from edgert.partitioner.ideals import fits_ideals, ideals_of, place_ideals
from edgert.partitioner.indexed import index
from edgert.partitioner.infeasible import find_fault
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Flow, Problem, TargetSpec
from edgert.partitioner.schedule import solve_schedule
from edgert.partitioner.search import starts
from edgert.partitioner.solve import solve
from edgert.partitioner.timeline import fits_timeline, solve_timeline
from tests.partitioner.problems import WIDE, file_cost, file_problems, machine_problems, optimum, optimum_of_all

EXAMPLES = int(os.environ.get("EDGERT_PARTITIONER_EXAMPLES", "500"))
MODES = st.sampled_from([("throughput", False), ("throughput", True), ("latency", False)])
quick = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
few = settings(quick, max_examples=max(1, EXAMPLES // 10))
close = pytest.approx


@quick
@given(file_problems(), MODES)
def test_a_problem_file_is_solved_as_well_as_by_trying_everything(data: dict[str, Any], mode: tuple[Any, bool]) -> None:
    objective, contiguous = mode
    problem = problem_from_json(data, objective, contiguous)
    solution = solve(problem, 30.0, own_clock())
    assert solution.cost == close(optimum(problem), abs=1e-9)
    assert solution.proved


_NEVER = [(0.2, 0.3), (1.1, 0.7), (0.3, 0.7), (0.8, 1e15), (0.8, 1e15)]
_SENTINELS = {
    "nodes": [{"id": n, "cpuLatency": cpu, "fpgaLatency": acc, "size": 1} for n, (cpu, acc) in enumerate(_NEVER)],
    "edges": [],
    "maxFPGAs": 1,
    "maxSizePerFPGA": 9,
}


@few
@given(file_problems(most_nodes=7, costs=WIDE), MODES)
@example(_SENTINELS, ("throughput", False))
def test_costs_beyond_all_others_spoil_no_answer(data: dict[str, Any], mode: tuple[Any, bool]) -> None:
    problem = problem_from_json(data, *mode)
    best, solution = optimum_of_all(problem), solve(problem, 30.0, own_clock())
    assert search_all(index(problem), None, math.inf, lambda: True)[1] == close(best, rel=1e-9)
    assert solution.cost == close(best, rel=1e-9)
    assert solution.bound <= best * (1 + 1e-9)


@few
@given(st.one_of(machine_problems(5), st.builds(problem_from_json, file_problems(6), MODES.map(lambda mode: mode[0]))))
def test_the_quick_way_to_try_everything_leaves_out_no_optimum(problem: Problem) -> None:
    assert optimum(problem) == close(optimum_of_all(problem), abs=1e-9)


@few
@given(file_problems(most_nodes=6), MODES)
def test_the_optimum_is_that_of_the_rules_in_words(data: dict[str, Any], mode: tuple[Any, bool]) -> None:
    objective, contiguous = mode
    names = [node["id"] for node in data["nodes"]]
    devices = ["cpu", *(f"acc:{k}" for k in range(data["maxFPGAs"]))]
    everything = (dict(zip(names, c, strict=True)) for c in itertools.product(devices, repeat=len(names)))
    best = min(file_cost(data, place, objective, contiguous) for place in everything)
    assert solve(problem_from_json(data, objective, contiguous)).cost == close(best, abs=1e-9)


@quick
@given(machine_problems())
def test_a_plan_is_as_good_as_by_trying_everything(problem: Problem) -> None:
    best = optimum(problem)
    if math.isinf(best):
        with pytest.raises(Infeasible):
            solve(problem, 30.0)
        return
    solution = solve(problem, 30.0, own_clock())
    assert solution.cost == close(best, abs=1e-9)
    assert solution.bound <= best + 1e-9
    assert evaluate(problem, solution.placement).cost == solution.cost


@few
@given(st.one_of(machine_problems(), st.builds(problem_from_json, file_problems(), st.just("latency"))))
def test_joining_blocks_keeps_the_optimum(problem: Problem) -> None:
    smaller = contract(problem)
    best = optimum(problem)
    assert optimum(smaller.problem) == close(best, abs=1e-9)
    if math.isfinite(best):
        placement = smaller.expand(solve(smaller.problem).placement)
        assert evaluate(problem, placement).cost == close(best, abs=1e-9)


@few
@given(
    st.one_of(machine_problems(), st.builds(problem_from_json, file_problems(), st.just("throughput"), st.booleans()))
)
def test_the_throughput_programme_finds_or_bounds_the_optimum(problem: Problem) -> None:
    pytest.importorskip("ortools")
    if problem.objective != "throughput":
        return
    indexed = index(problem)
    best = optimum(problem)
    start, cost = _start(problem)
    if start is None:
        return
    answer = integer.solve_throughput(indexed, start, cost, _left)
    assert answer.bound <= best + 1e-6 * max(1.0, best)
    if problem.pieces != "many" or (not any(indexed.launch) and problem.most_segments is None):
        assert answer.assignment is not None
        if problem.most_energy_j is None:
            assert cost_of(indexed, indexed.spread(answer.assignment)) == close(best, rel=1e-6, abs=1e-6)


# The last block is the CPU's, and reads from a piece whose second branch lasts.
_BRANCHES = {
    "nodes": [
        {"id": 0, "cpuLatency": 1.5, "fpgaLatency": 0.0, "size": 0},
        {"id": 1, "cpuLatency": 1.0, "fpgaLatency": 0.0, "size": 3},
        {"id": 2, "cpuLatency": 1.5, "fpgaLatency": 0.5, "size": 0},
    ],
    "edges": [{"sourceId": 0, "destId": 1, "cost": 0.5}],
    "maxFPGAs": 1,
    "maxCPUs": 1,
    "maxSizePerFPGA": 2,
}


@few
@given(file_problems(), st.integers(0, 2**32))
@example(_BRANCHES, 1)
def test_the_latency_programme_times_a_placement_by_the_rules(data: dict[str, Any], seed: int) -> None:
    """Where each item may be in one place only, there is one answer, and its time is the bound."""
    pytest.importorskip("ortools")
    problem = problem_from_json({**data, "maxFPGAs": 1}, "latency")
    indexed, chance = index(problem), random.Random(seed)
    assignment = [chance.choice(indexed.allowed(item)) for item in range(len(indexed.items))]
    cost = cost_of(indexed, indexed.spread(assignment))
    if math.isinf(cost):
        return
    place = indexed.named(assignment)
    blocks = tuple(replace(b, cost_s={place[b.id]: b.cost_s[place[b.id]]}) for b in problem.blocks)
    answer = solve_timeline(index(replace(problem, blocks=blocks)), assignment, cost, _left)
    assert answer.assignment == assignment
    assert answer.bound == close(cost, rel=1e-6)


@few
@given(file_problems())
@example(_BRANCHES)
def test_the_latency_programme_finds_the_optimum(data: dict[str, Any]) -> None:
    pytest.importorskip("ortools")
    problem = problem_from_json(data, "latency")
    indexed = index(problem)
    start, cost = _start(problem)
    best = optimum(problem)
    assert start is not None
    assert fits_timeline(indexed)
    answer = solve_timeline(indexed, start, cost, _left)
    assert answer.bound <= best + 1e-6 * max(1.0, best)
    assert answer.bound == close(best, rel=1e-6, abs=1e-5)  # ticks are parts of the start's cost
    assert answer.assignment is not None
    assert cost_of(indexed, indexed.spread(answer.assignment)) == close(best, rel=1e-6, abs=1e-6)


@few
@given(machine_problems())
def test_the_schedule_programme_bounds_the_optimum(problem: Problem) -> None:
    pytest.importorskip("ortools")
    start, cost = _start(problem)
    if problem.objective != "latency" or start is None:
        return
    best = optimum(problem)
    answer = solve_schedule(index(problem), start, cost, lambda: 5.0)  # a bound is right however early it ends
    assert not answer.infeasible
    assert answer.bound <= best + 1e-6 * max(1.0, best)


@few
@given(machine_problems())
def test_local_search_never_gives_worse_than_its_start(problem: Problem) -> None:
    start, cost = _start(problem)
    if start is None:
        return
    indexed = index(problem)
    found, claimed = anneal(indexed, start, cost, lambda: math.inf, rounds=20)
    assert claimed <= cost
    assert cost_of(indexed, indexed.spread(found)) == close(claimed)


def _start(problem: Problem) -> tuple[list[int] | None, float]:
    indexed = index(problem)
    if find_fault(indexed) is not None:
        return None, math.inf
    found = [(cost_of(indexed, indexed.spread(a)), a) for a in starts(indexed, lambda: True)]
    cost, start = min(found, default=(math.inf, []))
    return (None, math.inf) if math.isinf(cost) else (start, cost)


def _left() -> float:
    return 300.0  # enough on any machine: a proof ends sooner


def _chain(count: int, **limits: Any) -> Problem:
    blocks = tuple(
        BlockSpec(f"b{i}", {"a": 1.0 + i % 3, "b": 3.0 - i % 3, "c": 2.0}, memory_bytes=1.0) for i in range(count)
    )
    devices = tuple(DeviceSpec(name) for name in "abc")
    targets = tuple(TargetSpec(name, name, launch_s=0.125) for name in "abc")
    flows = tuple(Flow(f"b{i}", (f"b{i + 1}",), cost_s=0.25) for i in range(count - 1))
    return Problem(blocks, devices, targets, flows, **limits)


@pytest.mark.parametrize("limits", [{}, {"most_segments": 2}, {"most_segments": 1}])
def test_a_chain_is_placed_exactly_under_a_limit_on_segments(limits: dict[str, int]) -> None:
    problem = _chain(8, **limits)
    indexed = index(problem)
    assert is_chain(indexed)
    assert place_chain(indexed)[1] == close(optimum(problem))


def test_a_chain_of_5000_blocks_is_proved_optimal() -> None:
    solution = solve(_chain(5000))
    assert solution.proved
    assert solution.solver == "chain"


@pytest.mark.parametrize("room", [math.inf, 600.0])
def test_there_is_an_answer_however_short_the_time(room: float) -> None:
    problem = _chain(2000)
    tight = replace(problem, devices=(DeviceSpec("a"), DeviceSpec("b", room), DeviceSpec("c", room)))
    solution = solve(tight, 1e-6)
    assert evaluate(tight, solution.placement).cost == close(solution.cost)


def test_a_chain_that_memory_forbids_to_be_cheapest_is_bounded_by_prices() -> None:
    problem = _chain(60)
    devices = tuple(DeviceSpec(name, memory_bytes=room) for name, room in (("a", 10.0), ("b", 30.0), ("c", 30.0)))
    tight = replace(problem, devices=devices)
    costs: list[float] = []

    def offer(found: list[int]) -> float:
        costs.append(cost_of(index(tight), found))
        return min(costs)

    bound = price_chain(index(tight), math.inf, offer, lambda: True)
    assert place_chain(index(tight))[1] < bound <= solve(tight, 5.0).cost


@few
@given(file_problems(most_nodes=7), st.sampled_from([None, 1, 2]))
def test_the_programme_over_ideals_finds_the_optimum(data: dict[str, Any], most: int | None) -> None:
    made = problem_from_json(data, "throughput")
    devices = tuple(replace(device, lanes=1) for device in made.devices)
    problem = replace(made, devices=devices, pieces="one", most_segments=most)
    indexed = index(problem)
    assert fits_ideals(indexed)
    answer = place_ideals(indexed)
    if answer is None:  # groups that close a cycle
        return
    assert answer[1] == close(optimum(problem), abs=1e-9)
    if answer[0] is not None:
        assert cost_of(indexed, indexed.spread(answer[0])) == close(answer[1])


def test_ideals_of_a_diamond_are_its_six_downward_closed_sets() -> None:
    after, before = [{1, 2}, {3}, {3}, set()], [set(), {0}, {0}, {1, 2}]
    assert ideals_of(after, before) == [0b0000, 0b0001, 0b0011, 0b0101, 0b0111, 0b1111]
    assert ideals_of(after, before, most=5) is None


def test_two_branches_run_at_once_on_two_devices() -> None:
    blocks = tuple(BlockSpec(name, {"a": 4.0, "b": 4.0}) for name in ("left", "right"))
    problem = Problem(blocks, (DeviceSpec("a"), DeviceSpec("b")), (TargetSpec("a", "a"), TargetSpec("b", "b")))
    assert solve(problem).cost == 4.0


def test_a_tight_packing_that_no_start_finds_is_still_found() -> None:
    sizes = (6, 6, 5, 5, 4, 4, 3, 3, 2, 2)  # two devices of 20: only some splits fit
    blocks = tuple(BlockSpec(f"b{i}", {"a": 1.0, "b": 2.0}, memory_bytes=size) for i, size in enumerate(sizes))
    devices = (DeviceSpec("a", 20.0), DeviceSpec("b", 20.0))
    problem = Problem(blocks, devices, (TargetSpec("a", "a"), TargetSpec("b", "b")), objective="throughput")
    assert set(evaluate(problem, solve(problem).placement).memory_bytes.values()) == {20.0}


def _single(*blocks: BlockSpec, room: float = math.inf, **more: Any) -> Problem:
    return Problem(blocks, (DeviceSpec("a", room),), (TargetSpec("a", "a", watts=3.0),), **more)


@pytest.mark.parametrize(
    ("problem", "block", "limit", "excess"),
    [
        (_single(BlockSpec("x", {})), "x", "target", None),
        (_single(BlockSpec("x", {"a": 1.0}, 9.0), room=4.0), "x", "memory", 5.0),
        (_single(BlockSpec("x", {"a": 1.0}, 3.0), BlockSpec("y", {"a": 1.0}, 2.0), room=4.0), "x", "memory", 1.0),
        (_single(BlockSpec("x", {"a": 2.0}), most_energy_j=4.0), "x", "energy", 2.0),
    ],
)
def test_an_infeasible_problem_says_which_block_which_limit_and_by_how_much(
    problem: Problem, block: str, limit: str, excess: float | None
) -> None:
    with pytest.raises(Infeasible, match=block) as caught:
        solve(problem)
    assert (caught.value.block, caught.value.limit) == (block, limit)
    assert caught.value.excess == (None if excess is None else close(excess))


def test_a_refusal_is_quoted() -> None:
    block = BlockSpec("x", {}, refused={"a": "op Foo has no kernel"})
    with pytest.raises(Infeasible, match="op Foo has no kernel"):
        solve(Problem((block,), (DeviceSpec("a"),), (TargetSpec("a", "a"),)))


def test_a_time_limit_must_be_positive() -> None:
    with pytest.raises(OptionError, match="time limit"):
        solve(_chain(2), 0.0)


def test_without_or_tools_a_problem_is_still_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "available", lambda: False)
    nodes = [{"id": i, "cpuLatency": 9.0, "fpgaLatency": 1.0 + i % 4, "size": 1} for i in range(40)]
    edges = [{"sourceId": i, "destId": i + 1, "cost": 0.125} for i in range(39)]
    data = {"nodes": nodes, "edges": edges, "maxFPGAs": 3, "maxSizePerFPGA": 100}
    solution = solve(problem_from_json(data, "throughput"), 2.0, own_clock())
    assert solution.bound <= solution.cost <= 1.1 * 100 / 3
