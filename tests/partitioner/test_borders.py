"""Ranks: what moves keeps pieces in order, and can be taken back."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from bench.placement_models import NETWORKS, network_file
from edgert.partitioner.borders import Borders
from edgert.partitioner.evaluate import cost_of
from edgert.partitioner.files import problem_from_json
from edgert.partitioner.indexed import index
from edgert.partitioner.intervals import item_graph, item_orders, place_intervals
from edgert.partitioner.quotient import Quotient
from edgert.partitioner.ranks import Ranks
from edgert.partitioner.search import between_refusals
from tests.partitioner.problems import file_problems

slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def _ample(data, objective="throughput"):
    """The problem without a limit on memory: then the form of the pieces alone makes a placement invalid."""
    problem = problem_from_json(data, objective, objective == "throughput")
    return index(replace(problem, devices=tuple(replace(d, memory_bytes=math.inf) for d in problem.devices)))


# An item that is a piece alone is moved to where it is.
_APART = {
    "nodes": [{"id": n, "cpuLatency": 0.0, "fpgaLatency": 0.0, "size": 0} for n in range(3)],
    "edges": [],
    "maxFPGAs": 2,
    "maxCPUs": 1,
    "maxSizePerFPGA": 2,
}


@slow
@given(file_problems(), st.integers(0, 2**32))
@example(_APART, 6831)
def test_moves_keep_the_pieces_in_order_and_can_be_taken_back(data, seed):
    indexed, chance = _ample(data, "latency"), random.Random(seed)
    place = [0] * len(indexed.items)
    ranks = Ranks.of(indexed, place)
    assume(ranks is not None)
    after = item_graph(indexed)[0]
    for _ in range(30):
        item = chance.randrange(len(place))
        rank = ranks.proposal(item, chance)
        items = ranks.closure(item, rank, 20)
        if items is None:
            continue
        before = list(ranks.rank), set(ranks.free), list(ranks.count)
        old = [place[each] for each in items]
        target, undo = ranks.move(items, rank)
        assert all(ranks.rank[a] <= ranks.rank[b] for a, readers in enumerate(after) for b in readers)
        if chance.random() < 0.3:
            ranks.back(undo, old)
            assert (ranks.rank, set(ranks.free), ranks.count) == before
            continue
        for each in items:
            place[each] = target
        assert math.isfinite(cost_of(indexed, indexed.spread(place)))


@slow
@given(file_problems())
def test_a_placement_in_ranks_is_the_placement(data):
    indexed = _ample(data)
    for start in place_intervals(indexed, item_orders(indexed)[0]):
        ranks = Ranks.of(indexed, start)
        if ranks is not None:
            assert [ranks.owner[rank] for rank in ranks.rank] == start


def test_pieces_that_wait_for_each_other_have_no_ranks():
    """Each is convex, but a reads from b and b from a."""
    nodes = [{"id": n, "cpuLatency": 1.0, "fpgaLatency": 1.0, "size": 0} for n in range(4)]
    edges = [{"sourceId": a, "destId": b, "cost": 0.0} for a, b in ((0, 1), (2, 3))]
    data = {"nodes": nodes, "edges": edges, "maxFPGAs": 2, "maxSizePerFPGA": 9}
    indexed = index(problem_from_json(data, "throughput", True))
    numbers = {name: number for number, name in enumerate(indexed.names)}
    start = [0] * 4
    for name, target in (("0", 1), ("1", 2), ("2", 2), ("3", 1)):
        start[numbers[name]] = target
    assert math.isfinite(cost_of(indexed, start))
    assert Ranks.of(indexed, start) is None


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_shifting_borders_balances_a_chain(objective):
    """From one piece to the best: half of the blocks on each accelerator, or all of them on one."""
    nodes = [{"id": n, "cpuLatency": 50.0, "fpgaLatency": 1.0, "size": 1} for n in range(12)]
    edges = [{"sourceId": n, "destId": n + 1, "cost": 0.25} for n in range(11)]
    data = {"nodes": nodes, "edges": edges, "maxFPGAs": 2, "maxSizePerFPGA": 20}
    indexed = index(problem_from_json(data, objective, objective == "throughput"))
    start = [1] * 11 + [0]
    cost = cost_of(indexed, start)
    heats = (0.02 * (1 - number / 3000) for number in range(3000))
    quotient = Quotient(indexed) if objective == "latency" else None
    found = Borders(indexed, quotient)(start, cost, random.Random(1), heats)
    assert cost_of(indexed, found) == pytest.approx(12.0 if objective == "latency" else 6.25)


@pytest.mark.parametrize("kind", ["forward", "mirrored", "training"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_problems_without_cycles(name, kind):
    data = network_file(name, 3, 1.5, kind=kind)
    problem = problem_from_json(data, "throughput")
    assert len(index(problem).names) == len(data["nodes"]) >= 29


@slow
@given(file_problems())
def test_levels_between_what_only_the_host_takes_are_convex(data):
    for node in data["nodes"]:
        node.pop("colorClass", None)
    indexed = index(problem_from_json(data, "throughput", True))
    for start in between_refusals(indexed):
        assert math.isfinite(cost_of(indexed, indexed.spread(start)))


def test_the_work_between_refusals_goes_to_the_accelerators():
    """Two branches, each with a block in the middle that only the CPU takes: the halves are pieces."""
    nodes = [{"id": n, "cpuLatency": 9.0, "fpgaLatency": 1.0, "size": 1} for n in range(10)]
    for middle in (3, 8):
        nodes[middle]["supportedOnFpga"] = 0
    edges = [{"sourceId": n, "destId": n + 1, "cost": 0.1} for n in (0, 1, 2, 3, 5, 6, 7, 8)]
    data = {"nodes": nodes, "edges": edges, "maxFPGAs": 2, "maxSizePerFPGA": 20}
    indexed = index(problem_from_json(data, "throughput", True))
    assert min(cost_of(indexed, start) for start in between_refusals(indexed)) == pytest.approx(18.0)
