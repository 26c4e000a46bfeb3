"""An executor says that it begins a run, and is ready to start at once when it was told so itself."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the executor runs it")

from bench.executors import write_chain
from edgert.devices.backend import Source
from edgert.devices.host import source_to_json
from edgert.execution.executor import Executor
from edgert.execution.mail import Mail, open_values
from edgert.formats import open_model
from edgert.machine import Device
from edgert.transport.messages import Done, Leg, Prepare, Prepared, Route, Send, Soon, Work

WIDTH = 4096


class Watched(Executor):
    """Counts what it rehearses."""

    rehearsed = 0

    def _rehearse(self, name):
        super()._rehearse(name)
        self.rehearsed += 1


@pytest.fixture
def me():
    made = Mail.bound("ipc://*")
    yield made
    made.close()


@pytest.fixture
def executor(me, tmp_path):
    made = Watched(Device("cpu:0", "cpu", "this CPU", 0), Mail.bound("ipc://*"))
    serving = threading.Thread(target=made.serve)
    serving.start()
    file = open_model(write_chain(tmp_path / "chain.onnx", 1, WIDTH))
    source = Source(file.path, file.format, file.graph.inputs, file.graph.outputs, file.precision)
    me.send(made.endpoint, me.hello("test", 1, {"heartbeat_s": 10.0}, listens=True))
    facts = {
        "source": source_to_json(source), "target": "onnxruntime@cpu:0/f32/1t", "cache": "", "model": "chain",
        "reply": me.endpoint,
    }  # fmt: skip
    me.send(made.endpoint, Prepare(1, "a", facts))
    assert next(message for message in messages(me) if type(message) is Prepared)
    yield made
    made.drain()
    serving.join()


def messages(mail):
    while True:
        received = mail.receive(30.0)
        assert received is not None
        yield received[0]


def given(me, executor, number, *, to):
    """A request for the executor, whose output goes `to` a segment here, or to the caller ('')."""
    me.send(executor.endpoint, Route(7, (Leg("a", ("x",), (Send(me.endpoint, to, ("y",)),), me.endpoint),)))
    values = {"x": np.full((1, WIDTH), number, np.float32)}
    home, carried = me.place(executor.endpoint, values)
    me.send(executor.endpoint, Work(number, 0, None, 7, "a", carried, home))


def until(me, kind):
    """What comes up to and including the first of that kind, without what always comes."""
    came = []
    stream = messages(me)
    while not came or type(came[-1]) is not kind:
        message = next(stream)
        if type(message) in (Soon, Work, Done):
            came.append(message)
    return came


def test_the_next_executor_hears_that_a_run_began_before_its_outputs_come(me, executor):
    given(me, executor, 1, to="b")
    until(me, Work)  # the first message makes the connection, over which hints go
    for number in range(2, 6):
        given(me, executor, number, to="b")
        hint, work = until(me, Work)
        assert hint == Soon(7, "b")
        assert (work.request, work.segment) == (number, "b")
        np.testing.assert_array_equal(open_values(me, work.values, copy=True)["y"], np.full((1, WIDTH), number + 1))
        me.release(work.home, work.values)


def test_a_caller_gets_no_hints(me, executor):
    for number in range(1, 4):
        given(me, executor, number, to="")
        assert [type(each) for each in until(me, Done)] == [Done]


def test_it_rehearses_what_was_foretold_and_answers_right(me, executor):
    number = 0
    while executor.rehearsed < 3:
        assert number < 1000
        number += 1
        me.hint(executor.endpoint, Soon(7, "a"))
        given(me, executor, number, to="")
        (done,) = until(me, Done)
        np.testing.assert_array_equal(open_values(me, done.values, copy=True)["y"], np.full((1, WIDTH), number + 1))
        me.release(done.home, done.values)
