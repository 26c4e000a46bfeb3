"""A request that was shown before its values were there runs once: when they are, or when its message comes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the executor runs it")

from bench.executors import write_chain
from edgert.devices.backend import Source
from edgert.devices.host import source_to_json
from edgert.execution import outgoing
from edgert.execution.arrivals import Arrivals, Job
from edgert.execution.executor import Executor
from edgert.execution.mail import Mail, open_values
from edgert.execution.outgoing import Outgoing
from edgert.execution.promises import Promises
from edgert.formats import open_model
from edgert.machine import Device
from edgert.transport import port
from edgert.transport.messages import Ahead, Done, Free, Leg, Prepare, Prepared, Route, Send, Work

WIDTH = 4096
pytestmark = pytest.mark.skipif(not outgoing.ORDERED, reason="here nothing is shown before its time")


class Ends:
    """A producer and what its reader keeps."""

    def __init__(self):
        self.sender, self.reader = Mail.bound("ipc://*"), Mail.bound("ipc://*")
        self.arrivals = Arrivals(self.reader)
        self.promises = Promises(self.reader, self.arrivals)
        self.arrivals.set_route(1, (Leg("b", ("y",), (), self.sender.endpoint),), "")
        self.outgoing = Outgoing(self.sender)
        self.sends = (Send(self.reader.endpoint, "b", ("y",)),)
        assert self.sender.send(self.reader.endpoint, Work(0, 0, None, 1, "b", {}))  # makes the connection
        assert self.next().request == 0

    def next(self):
        received = self.reader.receive(30.0)
        assert received is not None
        return received[0]

    def begun(self, number):
        """A run whose reader was shown its message; the job, and where to write."""
        job = Job(Work(number, 3, None, 1, "a", {}), Leg("a", (), self.sends, self.sender.endpoint), {}, ())
        self.outgoing.begin(job, ahead=True)
        return job, self.outgoing.place("y", "float32", (WIDTH,))

    def shown(self, number):
        job, place = self.begun(number)
        ahead = self.next()
        assert isinstance(ahead, Ahead)
        self.promises.heard(ahead)
        return job, place

    def is_all_free(self):
        limit_s = time.monotonic() + 30
        while self.sender.used_bytes():
            assert time.monotonic() < limit_s
            received = self.sender.receive(1.0)
            if received is not None:
                self.sender.freed(received[0])
        return True


@pytest.fixture
def ends():
    made = Ends()
    yield made
    made.reader.close()
    made.sender.close()


def test_what_was_promised_is_taken_when_it_is_there_and_its_message_is_passed_over(ends):
    for number in range(1, 20):
        job, place = ends.shown(number)
        assert ends.promises.kept("b") is None
        place[:] = number
        ends.outgoing.hand_on(job, {"y": place}, 0.0)
        taken = ends.promises.kept("b")
        assert (taken.work.request, taken.work.attempt) == (number, 3)
        assert (open_values(ends.reader, taken.values, copy=True)["y"] == number).all()
        assert ends.promises.kept("b") is None
        message = ends.next()
        assert (message.request, message.values) == (number, taken.values)
        assert ends.arrivals.take(message) is None
        assert ends.sender.used_bytes()  # whoever took it reads it still
        ends.reader.release(message.home, message.values)
        assert ends.is_all_free()


def test_what_came_by_itself_is_not_taken_again(ends):
    job, place = ends.shown(1)
    ends.outgoing.hand_on(job, {"y": place}, 0.0)
    message = ends.next()
    ends.promises.came(message)
    assert ends.arrivals.take(message) is not None
    assert ends.promises.kept("b") is None


def test_a_promise_that_its_message_overtook_counts_for_nothing(ends):
    job, place = ends.begun(1)
    ends.outgoing.hand_on(job, {"y": place}, 0.0)
    ahead, message = ends.next(), ends.next()
    assert ends.arrivals.take(message) is not None
    ends.promises.heard(ahead)
    assert ends.promises.kept("b") is None


def test_a_run_that_failed_keeps_no_promise(ends):
    ends.shown(1)
    ends.outgoing.drop()
    assert ends.promises.kept("b") is None
    job, place = ends.shown(2)  # in the same slot
    ends.outgoing.hand_on(job, {"y": place}, 0.0)
    assert ends.promises.kept("b").work.request == 2


def test_outputs_of_another_job_keep_no_promise(ends):
    _, place = ends.shown(1)
    other = Job(Work(2, 0, None, 1, "a", {}), Leg("a", (), ends.sends, ends.sender.endpoint), {}, ())
    ends.outgoing.hand_on(other, {"y": place}, 0.0)
    assert ends.promises.kept("b") is None


def test_what_was_called_off_is_not_taken(ends):
    job, place = ends.shown(1)
    ends.arrivals.call_off(1, 3)
    ends.outgoing.hand_on(job, {"y": place}, 0.0)
    assert ends.promises.kept("b") is None
    assert ends.arrivals.take(ends.next()) is None
    assert ends.is_all_free()


def test_what_is_called_off_after_it_was_taken_is_given_back_once(ends):
    job, place = ends.shown(1)
    ends.outgoing.hand_on(job, {"y": place}, 0.0)
    assert ends.promises.kept("b") is not None
    ends.arrivals.call_off(1, 3)
    assert ends.arrivals.take(ends.next()) is None
    ends.arrivals.set_route(1, (), "")
    assert ends.sender.receive(0.05) is None  # the run that has it gives it back


def test_the_promise_of_a_route_that_is_not_known_yet_waits_for_its_message(ends):
    ends.arrivals = Arrivals(ends.reader)
    ends.promises = Promises(ends.reader, ends.arrivals)
    job, place = ends.shown(1)
    ends.outgoing.hand_on(job, {"y": place}, 0.0)
    assert ends.promises.kept("b") is None
    assert ends.arrivals.take(ends.next()) is None
    (kept,) = ends.arrivals.set_route(1, (Leg("b", ("y",), (), ends.sender.endpoint),), "")
    assert kept.work.request == 1


def test_one_of_several_inputs_waits_for_the_others(ends):
    ends.arrivals.set_route(1, (Leg("b", ("x", "y"), (), ends.sender.endpoint),), "")
    job, place = ends.shown(1)
    ends.outgoing.hand_on(job, {"y": place}, 0.0)
    assert ends.promises.kept("b") is None
    assert ends.arrivals.take(ends.next()) is None
    assert ends.arrivals.take(Work(1, 3, None, 1, "b", {"x": np.zeros(1, np.float32)})) is not None


def test_a_promise_of_memory_that_is_not_there_is_none(ends):
    ends.begun(1)
    ahead = ends.next()
    ends.sender.close()
    ends.promises.heard(ahead)
    assert ends.promises.kept("b") is None


class Watchful(Executor):
    """Watches for what was promised, whenever it has nothing to do."""

    kept = 0

    def __init__(self, *given):
        super().__init__(*given)
        self.heard = threading.Semaphore(0)

    def _take(self, message, peer):
        super()._take(message, peer)
        if type(message) is Ahead:
            self.heard.release()

    def _lookout(self, segment, begin_s, end_s):
        return super()._lookout(segment, time.monotonic(), time.monotonic() + 30)

    def _queue(self, job):
        self.kept += job.work.request in self._promised
        super()._queue(job)

    @property
    def _promised(self):
        return {request for request, _, _ in self._arrivals._ahead}


@pytest.fixture
def executor(ends, tmp_path, monkeypatch):
    monkeypatch.setattr(port, "_WANTED_S", 1e9)
    made = Watchful(Device("cpu:0", "cpu", "this CPU", 0), Mail.bound("ipc://*"))
    monkeypatch.setattr(made._attention, "next", lambda: ("b", 0.0, 0.0) if made._promises._newest else None)
    serving = threading.Thread(target=made.serve)
    serving.start()
    me = ends.sender
    file = open_model(write_chain(tmp_path / "chain.onnx", 1, WIDTH))
    source = Source(file.path, file.format, file.graph.inputs, file.graph.outputs, file.precision)
    me.send(made.endpoint, me.hello("test", 1, {"heartbeat_s": 10.0}, listens=True))
    facts = {
        "source": source_to_json(source), "target": "onnxruntime@cpu:0/f32/1t", "cache": "", "model": "chain",
        "reply": me.endpoint,
    }  # fmt: skip
    me.send(made.endpoint, Prepare(1, "b", facts))
    answer(me, Prepared)
    me.send(made.endpoint, Route(7, (Leg("b", ("x",), (Send(me.endpoint, "", ("y",)),), me.endpoint),)))
    yield made
    made.drain()
    serving.join()


def answer(me, kind):
    """The first of its kind that comes; slots that are given back meanwhile are."""
    while True:
        received = me.receive(30.0)
        assert received is not None
        if type(received[0]) is kind:
            return received[0]
        if type(received[0]) is Free:
            me.freed(received[0])


def test_an_executor_that_watches_runs_it_before_its_message_comes_and_never_twice(ends, executor):
    me = ends.sender
    leg = Leg("a", (), (Send(executor.endpoint, "b", ("x",)),), me.endpoint)
    for number in range(1, 30):
        job = Job(Work(number, 0, None, 7, "a", {}), leg, {}, ())
        ends.outgoing.begin(job, ahead=True)
        place = ends.outgoing.place("x", "float32", (1, WIDTH))
        place[:] = number
        slot, draft = ends.outgoing._slots["x"], ends.outgoing._drafts[0]
        assert executor.heard.acquire(timeout=30)
        slot.publish([executor.endpoint])
        done = answer(me, Done)  # though nothing said that the values are there
        assert done.request == number
        assert (open_values(me, done.values, copy=True)["y"] == number + 1).all()
        me.release(done.home, done.values)
        assert me.post(executor.endpoint, draft)
        ends.outgoing.drop()
    assert executor.kept == 29
    values = {"x": np.full((1, WIDTH), 5, np.float32)}
    home, carried = me.place(executor.endpoint, values)
    me.send(executor.endpoint, Work(1000, 0, None, 7, "b", carried, home))
    assert answer(me, Done).request == 1000  # not one of the messages that came late
