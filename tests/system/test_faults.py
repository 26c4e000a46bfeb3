"""Every fault at every stage over every transport: each request answered exactly once, none wrong, receipts truthful.

`EDGERT_FAULTS=all` runs the whole matrix, `EDGERT_FAULTS_REPORT` names a file for what each case gave.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgert.devices.backend import Source
from edgert.errors import OptionError
from edgert.execution.fleet import Fleet
from edgert.execution.limits import Limits
from edgert.execution.start import start
from edgert.formats import open_model
from edgert.machine import Device
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import OutputError, Row, Target
from edgert.transport.keys import Keyring
from tests.system.liars import LIES

STAGES = ("first", "middle", "last")
IN_RUN = ("killed", "exits", "hangs", "hangs with the lock", "wrong shape", "device lost")
OUTSIDE = ("SIGKILL", "SIGSTOP")
FAULTS = (*OUTSIDE, *IN_RUN, *LIES)
NEED_A_PROCESS = {"SIGKILL", "SIGSTOP", "killed", "exits", "hangs with the lock", *LIES}
"""A thread cannot be killed apart from its process, nor told to lie by another service."""
EXPECTED = {
    "SIGKILL": ("lost",), "SIGSTOP": ("stopped",), "killed": ("lost",), "exits": ("lost",), "hangs": ("hung",),
    "hangs with the lock": ("stopped",), "wrong shape": ("garbage",), "device lost": ("refused",),
}  # fmt: skip
"""Kinds of events that say what happened; of lies, any."""
LIMITS = Limits(fewest_hang_s=0.5, first_run_s=4.0, lapse_s=1.0, backoff_s=0.01, most_backoff_s=0.05)
FALLBACK = Target("onnxruntime", "cpu:0", "f32")


def cases():
    """All of them, or enough that each fault, each stage and each transport comes several times."""
    chosen = []
    for transport, (row, fault), (column, stage) in itertools.product(
        ("ipc", "tcp", "inproc"), enumerate(FAULTS), enumerate(STAGES)
    ):
        if (transport == "inproc" and fault in NEED_A_PROCESS) or (transport == "tcp" and fault == "stale slot"):
            continue  # over tcp arrays travel in the messages
        everything = os.environ.get("EDGERT_FAULTS") == "all"
        if everything or (row % 3 == column and (transport != "tcp" or fault in ("SIGKILL", "hangs", "wrong name"))):
            chosen.append((transport, fault, stage))
    return chosen


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """y = x + 1 + 2 + 3, but for the first column, which goes through as it is; one Add a stage."""
    onnx = pytest.importorskip("onnx", reason="the model is written with onnx")
    helper, f32 = onnx.helper, onnx.TensorProto.FLOAT
    constants = [
        onnx.numpy_helper.from_array(np.float32([0] + [number] * 3), f"c{number}") for number in (1, 2, 3)
    ]  # fmt: skip
    names = ["x", "a", "b", "y"]
    nodes = [
        helper.make_node("Add", [names[number], f"c{number + 1}"], [names[number + 1]], name=f"add{number}")
        for number in range(3)
    ]
    ends = [helper.make_tensor_value_info(name, f32, ("N", 4)) for name in ("x", "y")]
    middle = [helper.make_tensor_value_info(name, f32, ("N", 4)) for name in ("a", "b")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants, value_info=middle)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = tmp_path_factory.mktemp("chain") / "chain.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """This machine's key pair, in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGERT_KEYS", str(tmp_path_factory.mktemp("keys")))
        ring = Keyring()
        public = ring.make().public
        with contextlib.suppress(OptionError):
            ring.allow("self", public)
        yield


@pytest.fixture(scope="module")
def pipelines(chain, foreign, keys, tmp_path_factory):
    """One for each transport, of three stages; made when first asked for."""
    import dataclasses

    from edgert.devices.probe import glance
    from edgert.machine import Reach

    made = {}
    devices = tuple(Device(f"npu:{number}", "npu", "a device on paper", 0, driver="1.0") for number in range(3))
    seen = glance()
    machine = dataclasses.replace(
        seen, devices=(*seen.devices, *devices),
        reaches=(Reach("onnxruntime", "cpu:0"), *(Reach("treacherous", device.id) for device in devices)),
    )  # fmt: skip
    graph = open_model(chain).graph
    targets = [Target("treacherous", device.id, "f32") for device in devices]
    names = ["x", "a", "b", "y"]
    segments = tuple(
        Segment(target, (f"add{number}",), (names[number],), (names[number + 1],), 1e-4)
        for number, target in enumerate(targets)
    )
    plan = Plan(
        open_model(chain).digest, machine.fingerprint, {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs,
        segments, tuple(Instance(number) for number in range(3)), fallbacks=(FALLBACK,),
        verification=Verification("onnx"),
        candidates=(Row(FALLBACK, "ok", errors=(OutputError("y", 0.0, 0, 99.0, True),)),),
        values=tuple(graph.values[name] for name in names),
    )  # fmt: skip
    source = Source(chain, "onnx", graph.inputs, graph.outputs, "f32")

    def get(transport):
        if transport not in made:
            service = "edgert.execution.executor:Hosted" if transport == "inproc" else "tests.system.liars:Lying"
            fleet = Fleet(LIMITS, transport, service)
            made[transport] = start(plan, source, machine, tmp_path_factory.mktemp("parts"), fleet=fleet)
        return made[transport]

    yield get
    for pipeline in made.values():
        pipeline.close()


def inputs_of(mark):
    return np.full((200, 4), mark, np.float32)  # 3 kB: large enough for shared memory


def answer_to(inputs):
    return inputs + np.float32([0, 6, 6, 6])


class Log:
    """Events of a pipeline from now on."""

    def __init__(self, pipeline):
        self.seen, self._changed = [], threading.Condition()
        self.end = pipeline.events.listen(self._add)

    def _add(self, event):
        with self._changed:
            self.seen.append(event)
            self._changed.notify_all()

    def wait(self, *kinds, timeout_s=60):
        def found():
            return next((event for event in self.seen if event.kind in kinds), None)

        with self._changed:
            assert self._changed.wait_for(found, timeout_s), self.seen
            return found()


def code_of(fault, stage):
    from foreign_backends import TREACHERY

    return 100 * (STAGES.index(stage) + 1) + {**TREACHERY, **LIES}[fault]


@pytest.mark.parametrize(("transport", "fault", "stage"), cases())
def test_each_request_is_answered_once_and_rightly(pipelines, record_property, transport, fault, stage):
    pipeline = pipelines(transport)
    calm(pipeline)
    log = Log(pipeline)
    answers = []
    marks = [7.0] * 10
    if fault not in OUTSIDE:
        marks.insert(5, float(code_of(fault, stage)))
    started_s = time.monotonic()
    futures = []
    for number, mark in enumerate(marks):
        if fault in OUTSIDE and number == 5:
            os.kill(pid_of(pipeline, stage), getattr(signal, fault))
        inputs = inputs_of(mark)
        future = pipeline.submit({"x": inputs}, lambda made: (made, time.monotonic() - started_s))
        future.add_done_callback(answers.append)
        futures.append((future, inputs))
    results = [future.result(60) for future, _ in futures]
    for (made, _), (_, inputs) in zip(results, futures, strict=True):
        assert np.array_equal(made.outputs["y"], answer_to(inputs))
        assert made.targets == ((FALLBACK,) if made.reason else pipeline.plan.targets)
    said = log.wait(*EXPECTED.get(fault, ("garbage", "degraded")))
    log.end()
    calm(pipeline)
    after = pipeline.run({"x": inputs_of(7.0)})
    assert (after.targets, after.reason) == (pipeline.plan.targets, "")
    assert len(answers) <= len(futures)
    report(transport, fault, stage, said, results, time.monotonic() - started_s)


def calm(pipeline):
    """Wait until the plan's own way answers again."""
    deadline_s = time.monotonic() + 60
    while pipeline.run({"x": inputs_of(7.0)}).reason:
        assert time.monotonic() < deadline_s, pipeline.events()[-10:]


def pid_of(pipeline, stage):
    device = f"npu:{STAGES.index(stage)}"
    return next(member.pid for member in pipeline._fleet._members.values() if member.place.device == device)


def report(transport, fault, stage, said, results, whole_s):
    path = os.environ.get("EDGERT_FAULTS_REPORT")
    if path:
        degraded = [made for made, _ in results if made.reason]
        row = {
            "transport": transport, "fault": fault, "stage": stage, "event": said.kind, "detail": said.detail,
            "requests": len(results), "fallback": len(degraded), "slowest_s": max(at_s for _, at_s in results),
            "back_s": whole_s,
        }  # fmt: skip
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
