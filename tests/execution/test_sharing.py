"""Several models at one device: one executor for all, fair shares, priorities that beat and starve nobody."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import wait
from dataclasses import replace

import numpy as np
import pytest

from bench.executors import FALLBACK, simulated, write_chain
from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.errors import Overloaded
from edgert.execution import fleet as fleets
from edgert.execution.executor import Executor
from edgert.execution.fleet import Fleet
from edgert.execution.limits import Limits
from edgert.execution.mail import Mail
from edgert.execution.start import start
from edgert.formats import open_model
from edgert.machine import Reach
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import Target

DEVICE = simulated(0, 0.002)
DEEP = Limits(ahead_s=1.0, fewest_hang_s=10.0, lapse_s=10.0, shadow=0.0)
"""All that is asked for lies at the executor, so that its order counts and no pipeline's."""
X = {"x": np.zeros((1, 64), np.float32)}


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Starts a model that adds so many numbers, on the one device; all share the process's executors, or a fleet's."""
    monkeypatch.setattr(fleets, "Fleet", lambda: Fleet(DEEP))
    made = []

    def begin(adds, measured_s=0.002, device=DEVICE, fleet=None):
        path = write_chain(tmp_path / f"{adds}.onnx", adds)
        file, seen = open_model(path), glance()
        graph = file.graph
        machine = replace(seen, devices=(*seen.devices, device), reaches=(Reach("simulated", DEVICE.id),))
        plan = Plan(
            file.digest, machine.fingerprint, {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs,
            (Segment(Target("simulated", DEVICE.id, "f32")),), (Instance(0),), fallbacks=(FALLBACK,),
            verification=Verification("onnx"), measured_s=measured_s,
        )  # fmt: skip
        source = Source(path, "onnx", graph.inputs, graph.outputs, "f32")
        made.append(start(plan, source, machine, tmp_path / f"parts{adds}", fleet=fleet))
        made[-1].run(X)
        return made[-1]

    yield begin
    for pipeline in made:
        pipeline.close()


class Flood:
    """Keeps so many requests of a pipeline under way until the test ends or so many were answered."""

    def __init__(self, pipeline, width, most, priority=0):
        self._pipeline, self._priority, self._left = pipeline, priority, itertools.count(most, -1)
        self.answered, self.begun, self.idle = 0, threading.Event(), threading.Event()
        self._stopped = False
        self._under_way = width
        self._lock = threading.Lock()
        for _ in range(width):
            self._send()

    def _send(self):
        if self._stopped or next(self._left) <= 0:
            with self._lock:
                self._under_way -= 1
                if not self._under_way:
                    self.idle.set()
            return
        self._pipeline.submit(X, lambda made: made, priority=self._priority).add_done_callback(self._done)

    def _done(self, future):
        future.result()
        self.answered += 1
        self.begun.set()
        self._send()

    def stop(self):
        self._stopped = True
        assert self.idle.wait(60)


def test_models_of_a_process_share_the_executor_of_a_device(begin):
    one, other = begin(1), begin(2)
    assert one.members() == other.members()
    assert [each.run(X).outputs["y"][0, 0] for each in (one, other)] == [1, 3]


def test_a_model_with_ten_times_the_requests_gets_no_more_than_its_share(begin):
    loud, quiet = begin(1), begin(2)
    flood = Flood(loud, 40, 4000)
    few = Flood(quiet, 4, 100)
    assert few.idle.wait(60)
    beside = flood.answered
    flood.stop()
    assert few.answered == 100
    assert beside <= 1.5 * few.answered + 20  # some were answered before the few began


def test_processes_with_the_same_model_get_equal_shares_of_an_executor(begin):
    executor = Executor(DEVICE, Mail.bound("ipc://*"))
    serving = threading.Thread(target=executor.serve)
    serving.start()
    try:
        shared = replace(DEVICE, attributes={**DEVICE.attributes, "executor": executor.endpoint})
        loud, quiet = (begin(1, device=shared, fleet=Fleet(DEEP)) for _ in range(2))
        flood = Flood(loud, 40, 4000)
        few = Flood(quiet, 4, 100)
        assert few.idle.wait(60)
        beside = flood.answered
        flood.stop()
        assert beside <= 1.5 * few.answered + 20
    finally:
        executor.drain()
        serving.join(60)


def test_a_higher_priority_goes_before_all_that_lies_at_the_executor(begin):
    one, other = begin(1), begin(2)
    order = []

    def mark(name):
        return lambda made: order.append(name)

    futures = [each.submit(X, mark("low")) for _ in range(30) for each in (one, other)]
    futures.append(other.submit(X, mark("high"), priority=3))
    wait(futures, 60)
    assert order.index("high") < 20


def test_an_endless_flood_of_a_higher_priority_leaves_others_a_tenth(begin):
    loud, quiet = begin(1), begin(2)
    flood = Flood(loud, 20, 5000, priority=1)
    few = Flood(quiet, 2, 10)
    assert few.idle.wait(60)
    beside = flood.answered
    flood.stop()
    assert few.answered == 10
    assert beside < 400  # nine a turn, and what was answered before the few began


def test_a_deadline_that_other_models_would_use_up_is_refused_at_once(begin):
    loud, quiet = begin(1, measured_s=10.0), begin(2, measured_s=10.0)  # the time that admission goes by
    flood = Flood(loud, 40, 4000)
    assert flood.begun.wait(60)
    with pytest.raises(Overloaded, match="would take about 25"):
        quiet.submit(X, lambda made: made, deadline_s=20.0)
    assert quiet.submit(X, lambda made: made, deadline_s=20.0, priority=1).result(60)  # goes before the flood
    flood.stop()
    assert quiet.submit(X, lambda made: made, deadline_s=20.0).result(60)
