"""Two faults at a time: every request is answered once, and rightly, and nothing of the dead is kept."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from bench.executors import FALLBACK, answer, pipeline_of, write_chain
from edgert.execution.limits import Limits

pytest.importorskip("onnx", reason="the model is written with onnx")
pytest.importorskip("onnxruntime", reason="what answers when no executor does")
STAGES = 3
ENOUGH_S = 120.0
PATIENT = Limits(fewest_hang_s=5.0, lapse_s=5.0, backoff_s=0.01, most_backoff_s=0.1)
"""A loaded machine is no fault; what is stopped is seen by the kernel's word."""


@pytest.fixture
def pipeline(tmp_path):
    """Three stages of 5 ms, whose own way answers."""
    model = write_chain(tmp_path / "chain.onnx", STAGES, 4096)
    made = pipeline_of(model, [5e-3] * STAGES, tmp_path / "parts", limits=PATIENT)
    calm(made)
    yield made
    made.close()


def inputs_of(mark):
    """16 KB: large enough for shared memory."""
    return np.full((1, 4096), mark, np.float32)


def calm(pipeline):
    """Until the plan's own way answers."""
    until_s = time.monotonic() + ENOUGH_S
    while pipeline.run({"x": inputs_of(0)}).reason:
        assert time.monotonic() < until_s, pipeline.events()[-10:]


def strike(pipeline, number, stages):
    """Send a signal to the executors of these stages, one right after the other."""
    pids = {member.place.device: member.pid for member in pipeline.members()}
    for stage in stages:
        os.kill(pids[f"npu:{stage}"], number)


@pytest.mark.parametrize("stages", [(0, 1), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_executors_that_end_together_lose_no_request(pipeline, number, stages):
    answered = []
    futures = []
    for mark in range(30):
        if mark == 10:
            strike(pipeline, number, stages)
        futures.append(pipeline.submit({"x": inputs_of(mark)}, lambda made: made))
        futures[-1].add_done_callback(answered.append)
    for mark, future in enumerate(futures):
        made = future.result(ENOUGH_S)
        assert np.array_equal(made.outputs["y"], answer(inputs_of(mark), STAGES))
        assert made.targets == ((FALLBACK,) if made.reason else pipeline.plan.targets)
    calm(pipeline)
    until_s = time.monotonic() + ENOUGH_S
    while pipeline._fleet.mail.used_bytes() or len(answered) < len(futures):
        assert time.monotonic() < until_s, (pipeline._fleet.mail.used_bytes(), len(answered))
        time.sleep(0.01)
    assert len(answered) == len(futures)


def test_an_executor_that_is_killed_again_while_it_prepares_comes_back(pipeline):
    """Also when it holds nothing yet, or is being tried."""
    for _ in range(4):
        strike(pipeline, signal.SIGKILL, (1,))
        until_s = time.monotonic() + ENOUGH_S
        (member,) = (each for each in pipeline.members() if each.place.device == "npu:1")
        before = member.pid
        while member.pid in (0, before):  # it has just said that it lives
            made = pipeline.run({"x": inputs_of(1)})
            assert np.array_equal(made.outputs["y"], answer(inputs_of(1), STAGES))
            assert time.monotonic() < until_s, pipeline.events()[-10:]
    calm(pipeline)
