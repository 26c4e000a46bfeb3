"""Bounds: nothing beats them, and where memory cuts a chain they are met."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgert.partitioner.bounds import pieces_bound
from edgert.partitioner.exhaustive import lower_bound
from edgert.partitioner.files import problem_from_json
from edgert.partitioner.indexed import index
from edgert.partitioner.solve import solve
from tests.partitioner.problems import WIDE, file_problems, machine_problems, optimum

slow = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


_NEVER = [(1e15, 0.75), (0.2, 0.7), (0.8, 0.75), (0.75, 1e15)]
_SENTINELS = {
    "nodes": [{"id": n, "cpuLatency": cpu, "fpgaLatency": acc, "size": 1} for n, (cpu, acc) in enumerate(_NEVER)],
    "edges": [{"sourceId": n, "destId": n + 1, "cost": cost} for n, cost in enumerate((1e15, 0.7, 0.75))],
    "maxFPGAs": 1,
    "maxSizePerFPGA": 9,
}


@slow
@given(st.one_of(file_problems(), file_problems(costs=WIDE)))
@example(_SENTINELS)
def test_no_placement_beats_the_bound_by_pieces(data):
    problem = problem_from_json(data, "latency")
    bound = pieces_bound(index(problem))
    assert bound <= optimum(problem) * (1 + 1e-9)


def test_the_bound_of_a_chain_that_memory_cuts_is_its_optimum():
    nodes = [{"id": n, "cpuLatency": 90.0, "fpgaLatency": 1.0 + n % 3, "size": 1} for n in range(9)]
    edges = [{"sourceId": n, "destId": n + 1, "cost": 1.0 + n % 2} for n in range(8)]
    problem = problem_from_json({"nodes": nodes, "edges": edges, "maxFPGAs": 3, "maxSizePerFPGA": 4}, "latency")
    assert pieces_bound(index(problem)) == pytest.approx(solve(problem, 30.0).cost)
    assert pieces_bound(index(problem)) > lower_bound(index(problem))


@slow
@given(machine_problems())
def test_rules_that_it_does_not_state_have_no_bound_by_pieces(problem):
    assert pieces_bound(index(problem)) == 0.0
