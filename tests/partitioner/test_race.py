"""The race: its interval, and that it finds the fastest among noisy, drifting timers."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.partitioner.race import heats, paired_ratio, race

times = st.floats(1e-6, 10.0)
series = st.lists(st.tuples(times, times), min_size=2, max_size=30)


class Track:
    """Timers of known speed on a machine whose own speed wanders and stalls; time passes only when one is called."""

    def __init__(self, speeds, seed, noise=0.03, stalls=0.02):
        self.speeds, self.noise, self.stalls = speeds, noise, stalls
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.visits = []

    def visit(self, name):
        self.visits.append(name)
        drift = 1 + 0.3 * math.sin(self.now_s / 60) + (1.0 if self.rng.random() < self.stalls else 0.0)
        seconds = self.speeds[name] * drift * self.rng.lognormvariate(0, self.noise)
        self.now_s += seconds
        return seconds


@given(series)
def test_the_interval_holds_its_ratio_and_swaps_with_the_series(pairs):
    ones, others = zip(*pairs, strict=True)
    found, swapped = paired_ratio(ones, others), paired_ratio(others, ones)
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(1 / swapped.ratio)
    if found.high < 1e200:
        assert found.low == pytest.approx(1 / swapped.high, rel=1e-6)


@given(series, st.floats(0.01, 100))
def test_what_slows_both_of_a_pair_changes_nothing(pairs, factor):
    ones, others = zip(*pairs, strict=True)
    found = paired_ratio(ones, others)
    drifted = paired_ratio([one * factor for one in ones], [other * factor for other in others])
    assert drifted.ratio == pytest.approx(found.ratio, rel=1e-6)


@given(st.lists(times, min_size=2, max_size=20), st.floats(0.1, 10))
def test_a_constant_ratio_has_a_closed_interval(base, factor):
    found = paired_ratio([factor * time for time in base], base)
    assert (found.low, found.high) == pytest.approx((factor, factor), rel=1e-6)


def test_one_round_proves_nothing():
    found = paired_ratio([2.0], [1.0])
    assert (found.low, found.ratio, found.high) == (0.0, pytest.approx(2.0), math.inf)


def test_the_interval_covers_the_truth_in_95_of_100():
    rng = random.Random(3)
    held = 0
    for _ in range(1000):
        noise = [rng.lognormvariate(0, 0.5) for _ in range(8)]
        found = paired_ratio([1.2 * n * rng.lognormvariate(0, 0.05) for n in noise],
                             [n * rng.lognormvariate(0, 0.05) for n in noise])  # fmt: skip
        held += found.low <= 1.2 <= found.high
    assert 925 <= held <= 975


@pytest.mark.parametrize("seed", range(20))
def test_the_fastest_wins_on_a_drifting_machine(seed):
    track = Track({"a": 1.10, "b": 1.0, "c": 1.3, "d": 4.0}, seed)
    outcome = race(list("abcd"), track.visit, lambda: True, seed=seed)
    assert outcome.standings[0].name == "b"
    assert outcome.certain


def test_the_winner_is_within_the_margin_nearly_always():
    right = 0
    for seed in range(200):
        speeds = {"a": 1.0, "b": 1.015, "c": 1.05, "d": 1.06}
        outcome = race(list("cadb"), Track(speeds, seed).visit, lambda: True, seed=seed)
        right += outcome.standings[0].name in "ab"
    assert right >= 190


def test_only_the_truly_slower_are_dropped():
    lost = 0
    for seed in range(200):
        track = Track({"a": 1.0, "b": 1.0, "c": 1.1}, seed)
        outcome = race(list("abc"), track.visit, lambda: True, margin=1.02, most_rounds=20, seed=seed)
        rounds = {standing.name: len(standing.rounds) for standing in outcome.standings}
        lost += abs(rounds["a"] - rounds["b"]) > 0
    assert lost <= 20  # equal ones are parted by the noise in a few of a hundred races


def test_a_hopeless_candidate_is_visited_four_times():
    track = Track({"a": 1.0, "b": 9.0}, 0)
    race(["a", "b"], track.visit, lambda: True)
    assert track.visits.count("b") == 4


def test_without_more_budget_one_round_is_run():
    track = Track({"a": 1.0, "b": 2.0}, 0, noise=0.001)
    outcome = race(["a", "b"], track.visit, lambda: False)
    assert sorted(track.visits) == ["a", "b"]
    assert outcome.standings[0].name == "a"
    assert not outcome.certain


def test_one_candidate_wins_for_certain():
    outcome = race(["a"], lambda _: 1.0, lambda: True)
    assert (outcome.standings[0].name, outcome.certain) == ("a", True)


def test_a_crash_drops_a_candidate_and_keeps_what_it_showed():
    calls = []

    def visit(name):
        calls.append(name)
        return math.inf if name == "b" and calls.count("b") == 3 else {"a": 1.0, "b": 0.9}[name]

    outcome = race(["a", "b"], visit, lambda: True)
    assert [standing.name for standing in outcome.standings] == ["a", "b"]
    assert outcome.standings[1].rounds == (0.9, 0.9)


def test_nobody_wins_when_all_crash():
    assert race(["a", "b"], lambda _: math.inf, lambda: True).standings == ()


def test_rounds_are_bounded():
    track = Track({"a": 1.0, "b": 1.0}, 1, noise=0.5)
    race(["a", "b"], track.visit, lambda: True, most_rounds=6)
    assert len(track.visits) == 12


def test_everyone_runs_once_in_every_round_in_changing_order():
    track = Track(dict.fromkeys("abcd", 1.0), 1, noise=0.1, stalls=0.0)
    race(list("abcd"), track.visit, lambda: True, most_rounds=4)
    rounds = ["".join(track.visits[start : start + 4]) for start in range(0, 16, 4)]
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 1


def test_the_others_are_ranked_by_their_ratio_to_the_winner():
    outcome = race(list("abc"), Track({"a": 3.0, "b": 1.0, "c": 1.5}, 2).visit, lambda: True)
    assert [standing.name for standing in outcome.standings] == ["b", "c", "a"]
    winner, second, _ = outcome.standings
    assert winner.ratio.ratio == pytest.approx(1.0)
    assert second.ratio.low < 1.5 < second.ratio.high or second.ratio.ratio == pytest.approx(1.5, rel=0.1)


def run_heats(results, disturbed=False):
    """`heats` with given speeds, one mapping a heat; the names that each heat was asked for."""
    asked = []

    def heat(names):
        speeds = results[len(asked)]
        asked.append(set(names))
        track = Track({name: speeds[name] for name in names}, seed=len(asked), stalls=0.0)

        def visit(name):
            return track.visit(name) if math.isfinite(speeds[name]) else math.inf

        return race(list(names), visit, lambda: True)

    outcome = heats(list(results[0]), heat, lambda: len(asked) < len(results), lambda: disturbed)
    return outcome, asked


def test_two_heats_that_agree_end_it():
    outcome, asked = run_heats([{"a": 1.0, "b": 1.1}, {"a": 1.0, "b": 1.1}, {"a": 9.0, "b": 1.0}])
    assert outcome.standings[0].name == "a"
    assert len(asked) == 2


def test_an_unlucky_first_heat_is_overruled_by_what_follows():
    outcome, asked = run_heats([{"a": 1.0, "b": 1.05}, {"a": 1.5, "b": 1.0}, {"a": 1.5, "b": 1.0}])
    assert outcome.standings[0].name == "b"
    assert len(asked) == 3


def test_a_large_loss_in_one_heat_weighs_more_than_two_small_wins():
    outcome, _ = run_heats([{"a": 1.0, "b": 1.05}, {"a": 1.6, "b": 1.0}, {"a": 1.0, "b": 1.05}])
    assert outcome.standings[0].name == "b"


def test_a_clear_order_on_a_quiet_machine_takes_one_heat():
    outcome, asked = run_heats([{"a": 1.0, "b": 1.6}, {"a": 1.0, "b": 1.0}])
    assert [standing.name for standing in outcome.standings] == ["a", "b"]
    assert len(asked) == 1
    assert outcome.certain


def test_other_work_during_a_heat_gives_the_beaten_another_chance():
    outcome, asked = run_heats([{"a": 1.0, "b": 1.6}, {"a": 1.0, "b": 0.5}, {"a": 1.0, "b": 0.5}], disturbed=True)
    assert outcome.standings[0].name == "b"
    assert asked == [{"a", "b"}] * 3


def test_ratios_of_all_heats_are_to_the_overall_winner():
    outcome, asked = run_heats([{"a": 1.0, "b": 1.1, "c": 1.65}, {"a": 1.4, "b": 1.0}, {"a": 1.4, "b": 1.0}])
    ratios = {standing.name: standing.ratio.ratio for standing in outcome.standings}
    assert list(ratios) == ["b", "a", "c"]
    assert ratios["c"] == pytest.approx(1.5, rel=0.05)
    assert asked[1:] == [{"a", "b"}] * 2


def test_a_candidate_that_falls_in_a_later_heat_does_not_win():
    outcome, _ = run_heats([{"a": 1.0, "b": 1.1, "c": 1.1}, {"a": math.inf, "b": 1.0, "c": 1.1}, {"b": 1.0, "c": 1.1}])
    assert outcome.standings[0].name == "b"
