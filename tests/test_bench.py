"""The referee of `edgert bench`: its statistics, and its race with contenders of known speed."""

from __future__ import annotations

import math
import random
import statistics
from types import SimpleNamespace

import numpy as np
import pytest

from edgert.bench import bench, overall
from edgert.data import path
from edgert.errors import RunFailed
from edgert.race import (
    Entry,
    Interval,
    geomean,
    inverse,
    paired_ratio,
    play_round,
    quantile,
    race,
    student_975,
)


class Known:
    """A contender whose calls take what it is told, times noise that all contenders of a round share."""

    def __init__(self, seconds, weather, seed=0):
        self._seconds, self._weather, self._rng = seconds, weather, random.Random(seed)

    def visit(self, calls, at_most_s):
        return [self._seconds * self._weather.now * self._rng.lognormvariate(0, 0.02) for _ in range(calls)]


class Weather:
    """What slows everyone for a while."""

    now = 1.0


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 11, 20, 50, 200])
def test_student_quantile_agrees_with_scipy(freedom):
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy")
    assert student_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-3)


def test_the_interval_holds_the_true_ratio_in_95_of_100_repetitions():
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(1000):
        noise = rng.lognormal(0, 0.3, 12)  # shared: hits both of a pair
        first = 1.1 * noise * rng.lognormal(0, 0.03, 12)
        interval = paired_ratio(list(first), list(noise * rng.lognormal(0, 0.03, 12)))
        held += interval.low <= 1.1 <= interval.high
    assert 930 <= held <= 970


def test_pairing_takes_shared_noise_out():
    noise = np.random.default_rng(0).lognormal(0, 1.0, 12)
    interval = paired_ratio(list(1.5 * noise), list(noise))
    assert (interval.low, interval.high) == pytest.approx((1.5, 1.5))


def test_rounds_must_be_pairs():
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0, 3.0], [1.0, 2.0])


def test_the_inverse_swaps_the_bounds():
    assert inverse(Interval(2.0, 1.6, 2.5, 9)) == Interval(0.5, 0.4, 0.625, 9)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_quantile_is_the_smallest_value_that_reaches_the_share(share, expected):
    assert quantile(list(range(1, 101)), share) == expected


def test_geomean_of_a_ratio_and_its_inverse_is_one():
    assert geomean([4.0, 0.25]) == pytest.approx(1.0)


def _field(weather):
    speeds = {"chosen": 0.0102, "near": 0.010, "far": 0.013, "hopeless": 0.21, "slow": 0.06}
    entries = [
        Entry(name, "chosen" if name == "chosen" else "candidate", Known(seconds, weather, seed))
        for seed, (name, seconds) in enumerate(speeds.items())
    ]
    return [*entries, Entry("absent", "candidate", None, "refused", "said no")]


def test_the_race_finds_the_rival_and_its_distance():
    outcome = race(_field(Weather()), 0.0, random.Random(1))
    assert outcome.rival is not None
    assert outcome.rival.name == "near"
    interval = paired_ratio(outcome.finals["chosen"], outcome.finals["near"])
    assert interval.low < 1.02 < interval.high
    assert interval.high - interval.low < 0.05


def test_the_final_has_rounds_of_its_own_and_only_finalists():
    outcome = race(_field(Weather()), 0.0, random.Random(1))
    assert set(outcome.finals) == {"chosen", "near"}
    assert len({len(medians) for medians in outcome.finals.values()}) == 1


def test_finalists_are_renewed_before_each_session_but_the_first():
    entries = _field(Weather())
    renewed = []
    for entry in entries:
        entry.renew = lambda again: renewed.append(again.name)
    outcome = race(entries, 1.0, random.Random(1))
    assert renewed == ["chosen", "near"] * 3
    assert len(outcome.sessions) == 4
    assert sum(outcome.sessions) == len(outcome.finals["chosen"])


def test_a_hasty_measurement_has_one_session():
    outcome = race(_field(Weather()), 0.0, random.Random(1))
    assert outcome.sessions == (12,)


def test_luck_of_whole_sessions_widens_the_interval():
    """Two equal programs, one of which is 1.5x slower in two sessions of four: rounds alone would swear to a loss."""
    base = [1.0, 1.01, 0.99] * 4
    other = [*[1.5, 1.52, 1.49] * 2, *base[6:]]
    assert paired_ratio(other, base).low > 1.02
    assert paired_ratio(other, base, [3, 3, 3, 3]).low < 1.0


def test_sessions_that_agree_keep_the_interval_narrow():
    base = [1.0, 1.01, 0.99] * 4
    interval = paired_ratio([1.3 * each for each in base], base, [3, 3, 3, 3])
    assert (interval.low, interval.high) == pytest.approx((1.3, 1.3), rel=1e-6)


def test_a_hopeless_candidate_is_visited_once_and_a_slow_one_twice():
    entries = _field(Weather())
    race(entries, 0.0, random.Random(1))
    by_name = {entry.name: entry for entry in entries}
    assert [len(by_name[name].medians_s) for name in ("hopeless", "slow", "far")] == [1, 2, 3]


def test_a_contender_that_fails_is_out_with_its_reason():
    class Broken:
        calls = 0

        def visit(self, calls, at_most_s):
            self.calls += 1
            if self.calls > 8:
                raise RunFailed("it broke.")
            return [0.001] * calls

    entries = [*_field(Weather()), Entry("broken", "candidate", Broken())]
    outcome = race(entries, 0.0, random.Random(1))
    assert outcome.rival is not None
    broken = entries[-1]
    assert (broken.outcome, broken.reason, broken.contender) == ("crashed", "it broke.", None)


def test_a_race_that_everyone_leaves_ends():
    class Gone:
        def visit(self, calls, at_most_s):
            raise RunFailed("it is gone.")

    outcome = race([Entry("a", "edgert", Gone()), Entry("b", "candidate", Gone())], 3600.0, random.Random(0))
    assert outcome.rival is None


def test_the_order_of_visits_varies():
    order = []

    class Noting:
        def __init__(self, name):
            self._name = name

        def visit(self, calls, at_most_s):
            if not order or order[-1] != self._name:
                order.append(self._name)
            return [0.03] * calls

    entries = [Entry(name, "candidate", Noting(name)) for name in "abc"]
    rng = random.Random(3)
    rounds = []
    for _ in range(12):
        order.clear()
        play_round(entries, rng)
        rounds.append(tuple(order))
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 3


def test_a_quick_target_is_called_often_and_a_slow_one_little_in_a_visit():
    calls_of = {}
    for name, seconds in (("quick", 1e-4), ("slow", 0.5)):
        entry = Entry(name, "candidate", Known(seconds, Weather()))
        entry.take_part(0.02)
        calls_of[name] = len(entry.times_s)
    assert calls_of["quick"] >= 150
    assert calls_of["slow"] == 1


def test_overall_counts_the_choices_that_hold():
    def report(low, speed):
        over = Interval(1.05, low, 1.2, 9)
        return SimpleNamespace(over_rival=over, speedup=None if speed is None else Interval(speed, speed, speed, 9))

    means = overall([report(1.01, 2.0), report(1.03, 8.0), report(0.9, None)])
    assert (means["compared"], means["holds"]) == (3, 2)
    assert math.isclose(means["speedup"], 4.0)
    assert math.isclose(means["best_speedup"], 4.0 * 1.05)


def test_a_median_resists_one_slow_call():
    entry = Entry("x", "candidate", Known(0.01, Weather()))
    entry.take_part(0.02)
    assert entry.medians_s == [statistics.median(entry.times_s)]


@pytest.fixture
def digits():
    pytest.importorskip("onnxruntime", reason="the bundled .onnx needs it")
    pytest.importorskip("onnx", reason="the bundled .onnx needs it")
    return path("digits_f32.onnx")


def test_every_contender_is_timed_in_a_process_of_its_own(digits):
    report = bench(digits, seconds=0.0, targets=["onnxruntime@*"])
    by_role = {row.role: row for row in report.rows}
    assert set(by_role) == {"edgert", "chosen", "candidate", "baseline"}
    assert by_role["chosen"].name == report.chosen
    assert all(row.memory_bytes > 1e6 for role, row in by_role.items() if role != "edgert")
    assert report.over_rival is not None
    assert report.over_rival.rounds >= 12


def test_throughput_is_that_of_all_instances_together(digits):
    report = bench(digits, seconds=0.0, targets=["onnxruntime@cpu:0/f32/1t"], objective="throughput")
    chosen = next(row for row in report.rows if row.role == "chosen")
    assert report.objective == "throughput"
    assert chosen.items_per_s > 0
    assert report.over_rival is None  # nobody else was allowed


def test_progress_only_grows(digits):
    parts = []
    bench(digits, seconds=0.0, targets=["onnxruntime@cpu:0/f32/1t"], progress=lambda _text, part: parts.append(part))
    assert parts == sorted(parts)
    assert 0.0 <= parts[0] < parts[-1] <= 1.0


def test_what_the_planner_never_tried_is_judged_before_it_is_timed(line, machine_of):
    pytest.importorskip("onnxruntime", reason="the answer that is judged by is its own")
    machine = machine_of("onnxruntime", "off_by_one_percent", "right", "refuses", "crashes_in_prepare")
    targets = ["onnxruntime@*", "off_by_one_percent@*", "right@*", "refuses@*", "crashes_in_prepare@*"]
    # Without time to measure, the plan takes the first target that runs and all others are left untried.
    report = bench(line, seconds=0.0, machine=machine, targets=targets, budget_s=0.0)
    outcomes = {row.name.partition("@")[0]: row.outcome for row in report.rows if row.role == "candidate"}
    assert outcomes["right"] == "ok"
    assert outcomes["off_by_one_percent"] == "wrong"
    assert outcomes["refuses"] == "refused"
    assert outcomes["crashes_in_prepare"] in ("refused", "crashed")


def test_a_candidate_that_dies_in_the_race_is_out_and_the_race_goes_on(line, machine_of):
    pytest.importorskip("onnxruntime", reason="somebody has to win")
    report = bench(line, seconds=0.0, machine=machine_of("onnxruntime", "dies_in_race"), budget_s=0.0,
                   targets=["onnxruntime@*", "dies_in_race@*"])  # fmt: skip
    outcomes = {row.name.partition("@")[0]: row.outcome for row in report.rows if row.role == "candidate"}
    assert outcomes["dies_in_race"] != "ok"
    assert next(row for row in report.rows if row.role == "chosen").calls > 0
