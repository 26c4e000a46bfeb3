"""Threads with a bounded queue: order, refusal, deadlines, cancelling."""

from __future__ import annotations

import threading
import time

import pytest

from edgert.errors import Closed, DeadlineExceeded, Overloaded
from edgert.execution.workers import Workers


@pytest.fixture
def gate():
    """Work that waits until the test opens it."""
    opened = threading.Event()
    yield opened
    opened.set()


def held(workers, gate):
    """Keep the one thread busy; returns when it is."""
    begun = threading.Event()

    def work():
        begun.set()
        gate.wait(60)

    future = workers.submit(work)
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
