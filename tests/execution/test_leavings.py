"""What the dead leave behind: nothing, at the executors that live on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bench.executors import answer, pipeline_of, write_chain
from edgert.devices.probe import glance
from edgert.execution.executor import Executor
from edgert.execution.limits import Limits
from edgert.execution.mail import Mail
from edgert.transport.endpoints import private_folder
from edgert.transport.messages import Bye, Call, Hello, Leg, Prepare, Route, Send, Welcome
from edgert.transport.sockets import Outbox

pytest.importorskip("onnx", reason="the models are written with onnx")
pytest.importorskip("onnxruntime", reason="what the executor runs")
ENOUGH_S = 120.0
CALLER = """
import sys, time
import numpy as np
from pathlib import Path
from tests.execution.test_external import OTHER, pipeline_at

pipeline = pipeline_at(Path(sys.argv[1]), sys.argv[2])
while pipeline.run({"x": np.ones((1000, 4), np.float32)}).target != OTHER:
    pass
print("answered", flush=True)
time.sleep(3600)
"""


def wait_for(condition):
    until_s = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.fixture
def executor(tmp_path):
    """Of this box's CPU, in a thread of the test, where processes of others find it."""
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    made = Executor(glance().device("cpu:0"), Mail.bound(f"ipc://{folder}/a"))
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    made.drain()
    thread.join(ENOUGH_S)
    assert not thread.is_alive()


def call_from(line, executor):
    """Another application that uses the executor."""
    process = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(line), executor.endpoint], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout.readline() == "answered\n"
    return process


def test_what_a_killed_application_had_prepared_is_released_and_others_keep_theirs(executor, line):
    first, second = call_from(line, executor), call_from(line, executor)
    try:
        assert len(executor._callers) == len(executor._segments) == 2
        first.kill()
        wait_for(lambda: len(executor._callers) == len(executor._segments) == len(executor._arrivals._routes) == 1)
        assert {segment.owner for segment in executor._segments.values()} == set(executor._callers)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
            process.stdout.close()
    wait_for(lambda: not executor._callers and not executor._segments and not executor._arrivals._routes)


def test_an_application_that_says_goodbye_takes_nothing_from_another_of_the_same_name(executor):
    """Process numbers come twice where there are several hosts or containers."""
    ours, other = Outbox(executor.endpoint, patient=True), Outbox(executor.endpoint, patient=True)
    try:
        for life, outbox in enumerate((ours, other)):
            outbox.send(Hello("pipelines of process 7", "", 7, "a host", life, {"heartbeat_s": 0.05}))
        wait_for(lambda: len(executor._callers) == 2)
        ours.send(Bye("pipelines of process 7", 0, "closed"))
        wait_for(lambda: len(executor._callers) == 1)
        assert [hello.life for hello in executor._callers.values()] == [1]
    finally:
        ours.close()
        other.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        Hello("a", "", 1, "a host", 5, {}),
        Hello("a", "", 1, "a host", 5, {"heartbeat_s": "often"}),
        Prepare(1, "a", {}, {}),
        Prepare(1, "a", {"reply": ""}, {}),
        Call(1, "release", {}, {}),
        Call(1, "no such method", {}, {}),
        Route(1, (Leg("a", ("x",), (Send("nowhere", "b", ("y",)),), "nowhere"),)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_orders_that_make_no_sense_end_no_executor(executor, nonsense):
    outbox = Outbox(executor.endpoint, patient=True)
    try:
        outbox.send(nonsense)
        outbox.send(Hello("sane", "", 1, "a host", 6, {"heartbeat_s": 0.05}))
        wait_for(lambda: isinstance(outbox.receive(time.monotonic() + 1), Welcome))
    finally:
        outbox.close()


def test_an_executor_holds_nothing_of_neighbours_that_died(tmp_path):
    """Neither connections nor slots: a day of a flapping device would use them up."""
    limits = Limits(backoff_s=0.01, most_backoff_s=0.01)
    pipeline = pipeline_of(write_chain(tmp_path / "chain.onnx", 2, 4096), [1e-3] * 2, tmp_path, limits=limits)
    inputs = np.ones((1, 4096), np.float32)
    files = []
    try:
        for _ in range(4):
            wait_for(lambda: not pipeline.run({"x": inputs}).reason)
            pids = {member.place.device: member.pid for member in pipeline.members()}
            files.append(len(os.listdir(f"/proc/{pids['npu:0']}/fd")))
            futures = [pipeline.submit({"x": inputs}, lambda made: made) for _ in range(20)]
            os.kill(pids["npu:1"], signal.SIGKILL)
            for future in futures:
                assert np.array_equal(future.result(ENOUGH_S).outputs["y"], answer(inputs, 2))
        wait_for(lambda: not pipeline.run({"x": inputs}).reason)
        wait_for(lambda: len(os.listdir(f"/proc/{pids['npu:0']}/fd")) <= files[0] + 4)
    finally:
        pipeline.close()


def test_a_killed_executor_leaves_no_socket(tmp_path):
    before = set(os.listdir(private_folder()))

    def left():
        return {each.partition(".")[0] for each in set(os.listdir(private_folder())) - before}

    pipeline = pipeline_of(write_chain(tmp_path / "chain.onnx", 1), [1e-3], tmp_path, limits=Limits(backoff_s=0.01))
    try:
        inputs = {"x": np.ones((1, 64), np.float32)}
        (member,) = pipeline.members()
        for _ in range(3):
            while pipeline.run(inputs).reason:
                pass
            sockets = {Path(each.removeprefix("ipc://")).name for each in (member.endpoint, pipeline._fleet.endpoint)}
            wait_for(lambda own=sockets: left() == own)
            os.kill(member.pid, signal.SIGKILL)
    finally:
        pipeline.close()
    assert not left()
