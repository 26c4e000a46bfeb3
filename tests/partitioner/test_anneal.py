"""Local search: its fast cost is the evaluator's, and what it finds is near the optimum of graphs that branch."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.placement_families import FAMILIES, problem_of
from edgert.partitioner.anneal import anneal
from edgert.partitioner.evaluate import cost_of
from edgert.partitioner.files import problem_from_json
from edgert.partitioner.indexed import index
from edgert.partitioner.loads import Loads
from edgert.partitioner.quotient import Quotient, fits_quotient
from edgert.partitioner.search import starts
from tests.partitioner.problems import file_problems, machine_problems

slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@slow
@given(file_problems(), st.randoms(use_true_random=False))
def test_the_quotient_costs_what_the_evaluator_says(data, chance):
    indexed = index(problem_from_json(data, "latency"))
    assert fits_quotient(indexed)
    assignment = [chance.choice(indexed.allowed(item)) for item in range(len(indexed.items))]
    expected = cost_of(indexed, indexed.spread(assignment))
    assert Quotient(indexed).cost(assignment) == pytest.approx(expected)


@slow
@given(file_problems())
def test_the_longest_path_is_as_long_as_the_request(data):
    indexed = index(problem_from_json(data, "latency"))
    quotient, assignment = Quotient(indexed), [0] * len(indexed.items)
    critical = set(quotient.critical(assignment))
    longest = quotient.cost(assignment)
    along = sum(indexed.item_costs[item][0] for item in critical)
    assert along >= longest - 1e-9  # the items of a group count whole


@slow
@given(machine_problems())
def test_only_rules_that_the_quotient_states_go_to_it(problem):
    assert not fits_quotient(index(problem))


@slow
@given(file_problems(), st.randoms(use_true_random=False))
def test_loads_are_kept_right_while_items_move(data, chance):
    indexed = index(problem_from_json(data, "throughput"))
    loads = Loads(indexed, [chance.choice(indexed.allowed(item)) for item in range(len(indexed.items))])
    for _ in range(20):
        item = chance.randrange(len(indexed.items))
        loads.move(item, chance.choice(indexed.allowed(item)))
    fresh = Loads(indexed, loads.place)
    assert loads.loads == pytest.approx(fresh.loads, abs=1e-9)
    assert loads.held == pytest.approx(fresh.held, abs=1e-9)


@pytest.mark.parametrize(
    ("family", "rules", "gain"),
    [
        ("layered", "latency", 0.99),
        ("series-parallel", "latency", 0.99),
        ("layered", "throughput", 0.8),
        ("series-parallel", "throughput", 0.8),
        ("transformer", "throughput", 0.8),
        ("layered", "contiguous", 0.97),
    ],
)
def test_local_search_betters_the_starts_of_large_graphs(family, rules, gain):
    indexed = index(problem_of(family, 150, 1, rules))
    found = [(cost_of(indexed, indexed.spread(start)), start) for start in starts(indexed, lambda: True)]
    cost, start = min(found)
    rounds = iter(range(1200))  # in place of a clock: the same on every machine
    better, claimed = anneal(indexed, start, cost, lambda: float(1199 - next(rounds, 1199)), rounds=2_000)
    assert claimed == pytest.approx(cost_of(indexed, indexed.spread(better)))
    assert claimed <= gain * cost


def test_a_device_may_be_left_empty():
    """One accelerator is so slow that all that it holds must go."""
    nodes = [{"id": n, "cpuLatency": 1.0, "fpgaLatency": 50.0, "size": 1} for n in range(4)]
    edges = [{"sourceId": n, "destId": n + 1, "cost": 0.1} for n in range(3)]
    data = {"nodes": nodes, "edges": edges, "maxFPGAs": 1, "maxSizePerFPGA": 9}
    indexed = index(problem_from_json(data, "throughput", True))
    start = [1] * len(indexed.items)
    found, cost = anneal(indexed, start, cost_of(indexed, start), lambda: math.inf, rounds=200)
    assert set(found) == {0}
    assert cost == pytest.approx(4.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_graphs_without_cycles_of_the_size_asked_for(family):
    edges = FAMILIES[family](200, random.Random(3))
    assert all(source < sink for source, sink in edges)
    assert 200 <= 1 + max(sink for _, sink in edges) <= 260
    assert {sink for _, sink in edges} | {0} >= set(range(1, 100))
