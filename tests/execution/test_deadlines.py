"""A deadline is strict: no value after it, and no `DeadlineExceeded` before it, whatever the loop does meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from bench.executors import answer, pipeline_of, write_chain
from edgert.errors import DeadlineExceeded, to_json
from edgert.execution.limits import Limits
from edgert.transport.messages import Failed

pytest.importorskip("onnx", reason="the model is written with onnx")
pytest.importorskip("onnxruntime", reason="what answers when no executor does")
X = np.ones((1, 64), np.float32)
ENOUGH_S = 120.0
UNHURRIED = Limits(heartbeat_s=10.0, fewest_hang_s=ENOUGH_S, first_run_s=ENOUGH_S, lapse_s=ENOUGH_S)
"""No executor is at fault because it was stopped, or this machine is busy."""


@pytest.fixture
def pipeline(tmp_path):
    """One stage, whose way answers."""
    made = pipeline_of(write_chain(tmp_path / "chain.onnx", 1), [1e-3], tmp_path / "parts", limits=UNHURRIED)
    while made.run({"x": X}).reason:
        pass
    yield made
    made.close()


def stop(pipeline):
    """Its executor; what was sent to it waits."""
    (member,) = pipeline.members()
    os.kill(member.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, member.pid, os.WSTOPPED | os.WNOWAIT)
    return member.pid


def until(moment_s):
    while (left_s := moment_s - time.monotonic()) > 0:
        time.sleep(left_s)


def test_no_answer_ends_it_when_the_deadline_has_passed_and_no_sooner(pipeline):
    pid = stop(pipeline)
    started_s = time.monotonic()
    future = pipeline.submit({"x": X}, lambda made: made, deadline_s=0.3)
    with pytest.raises(DeadlineExceeded) as caught:
        future.result(ENOUGH_S)
    assert time.monotonic() - started_s >= 0.3
    assert caught.value.deadline_s == 0.3
    os.kill(pid, signal.SIGCONT)
    made = pipeline.run({"x": X})
    assert (made.reason, np.array_equal(made.outputs["y"], answer(X, 1))) == ("", True)


def test_an_answer_after_the_deadline_is_none_though_it_comes_before_the_timer(pipeline):
    """The loop takes messages before it looks at timers."""
    pid, blocked, loop = stop(pipeline), threading.Event(), pipeline._fleet.loop
    future = pipeline.submit({"x": X}, lambda made: made, deadline_s=1.0)
    over_s = time.monotonic() + 1.0

    def block():
        blocked.set()
        until(over_s)

    loop.post(block)
    assert blocked.wait(ENOUGH_S)
    os.kill(pid, signal.SIGCONT)  # it answers while the loop is held up
    with pytest.raises(DeadlineExceeded):
        future.result(ENOUGH_S)


def test_a_value_that_was_ready_too_late_is_none(pipeline):
    over_s = time.monotonic() + ENOUGH_S

    def finish(made):
        until(over_s)
        return made

    pid = stop(pipeline)
    future = pipeline.submit({"x": X}, finish, deadline_s=1.0)
    over_s = time.monotonic() + 1.0
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(DeadlineExceeded):
        future.result(ENOUGH_S)


def test_an_executor_that_speaks_of_the_deadline_too_soon_ends_no_request(pipeline):
    pid, dispatcher = stop(pipeline), pipeline._dispatcher
    future = pipeline.submit({"x": X}, lambda made: made, deadline_s=ENOUGH_S)

    def lie():
        (flight,) = dispatcher._flights.values()
        error = to_json(DeadlineExceeded("over.", deadline_s=0.0))
        pipeline._fleet.take(Failed(flight.number, flight.attempt, flight.way.wanted[0].order.name, error))

    pipeline._fleet.loop.post(lie)
    made = future.result(ENOUGH_S)
    assert (made.targets, np.array_equal(made.outputs["y"], answer(X, 1))) == (pipeline.plan.fallbacks, True)
    os.kill(pid, signal.SIGCONT)
