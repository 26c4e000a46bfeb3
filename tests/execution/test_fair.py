"""The fair queue: nothing is lost, first come first served within a model, and no model starves another."""

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
    assert [priority for _, _, priority in out] == sorted((priority for _, _, priority in out), reverse=True)
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


@given(st.lists(MODELS, max_size=30), MODELS)
def test_what_is_removed_does_not_come_and_the_rest_does(models, gone):
    waiting = FairQueue()
    for model in models:
        waiting.put(model, model, 0.01)
    assert waiting.remove(lambda model: model == gone) == [gone] * models.count(gone)
    assert sorted(waiting.pop() for _ in range(len(waiting))) == sorted(model for model in models if model != gone)
