"""What a run makes reaches its readers once, whether its message was written before the run or after."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from edgert.errors import StaleSlot
from edgert.execution.arrivals import Arrivals, Job
from edgert.execution.mail import Mail, open_values
from edgert.execution.outgoing import Outgoing
from edgert.transport.messages import Leg, Send, Work


class Line:
    """A producer, a consumer, and a job of the former whose output the latter reads."""

    def __init__(self, scheme, folder):
        names = {"ipc": "ipc://*", "inproc": f"inproc://{folder.name}"}
        self.sender = Mail.bound(names[scheme])
        self.reader = Mail.bound(f"{names[scheme]}.reader" if scheme == "inproc" else names[scheme])
        sends = (Send(self.reader.endpoint, "b", ("y",)),)
        self.leg = Leg("a", (), sends, self.sender.endpoint)
        self.outgoing = Outgoing(self.sender)
        self.sender.reach(self.reader.endpoint)
        self.send(Work(0, 0, None, 1, "b", {}))  # the first message makes the connection
        assert self.next().request == 0

    def send(self, message):
        assert self.sender.send(self.reader.endpoint, message)

    def job(self, number, deadline_s=None):
        return Job(Work(number, 3, deadline_s, 1, "a", {}), self.leg, {}, ())

    def next(self):
        received = self.reader.receive(30.0)
        assert received is not None
        return received[0]

    def taken(self):
        message = self.next()
        assert isinstance(message, Work)
        got = open_values(self.reader, message.values, copy=True)
        self.reader.release(message.home, message.values)
        return message, got["y"]

    def close(self):
        self.reader.close()
        self.sender.close()


@pytest.fixture(params=["ipc", "inproc"])
def line(request, tmp_path):
    made = Line(request.param, tmp_path)
    yield made
    made.close()


def freed(line):
    """Every slot was given back."""
    limit_s = time.monotonic() + 30
    while line.sender.used_bytes():
        assert time.monotonic() < limit_s
        received = line.sender.receive(1.0)
        if received is not None:
            line.sender.freed(received[0])
    return True


@pytest.mark.parametrize("count", [4, 4096])
def test_what_was_written_in_place_arrives(line, count):
    for number in range(1, 20):
        job = line.job(number, time.monotonic() + 100)
        line.outgoing.begin(job)
        place = line.outgoing.place("y", "float32", (count,))
        place[:] = number
        line.outgoing.hand_on(job, {"y": place}, 0.0)
        message, value = line.taken()
        assert (message.request, message.attempt, message.segment) == (number, 3, "b")
        assert 0 < message.deadline_s - time.monotonic() <= 100
        np.testing.assert_array_equal(value, np.full(count, number, np.float32))
    assert freed(line)


def test_what_was_not_written_in_place_arrives(line):
    job = line.job(1)
    line.outgoing.begin(job)
    line.outgoing.place("y", "float32", (4096,))
    line.outgoing.hand_on(job, {"y": np.ones(5000, np.float32)}, 0.0)
    assert line.taken()[1].shape == (5000,)
    assert freed(line)


def test_what_is_placed_twice_arrives_as_it_was_placed_last(line):
    job = line.job(1)
    line.outgoing.begin(job)
    line.outgoing.place("y", "float32", (4096,))[:] = 1
    place = line.outgoing.place("y", "float32", (8192,))
    place[:] = 2
    line.outgoing.hand_on(job, {"y": place}, 0.0)
    assert line.taken()[1].shape == (8192,)
    assert freed(line)


def test_what_a_run_that_failed_left_is_never_read(line):
    job = line.job(1)
    line.outgoing.begin(job)
    line.outgoing.place("y", "float32", (4096,))[:] = 1
    draft = line.outgoing._drafts.get(0)
    line.outgoing.drop()
    assert not line.sender.used_bytes()
    if draft is not None:  # as if it had been sent all the same
        line.send(draft.message)
        with pytest.raises(StaleSlot):
            open_values(line.reader, line.next().values)


def test_a_message_of_another_job_is_not_the_one_that_was_written(line):
    job = line.job(1)
    line.outgoing.begin(job)
    place = line.outgoing.place("y", "float32", (4096,))
    other = replace(job, work=replace(job.work, request=2))
    line.outgoing.hand_on(other, {"y": place}, 0.0)
    assert line.taken()[0].request == 2


def test_to_rehearse_what_came_changes_nothing(line):
    arrivals = Arrivals(line.reader)
    leg = Leg("b", ("y",), (), line.sender.endpoint)
    arrivals.set_route(1, (leg,), "")
    job = line.job(1)
    line.outgoing.begin(job)
    place = line.outgoing.place("y", "float32", (4096,))
    line.outgoing.hand_on(job, {"y": place}, 0.0)
    message = line.next()
    for _ in range(3):
        arrivals.rehearse(message)
        assert line.reader.rehearse(message)["y"].shape == (4096,)
    assert line.sender.used_bytes()  # nobody gave it back
    arrivals.call_off(1, 3)
    arrivals.rehearse(message)
    assert line.sender.receive(0.05) is None
    assert arrivals.take(message) is None  # called off, and given back
    assert freed(line)
