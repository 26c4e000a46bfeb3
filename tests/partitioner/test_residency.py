"""Segments that take turns within a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import Infeasible
from edgert.partitioner.residency import Load, take_turns

_LOADS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 10)), min_size=1, max_size=40)


@given(_LOADS, st.integers(1, 1000))
def test_no_turn_needs_more_than_the_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    blocks = [Load(str(number), *size) for number, size in enumerate(sizes)]
    if max(block.alone_bytes for block in blocks) > budget:
        with pytest.raises(Infeasible):
            take_turns(blocks, budget)
        return
    turns = take_turns(blocks, budget)
    assert turns.segments[0][0] == 0
    assert turns.segments[-1][1] == len(blocks)
    assert all(one[1] == other[0] for one, other in zip(turns.segments, turns.segments[1:], strict=False))
    weights = [sum(block.weights_bytes for block in blocks[low:high]) for low, high in turns.segments]
    for index, (low, high) in enumerate(turns.segments):
        assert index in turns.held[index]
        values = max(block.values_bytes for block in blocks[low:high])
        assert sum(weights[each] for each in turns.held[index]) + values <= turns.held_bytes <= budget


def test_what_fits_at_once_is_one_segment_that_stays() -> None:
    turns = take_turns([Load("a", 10, 1), Load("b", 20, 2)], 32)
    assert turns.segments == ((0, 2),)
    assert turns.held == ((0,),)


def test_the_next_segment_is_read_ahead_where_both_fit() -> None:
    turns = take_turns([Load(str(number), 10, 0) for number in range(20)], 40)
    assert len(turns.segments) == 10
    assert turns.held[3] == (3, 4)
    assert turns.held[9] == (0, 9)  # of the next request the first


def test_a_block_beside_which_nothing_fits_is_held_alone() -> None:
    turns = take_turns([Load("a", 10, 0), Load("big", 95, 0), Load("c", 10, 0)], 100)
    held = dict(zip(turns.segments, turns.held, strict=True))
    assert held[1, 2] == (1,)


def test_most_of_a_model_that_almost_fits_stays() -> None:
    turns = take_turns([Load(str(number), 10, 0) for number in range(20)], 160)
    assert sum(high - low for low, high in (turns.segments[index] for index in turns.kept)) >= 10


def test_a_block_that_does_not_fit_is_named_with_its_figures() -> None:
    with pytest.raises(Infeasible, match=r"'b' alone needs 130 bytes \(120 of weights, 10 of values\)") as caught:
        take_turns([Load("a", 10, 1), Load("b", 120, 10)], 100)
    assert (caught.value.block, caught.value.limit, caught.value.excess) == ("b", "memory", 30.0)


def test_a_limit_below_what_runs_the_model_is_said_without_negative_sizes() -> None:
    with pytest.raises(Infeasible, match=r"takes 50 more than the limit by itself: 180 too few") as caught:
        take_turns([Load("a", 10, 1), Load("b", 120, 10)], -50)
    assert "-" not in str(caught.value)
    assert caught.value.excess == 180
