"""A plan in execution: when a target fails, the next one answers, and the receipt's facts say so."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from edgert.devices.backend import Source
from edgert.errors import Closed, DeviceLost, RunFailed
from edgert.execution import rungs
from edgert.execution.pipeline import Pipeline
from edgert.formats import open_model
from edgert.machine import Device
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import OutputError, Row, Target
from tests.conftest import open_descriptors

ONE = (Instance(0),)
GPU = Device("gpu:0", "gpu", "a device on paper", 0, driver="1.0")


def target(name):
    backend, _, device = name.partition("@")
    return Target(backend, device or "cpu:0", "f32")


@pytest.fixture
def start(line, machine_of, foreign):
    """Starts a pipeline for targets in the order of their ladder; ended with the test."""
    made = []
    foreign.FAIL.clear()

    def begin(*names, instances=ONE, isolation="auto"):
        graph = open_model(line).graph
        machine = machine_of(*names, devices=(GPU,))
        first, *fallbacks = [target(name) for name in names]
        plan = Plan(
            "digest", machine.fingerprint, {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs,
            (Segment(first),), instances, fallbacks=tuple(fallbacks), verification=Verification("onnx"),
            candidates=(Row(first, "ok", errors=(OutputError("y", 0.0, 0, 99.0, True),)),),
        )  # fmt: skip
        source = Source(line, "onnx", graph.inputs, graph.outputs, "f32")
        made.append(Pipeline(plan, source, machine, None, isolation))
        return made[-1]

    yield begin
    foreign.FAIL.clear()
    for pipeline in made:
        pipeline.close()


def executor_pid(pipeline):
    """The process that owns the device of a pipeline."""
    return pipeline._rungs._remotes[-1].pid


def test_the_plans_target_answers_while_it_can(start, x):
    made = start("right", "onnxruntime").run({"x": x})
    assert np.array_equal(made.outputs["y"], 2 * x + 1)
    assert (made.target, made.reason) == (target("right"), "")


def test_a_target_that_fails_is_replaced_for_good_and_the_reason_is_kept(start, x, foreign):
    pipeline = start("fickle", "onnxruntime", "reference")
    assert pipeline.run({"x": x}).target == target("fickle")
    foreign.FAIL.set()
    first = pipeline.run({"x": x})
    foreign.FAIL.clear()
    second = pipeline.run({"x": x})
    for made in (first, second):
        assert np.array_equal(made.outputs["y"], 2 * x + 1)
        assert made.target == target("onnxruntime")
        assert "fickle@cpu:0/f32 failed: foreign: the device fell off the bus" in made.reason


def test_fallbacks_are_tried_in_turn_until_one_answers(start, x, foreign):
    pipeline = start("fickle", "refuses", "picky", "reference")
    many = np.zeros((9, 4), np.float32)
    foreign.FAIL.set()
    made = pipeline.run({"x": many})  # `refuses` does not prepare, `picky` does not take nine rows
    assert made.target == target("reference")
    assert np.array_equal(made.outputs["y"], 2 * many + 1)


def test_inputs_that_every_target_refuses_are_an_error_and_change_nothing(start, x):
    pipeline = start("picky", "fussy")
    with pytest.raises(RunFailed, match="9 rows are too many"):
        pipeline.run({"x": np.zeros((9, 4), np.float32)})
    made = pipeline.run({"x": x})
    assert (made.target, made.reason) == (target("picky"), "")


def test_a_target_that_does_not_prepare_is_replaced_at_once(start, x):
    made = start("refuses", "no_such_backend", "right").run({"x": x})
    assert made.target == target("right")
    assert "Mul is not known" in made.reason


def test_when_nothing_prepares_the_error_has_each_ones_reason(start):
    with pytest.raises(DeviceLost, match="Mul is not known") as caught:
        start("refuses", "throws")
    assert "throws@cpu:0/f32" in caught.value.message


def test_what_a_library_raises_against_the_rules_is_a_failure_like_others(start, x):
    made = start("throws", "right").run({"x": x})
    assert made.target == target("right")
    assert "oops" in made.reason


def test_requests_of_many_threads_survive_a_failure(start, foreign):
    pipeline = start("fickle", "onnxruntime")
    half = threading.Barrier(5)

    def work(mark):
        inputs = np.full((2, 4), mark, np.float32)
        made = [pipeline.run({"x": inputs}) for _ in range(50)]
        half.wait(30)
        made += [pipeline.run({"x": inputs}) for _ in range(50)]
        return all(np.array_equal(one.outputs["y"], 2 * inputs + 1) for one in made), made[-1].target

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, mark) for mark in range(4)]
        foreign.FAIL.set()
        half.wait(30)
        assert {future.result() for future in futures} == {(True, target("onnxruntime"))}


@pytest.mark.parametrize("attempt", range(5))
def test_two_requests_that_fail_at_once_are_both_answered(start, x, foreign, monkeypatch, attempt):
    both = threading.Barrier(2)

    def run(self, inputs):
        both.wait(30)
        raise RunFailed("foreign: the device fell off the bus.")

    monkeypatch.setattr(foreign.Fickle, "run", run)
    pipeline = start("fickle", "picky", "reference")
    pipeline._current.shared = pipeline._current.all[0][0].run  # as a library that takes several calls at once
    many = np.zeros((9, 4), np.float32)  # too many for `picky`, to which the other request may have moved on
    with ThreadPoolExecutor(2) as pool:
        few, lots = pool.submit(pipeline.run, {"x": x}), pool.submit(pipeline.run, {"x": many})
        assert np.array_equal(few.result(60).outputs["y"], 2 * x + 1)
        assert np.array_equal(lots.result(60).outputs["y"], 2 * many + 1)


def test_answers_of_submit_come_from_a_fallback_too(start, x, foreign):
    pipeline = start("fickle", "onnxruntime")
    foreign.FAIL.set()
    made = pipeline.submit({"x": x}, lambda answer: answer).result(30)
    assert made.target == target("onnxruntime")
    assert made.reason


def test_a_device_that_is_no_cpu_runs_in_a_process_of_its_own(start, x):
    pipeline = start("right@gpu:0", "onnxruntime")
    made = pipeline.run({"x": x})
    assert np.array_equal(made.outputs["y"], 2 * x + 1)
    assert executor_pid(pipeline) not in (None, os.getpid())


def test_without_isolation_it_runs_in_this_one(start, x):
    pipeline = start("right@gpu:0", isolation="none")
    assert pipeline.run({"x": x}).target == target("right@gpu:0")
    assert not pipeline._rungs._remotes


def test_killing_the_executor_between_requests_loses_none(start, x):
    pipeline = start("right@gpu:0", "onnxruntime")
    pipeline.run({"x": x})
    os.kill(executor_pid(pipeline), signal.SIGKILL)
    made = pipeline.run({"x": x})
    assert np.array_equal(made.outputs["y"], 2 * x + 1)
    assert made.target == target("onnxruntime")
    assert "right@gpu:0/f32 failed" in made.reason


def test_an_executor_that_dies_during_a_request_loses_none(start, x):
    pipeline = start("dies_on_demand@gpu:0", "onnxruntime")
    fatal = np.full((1, 4), 666, np.float32)
    made = pipeline.run({"x": fatal})
    assert np.array_equal(made.outputs["y"], 2 * fatal + 1)
    assert "SIGKILL" in made.reason
    assert pipeline.run({"x": x}).target == target("onnxruntime")


def test_an_executor_that_hangs_during_a_request_is_killed_and_loses_none(start, monkeypatch):
    monkeypatch.setattr(rungs, "_FEWEST_HANG_S", 0.5)
    pipeline = start("dies_on_demand@gpu:0", "onnxruntime")
    pid = executor_pid(pipeline)
    fatal = np.full((1, 4), 999, np.float32)
    made = pipeline.run({"x": fatal})
    assert np.array_equal(made.outputs["y"], 2 * fatal + 1)
    assert "no answer to 'run'" in made.reason
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_device_whose_driver_crashes_while_preparing_is_replaced(start, x):
    made = start("crashes_in_prepare@gpu:0", "right").run({"x": x})
    assert made.target == target("right")
    assert "SIGSEGV" in made.reason


def test_a_closed_pipeline_refuses_and_leaves_nothing_behind(start, x, no_child_waits):
    start("right@gpu:0").close()  # imports what a first start imports
    before = open_descriptors()
    pipeline = start("right@gpu:0", "onnxruntime")
    pid = executor_pid(pipeline)
    pipeline.close()
    pipeline.close()
    with pytest.raises(Closed):
        pipeline.run({"x": x})
    with pytest.raises(Closed):
        pipeline.submit({"x": x}, lambda made: made)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert open_descriptors() == before


def test_what_was_submitted_before_closing_is_answered(start, x):
    pipeline = start("slow", "onnxruntime")
    futures = [pipeline.submit({"x": x}, lambda made: made.outputs["y"]) for _ in range(4)]
    pipeline.close()
    assert not wait(futures, 30).not_done
    assert all(np.array_equal(future.result(), 2 * x + 1) for future in futures)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_instances_run_side_by_side_each_on_its_own_cores(start, x, foreign, monkeypatch):
    cores = sorted(os.sched_getaffinity(0))[:2]
    seen, both = {}, threading.Barrier(2)

    def run(self, inputs):
        both.wait(30)  # passes only when both instances run at the same time
        seen[id(self)] = os.sched_getaffinity(0)
        return {"y": 2 * inputs["x"] + 1}

    monkeypatch.setattr(foreign.Line, "run", run)
    pipeline = start("right", instances=(Instance(0, (cores[0],)), Instance(0, (cores[1],))))
    for future in [pipeline.submit({"x": x}, lambda made: made) for _ in range(2)]:
        future.result(60)
    assert sorted(map(sorted, seen.values())) == [[cores[0]], [cores[1]]]
    assert os.sched_getaffinity(0) >= set(cores)


def test_the_callers_thread_is_never_pinned(start, x):
    before = os.sched_getaffinity(0)
    pipeline = start("right", instances=(Instance(0, (min(before),)),))
    pipeline.run({"x": x})
    assert os.sched_getaffinity(0) == before


def test_only_targets_whose_numbers_were_compared_count_as_verified(start):
    pipeline = start("right", "onnxruntime", "reference")
    assert pipeline.verified == {target("right"), target("reference")}


def test_arrays_of_a_result_are_never_overwritten(start, x):
    for name in ("onnxruntime", "right@gpu:0"):
        pipeline = start(name)
        first = pipeline.run({"x": x}).outputs["y"]
        kept = first.copy()
        second = pipeline.run({"x": x + 1}).outputs["y"]
        assert np.array_equal(first, kept)
        first[...] = 0
        assert np.array_equal(second, 2 * (x + 1) + 1)


def test_a_plan_for_a_device_that_is_gone_runs_on_its_fallback(line, machine_of, x):
    graph = open_model(line).graph
    machine = machine_of("right")
    plan = Plan(
        "digest", "", {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs,
        (Segment(target("right@gpu:0")),), (Instance(0),), fallbacks=(target("right"),),
    )  # fmt: skip
    pipeline = Pipeline(plan, Source(line, "onnx", graph.inputs, graph.outputs, "f32"), machine)
    made = pipeline.run({"x": x})
    pipeline.close()
    assert made.target == target("right")
    assert "gpu:0" in made.reason


def test_reasons_of_both_failures_are_told_when_the_fallback_fails_later(start, x, foreign):
    pipeline = start("fickle", "picky", "reference")
    foreign.FAIL.set()
    assert pipeline.run({"x": x}).target == target("picky")
    made = pipeline.run({"x": np.zeros((9, 4), np.float32)})
    assert made.target == target("reference")
    assert "fickle" in made.reason or "picky" in made.reason
