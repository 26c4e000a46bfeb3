"""Trade-offs between time, energy, memory and segments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgert.partitioner.pareto import front, undominated
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Flow, Problem, TargetSpec

pairs = st.tuples(st.integers(0, 5), st.integers(0, 5))


def _problem() -> Problem:
    blocks = tuple(BlockSpec(f"b{i}", {"fast": 1.0, "frugal": 3.0}, memory_bytes=1.0) for i in range(4))
    flows = tuple(Flow(f"b{i}", (f"b{i + 1}",), cost_s=0.25) for i in range(3))
    targets = (TargetSpec("fast", "gpu", watts=10.0), TargetSpec("frugal", "npu", watts=1.0))
    return Problem(blocks, (DeviceSpec("gpu"), DeviceSpec("npu")), targets, flows)


@given(st.lists(pairs, max_size=12))
def test_what_is_kept_is_beaten_by_nothing_and_beats_the_rest(points: list[tuple[int, int]]) -> None:
    kept = undominated((point, point) for point in points)
    assert not any(a != b and a[0] <= b[0] and a[1] <= b[1] for a in kept for b in kept)
    assert all(any(a[0] <= b[0] and a[1] <= b[1] for a in kept) for b in points)


def test_the_front_goes_from_the_fastest_to_the_most_frugal() -> None:
    trades = front(_problem(), 120.0)
    assert (trades[0].cost, trades[0].energy_j) == (4.0, 40.0)
    assert (trades[-1].cost, trades[-1].energy_j) == (12.0, 12.0)
    assert len(trades) > 2


def test_a_watched_device_is_emptied_step_by_step() -> None:
    held = {trade.memory_bytes for trade in front(_problem(), 120.0, watch="gpu")}
    assert {0.0, 4.0} < held


def test_a_front_of_one_is_the_optimum() -> None:
    problem = Problem((BlockSpec("b", {"a": 1.0}),), (DeviceSpec("d"),), (TargetSpec("a", "d"),))
    assert [trade.cost for trade in front(problem, 60.0)] == [1.0]
