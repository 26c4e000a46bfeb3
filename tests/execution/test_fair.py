"""The fair queue: nothing is lost, first come first served within a model, and neither model nor priority starves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edgert.execution.fair import FairQueue

MODELS = st.sampled_from("abc")


@given(st.lists(st.tuples(MODELS, st.floats(1e-5, 1.0), st.integers(-1, 1)), max_size=60))
def test_all_come_out_once_and_in_order_within_a_model_and_priority(items):
    waiting = FairQueue()
    for number, (model, cost_s, priority) in enumerate(items):
        waiting.put((number, model, priority), model, cost_s, priority)
    out = [waiting.pop() for _ in range(len(items))]
    assert sorted(number for number, _, _ in out) == list(range(len(items)))
    for model in "abc":
        for priority in (-1, 0, 1):
            numbers = [number for number, own, same in out if (own, same) == (model, priority)]
            assert numbers == sorted(numbers)


@given(st.integers(1, 40), st.floats(1e-4, 1e-1), st.floats(1e-4, 1e-1))
def test_two_models_get_equal_shares_of_the_time_however_many_wait(flood, long_s, short_s):
    waiting = FairQueue()
    for _ in range(40 * flood):
        waiting.put("flood", "flood", long_s)
    for _ in range(20):
        waiting.put("few", "few", short_s)
    spent = Counter()
    while True:
        name = waiting.pop()
        spent[name] += {"flood": long_s, "few": short_s}[name]
        if not any(item == "few" for item in waiting) or not any(item == "flood" for item in waiting):
            break
        assert abs(spent["flood"] - spent["few"]) <= 2 * (long_s + short_s)


@given(st.lists(st.tuples(MODELS, st.floats(1e-4, 1.0), st.integers(-1, 1)), max_size=60))
def test_lower_priorities_get_a_tenth_of_the_time_at_most_while_higher_ones_wait(items):
    waiting = FairQueue()
    for item in items:
        waiting.put(item, *item)
    high_s = low_s = 0.0
    while waiting:
        highest = max(priority for _, _, priority in waiting)
        _, cost_s, priority = waiting.pop()
        if priority == highest:
            high_s += cost_s
        else:
            low_s += cost_s
        assert low_s <= high_s / 9 + 1e-9


@given(st.floats(1e-4, 1e-1), st.floats(1e-4, 1e-1), st.integers(1, 9), st.sampled_from((-1, 0)))
def test_an_endless_flood_of_a_higher_priority_starves_no_lower_one(high_s, low_s, priority, low):
    waiting = FairQueue()
    waiting.put("low", "low", low_s, low)
    waiting.put("middle", "middle", low_s, 0)
    spent_s, seen = 0.0, []
    while "low" not in seen:
        waiting.put("high", "high", high_s, priority)
        waiting.put("middle", "middle", low_s, 0)  # the one between them floods as well
        seen.append(waiting.pop())
        spent_s += low_s if seen[-1] == "middle" else high_s
        assert spent_s <= 10 * (2 * low_s) + 10 * high_s
    assert seen[0] == "high"


def test_a_flood_of_low_priority_costs_a_model_nothing_at_a_higher_one():
    waiting = FairQueue()
    for _ in range(100):
        waiting.put("low", "a", 1.0, 0)
    for _ in range(3):
        waiting.put("a", "a", 1.0, 1)
        waiting.put("b", "b", 1.0, 1)
    assert [waiting.pop() for _ in range(4)] == ["a", "b", "a", "b"]


def test_what_was_called_off_is_charged_to_nobody():
    waiting = FairQueue()
    for number in range(100):
        waiting.put(("a", number), "a", 1.0)
    waiting.put(("b", 0), "b", 1.0)
    waiting.remove(lambda item: item[0] == "a")
    waiting.put(("a", 100), "a", 1.0)
    waiting.put(("b", 1), "b", 1.0)
    assert [waiting.pop()[0] for _ in range(3)] == ["b", "a", "b"]


@given(st.lists(MODELS, max_size=30), MODELS)
def test_what_is_removed_does_not_come_and_the_rest_does(models, gone):
    waiting = FairQueue()
    for model in models:
        waiting.put(model, model, 0.01)
    assert waiting.remove(lambda model: model == gone) == [gone] * models.count(gone)
    assert sorted(waiting.pop() for _ in range(len(waiting))) == sorted(model for model in models if model != gone)
