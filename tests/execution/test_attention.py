"""An executor is awake when work is to come, and only then."""

from __future__ import annotations

import pytest

from edgert.execution import attention
from edgert.execution.attention import Attention


@pytest.fixture
def at(monkeypatch):
    """Set what `time.monotonic` gives."""
    now = [1000.0]
    monkeypatch.setattr(attention.time, "monotonic", lambda: now[0])

    def put(now_s):
        now[0] = 1000.0 + now_s

    return put


def serve(attentive, at, *, start_s, gap_s):
    at(start_s)
    attentive.foretold("b")
    at(start_s + gap_s)
    attentive.came("b")


def learned(at, gaps_s):
    attentive = Attention()
    for number, gap_s in enumerate(gaps_s):
        serve(attentive, at, start_s=float(number), gap_s=gap_s)
    at(100.0)
    return attentive


def test_it_sleeps_where_nothing_was_foretold(at):
    assert learned(at, [0.01] * 20).next() is None


def test_it_sleeps_where_it_never_saw_how_long_it_takes(at):
    attentive = Attention()
    attentive.foretold("b")
    assert attentive.next() is None


@pytest.mark.parametrize("gap_s", [50e-6, 0.01, 0.5])
def test_it_watches_around_the_moment_at_which_work_came_before(at, gap_s):
    attentive = learned(at, [gap_s] * 40)
    attentive.foretold("b")
    name, begin_s, end_s = attentive.next()
    assert name == "b"
    assert begin_s < 1100.0 + gap_s < end_s
    assert end_s - begin_s <= max(500e-6, min(2e-3, gap_s / 5)) + 1e-9


def test_it_does_not_watch_where_the_moment_cannot_be_told(at):
    attentive = learned(at, [0.01, 0.2] * 20)
    attentive.foretold("b")
    assert attentive.next() is None


def test_it_does_not_watch_for_what_is_late(at):
    attentive = learned(at, [0.01] * 20)
    attentive.foretold("b")
    at(100.02)
    assert attentive.next() is None


def test_it_does_not_watch_for_what_came(at):
    attentive = learned(at, [0.01] * 20)
    attentive.foretold("b")
    attentive.came("b")
    assert attentive.next() is None


def test_a_hint_that_led_to_nothing_teaches_nothing(at):
    attentive = learned(at, [0.01] * 20)
    serve(attentive, at, start_s=200.0, gap_s=60.0)
    at(300.0)
    attentive.foretold("b")
    assert attentive.next() is not None


def test_what_it_remembers_is_bounded(at):
    attentive = Attention()
    for number in range(5000):
        attentive.foretold(f"segment {number}")
        attentive.came(f"segment {number - 1}")
    assert len(attentive._gaps) + len(attentive._hinted) <= 2 * attention._REMEMBERED
