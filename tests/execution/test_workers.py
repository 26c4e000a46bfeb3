"""Threads with a bounded queue: order, refusal, deadlines, cancelling."""

from __future__ import annotations

import threading
import time

import pytest

from edgert.errors import Closed, DeadlineExceeded, DeviceLost, Overloaded
from edgert.execution import precedence
from edgert.execution.precedence import Precedence
from edgert.execution.reserve import Reserve
from edgert.execution.workers import Workers


@pytest.fixture
def gate():
    """Work that waits until the test opens it."""
    opened = threading.Event()
    yield opened
    opened.set()


def held(workers, gate, priority=0):
    """Keep the one thread busy; returns when it is."""
    begun = threading.Event()

    def work():
        begun.set()
        gate.wait(60)

    future = workers.submit(work, priority=priority)
    assert begun.wait(60)
    return future


def test_higher_priorities_go_first_and_equals_as_they_came(gate):
    workers, order = Workers(1, "model"), []
    held(workers, gate)
    futures = [
        workers.submit(lambda mark=(priority, number): order.append(mark), priority=priority)
        for number, priority in enumerate((0, 2, 1, 2, 0))
    ]
    gate.set()
    for future in futures:
        future.result(60)
    assert order == [(2, 1), (2, 3), (1, 2), (0, 0), (0, 4)]
    workers.close()


def test_one_too_many_is_refused_and_the_rest_is_done(gate):
    workers = Workers(1, "model", most_waiting=3)
    held(workers, gate)
    futures = [workers.submit(lambda: 1) for _ in range(3)]
    with pytest.raises(Overloaded, match="3 requests wait already") as caught:
        workers.submit(lambda: 1)
    assert caught.value.waiting == 3
    gate.set()
    assert [future.result(60) for future in futures] == [1, 1, 1]
    workers.close()


def test_what_waited_beyond_its_deadline_is_not_done(gate):
    workers, done = Workers(1, "model"), []
    held(workers, gate)
    late = workers.submit(lambda: done.append(1), deadline_s=0.01)
    over_s = time.monotonic() + 0.02
    while time.monotonic() < over_s:
        pass
    gate.set()
    with pytest.raises(DeadlineExceeded) as caught:
        late.result(60)
    assert (caught.value.deadline_s, done) == (0.01, [])
    workers.close()


def test_a_deadline_that_the_measured_pace_cannot_meet_is_refused():
    workers = Workers(1, "model")
    workers.submit(lambda: threading.Event().wait(0.05)).result(60)
    with pytest.raises(Overloaded, match=r"the deadline is in 0\.001 s"):
        workers.submit(lambda: 1, deadline_s=0.001)
    assert workers.submit(lambda: 1, deadline_s=60.0).result(60) == 1
    workers.close()


def test_what_is_cancelled_before_its_turn_is_not_done(gate):
    workers, done = Workers(1, "model"), []
    held(workers, gate)
    future = workers.submit(lambda: done.append(1))
    assert future.cancel()
    gate.set()
    workers.close()
    assert not done


def test_what_was_taken_is_done_before_closing_and_then_nothing_more(gate):
    workers = Workers(2, "model")
    futures = [workers.submit(lambda number=number: number) for number in range(20)]
    workers.close()
    assert [future.result(0) for future in futures] == list(range(20))
    with pytest.raises(Closed):
        workers.submit(lambda: 1)


def test_an_error_comes_out_of_its_own_future_and_the_thread_goes_on():
    workers = Workers(1, "model")
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 / 0).result(60)
    assert workers.submit(lambda: 2).result(60) == 2
    workers.close()


@pytest.fixture
def parties():
    """Models that share so many cores; closed with the test."""
    made = []

    def make(cores, *threads):
        shared = Precedence(cores)
        made.extend(
            Workers(1, f"model {number}", threads=each, precedence=shared) for number, each in enumerate(threads)
        )
        return made

    yield make
    for workers in made:
        workers.close()


def test_a_request_waits_for_higher_ones_of_other_models(parties, gate, monkeypatch):
    monkeypatch.setattr(precedence, "_LEAST_S", 100.0)  # it may be held back for longer than the test takes
    (one, other), order = parties(2, 2, 1), []
    held(one, gate, priority=1)
    low = other.submit(lambda: order.append("low"))
    high = one.submit(lambda: order.append("high"), priority=1)
    assert not other._at_work.total()
    gate.set()
    high.result(60)
    low.result(60)
    assert order == ["high", "low"]


def test_a_request_is_held_back_for_a_while_and_not_for_ever(parties, gate):
    one, other = parties(2, 2, 1)
    held(one, gate, priority=1)
    assert other.submit(lambda: "low").result(60) == "low"


def test_cores_that_higher_requests_leave_free_are_used(parties, gate, monkeypatch):
    monkeypatch.setattr(precedence, "_LEAST_S", 100.0)
    one, other = parties(3, 2, 1)
    held(one, gate, priority=1)
    assert other.submit(lambda: "low").result(60) == "low"


def test_a_higher_request_is_not_held_back_with_a_lower_one_of_its_model(parties, gate, monkeypatch):
    monkeypatch.setattr(precedence, "_LEAST_S", 100.0)
    one, other = parties(2, 2, 1)
    held(one, gate, priority=1)
    low = other.submit(lambda: "low")
    assert other.submit(lambda: "highest", priority=2).result(60) == "highest"
    assert not low.done()
    gate.set()
    assert low.result(60) == "low"


def test_the_lowest_requests_of_a_model_are_not_starved(gate):
    workers, order = Workers(1, "model"), []
    workers.submit(lambda: time.sleep(0.001)).result(60)  # so that it is known what one costs
    held(workers, gate)
    workers.submit(lambda: order.append("low"), priority=-1)
    futures = [workers.submit(lambda: order.append("high"), priority=1) for _ in range(100)]
    gate.set()
    for future in futures:
        future.result(60)
    assert 5 < order.index("low") < 20
    workers.close()


@pytest.fixture
def no_more_threads(monkeypatch):
    """Makes the system start none, as at a limit of processes (which the superuser does not have)."""

    def refuse():
        def start(_thread):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)

    yield refuse
    monkeypatch.undo()


def test_without_a_first_thread_a_request_is_refused_and_nothing_of_it_stays(no_more_threads, monkeypatch):
    workers = Workers(2, "model")
    no_more_threads()
    with pytest.raises(Overloaded, match="can't start new thread"):
        workers.submit(lambda: 1)
    monkeypatch.undo()
    assert workers.submit(lambda: 2).result(60) == 2
    workers.close()


def test_without_more_threads_those_that_there_are_do_it(gate, no_more_threads):
    workers = Workers(2, "model")
    first = held(workers, gate)
    no_more_threads()
    second = workers.submit(lambda: 2)
    gate.set()
    assert (first.result(60), second.result(60)) == (None, 2)
    workers.close()


def test_the_last_resort_answers_without_more_threads(no_more_threads):
    def refused():
        raise DeviceLost("no target prepares.", "")

    reserve, outcomes, done = Reserve(refused, "model", 4), [], threading.Event()
    reserve.hopeless()
    no_more_threads()
    for _ in range(3):
        reserve.run({}, lambda outcome: (outcomes.append(outcome), len(outcomes) == 3 and done.set()), lambda: False)
    assert done.wait(60)
    assert {type(outcome) for outcome in outcomes} == {DeviceLost}
    reserve.close()
