"""`edgert executor`: started by hand, found by its endpoint, drained by SIGTERM, found again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.errors import OptionError
from edgert.execution.fleet import Fleet
from edgert.execution.limits import Limits
from edgert.execution.start import start
from edgert.formats import open_model
from edgert.machine import Device, Reach
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import Target
from edgert.transport.keys import Keyring

PATIENT = Limits(fewest_hang_s=5.0, lapse_s=5.0, backoff_s=0.05, most_backoff_s=0.5)
OTHER = Target("onnxruntime", "npu:0", "f32", 1)
OWN = Target("onnxruntime", "cpu:0", "f32", 1)


@pytest.fixture
def executor(tmp_path, monkeypatch):
    """Starts `edgert executor`; ended with the test."""
    monkeypatch.setenv("EDGERT_KEYS", str(tmp_path / "keys"))
    ring = Keyring()
    public = ring.make().public
    with contextlib.suppress(OptionError):
        ring.allow("self", public)
    made = []

    def run(endpoint):
        command = [
            sys.executable,
            "-c",
            "from edgert.cli import main; main()",
            "-v",
            "executor",
            "--device",
            "cpu:0",
            "--endpoint",
            endpoint,
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        made.append(process)
        for line in process.stderr:
            if "listens at" in line:
                return process, line.split("listens at")[1].strip()
        raise AssertionError("it ended before it listened")

    yield run
    for process in made:
        process.kill()
        process.wait()
        process.stderr.close()


def pipeline_at(line, endpoint, fallbacks=(OWN,), limits=PATIENT):
    graph = open_model(line).graph
    device = Device("npu:0", "npu", "the CPU of an executor", 0, attributes={"executor": endpoint})
    seen = glance()
    machine = dataclasses.replace(
        seen, devices=(*seen.devices, device), reaches=(*seen.reaches, Reach("onnxruntime", "npu:0"))
    )
    plan = Plan(
        "digest", machine.fingerprint, {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs,
        (Segment(OTHER),), (Instance(0),), fallbacks=tuple(fallbacks), verification=Verification("onnx"),
    )  # fmt: skip
    source = Source(line, "onnx", graph.inputs, graph.outputs, "f32")
    return start(plan, source, machine, fleet=Fleet(limits))


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_an_executor_started_by_hand_answers_is_lost_and_found_again(executor, line, tmp_path, transport):
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    process, endpoint = executor(f"ipc://{folder}/a" if transport == "ipc" else "tcp://127.0.0.1:0")
    pipeline = pipeline_at(line, endpoint)
    inputs = np.arange(4000, dtype=np.float32).reshape(-1, 4)
    try:
        made = pipeline.run({"x": inputs})
        assert np.array_equal(made.outputs["y"], 2 * inputs + 1)
        assert (made.target, made.reason) == (OTHER, "")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        made = pipeline.run({"x": inputs})
        assert np.array_equal(made.outputs["y"], 2 * inputs + 1)
        assert made.target == OWN
        executor(endpoint)
        for _ in range(10_000):
            made = pipeline.run({"x": inputs})
            assert np.array_equal(made.outputs["y"], 2 * inputs + 1)
            if made.target == OTHER:
                break
        assert made.target == OTHER, pipeline.events()
    finally:
        pipeline.close()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_what_a_stopped_executor_answers_when_it_goes_on_is_thrown_away(executor, line, tmp_path, transport):
    """It is another's, so it is not killed: it runs what was sent to it as soon as it may."""
    folder = tmp_path / "sockets"
    folder.mkdir(mode=0o700)
    process, endpoint = executor(f"ipc://{folder}/a" if transport == "ipc" else "tcp://127.0.0.1:0")
    pipeline = pipeline_at(line, endpoint)
    try:
        while pipeline.run({"x": np.zeros((1, 4), np.float32)}).target != OTHER:
            pass
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        futures = [pipeline.submit({"x": np.full((500, 4), mark, np.float32)}, lambda made: made) for mark in range(8)]
        for mark, future in enumerate(futures):
            made = future.result(60)
            assert (made.target, np.all(made.outputs["y"] == 2 * mark + 1)) == (OWN, True)
        process.send_signal(signal.SIGCONT)
        for mark in range(10_000):
            made = pipeline.run({"x": np.full((500, 4), mark, np.float32)})
            assert np.all(made.outputs["y"] == 2 * mark + 1)
            if made.target == OTHER:
                break
        assert made.target == OTHER, pipeline.events()
    finally:
        pipeline.close()


@pytest.mark.parametrize("endpoint", ["ipc:///nowhere/a", "tcp://127.0.0.1:1"])
def test_a_plan_whose_executor_is_not_there_runs_on_its_fallback(executor, line, endpoint, x):
    quick = dataclasses.replace(PATIENT, start_s=1.0)
    pipeline = pipeline_at(line, endpoint, limits=quick)
    try:
        made = pipeline.run({"x": x})
        assert np.array_equal(made.outputs["y"], 2 * x + 1)
        assert (made.target, bool(made.reason)) == (OWN, True)
    finally:
        pipeline.close()
