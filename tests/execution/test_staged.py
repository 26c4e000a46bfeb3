"""Plans through executors: what they answer, and what happens when executors fail."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading

import numpy as np
import pytest

from edgert.devices.backend import Source
from edgert.errors import Closed, DeadlineExceeded, DeviceLost, Overloaded, RunFailed
from edgert.execution.fleet import Fleet
from edgert.execution.limits import Limits
from edgert.execution.start import start
from edgert.formats import open_model
from edgert.machine import Device
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import OutputError, Row, Target
from tests.conftest import open_descriptors

GPU = Device("gpu:0", "gpu", "a device on paper", 0, driver="1.0")
NPU = Device("npu:0", "npu", "another one", 0, driver="1.0")
PATIENT = Limits(fewest_hang_s=5.0, lapse_s=5.0, backoff_s=0.01)
"""A loaded machine is no fault; what hangs is tested with a limit of its own."""


def target(name):
    backend, _, device = name.partition("@")
    return Target(backend, device or "cpu:0", "f32")


@pytest.fixture
def begin(line, machine_of, foreign):
    """Starts a pipeline for targets in the order of their ladder; ended with the test."""
    made = []

    def begin(*names, limits=PATIENT):
        graph = open_model(line).graph
        machine = machine_of(*names, devices=(GPU, NPU))
        first, *fallbacks = [target(name) for name in names]
        plan = Plan(
            "digest", machine.fingerprint, {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs,
            (Segment(first),), (Instance(0),), fallbacks=tuple(fallbacks), verification=Verification("onnx"),
            candidates=(Row(first, "ok", errors=(OutputError("y", 0.0, 0, 99.0, True),)),),
        )  # fmt: skip
        source = Source(line, "onnx", graph.inputs, graph.outputs, "f32")
        made.append(start(plan, source, machine, fleet=Fleet(limits)))
        return made[-1]

    yield begin
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def happens():
    """Waits until a pipeline's log holds an event of that kind; returns it."""

    def wait(pipeline, kind, count=1, timeout_s=60):
        seen = threading.Event()
        found = []

        def look(_event=None):
            found[:] = [event for event in pipeline.events() if event.kind == kind]
            if len(found) >= count:
                seen.set()

        end = pipeline.events.listen(look)
        look()
        assert seen.wait(timeout_s), pipeline.events()
        end()
        return found[count - 1]

    return wait


def pid_of(pipeline, device="gpu:0"):
    return next(member.pid for member in pipeline._fleet._members.values() if member.place.device == device)


UNHURRIED = Limits(heartbeat_s=10.0, fewest_hang_s=60.0, lapse_s=60.0)
"""For an executor that a test stops for a while."""


@contextlib.contextmanager
def stopped(pipeline):
    """Its executor does not run meanwhile, so that what is submitted waits, however long that takes here."""
    pid = pid_of(pipeline)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # the signal takes its time
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_executor_answers_from_a_process_of_its_own(begin, x):
    pipeline = begin("right@gpu:0", "onnxruntime")
    made = pipeline.run({"x": x})
    assert np.array_equal(made.outputs["y"], 2 * x + 1)
    assert (made.target, made.reason) == (target("right@gpu:0"), "")
    assert pid_of(pipeline) not in (0, os.getpid())


def test_a_killed_executor_loses_no_request_and_comes_back(begin, x, happens):
    pipeline = begin("right@gpu:0", "onnxruntime")
    pipeline.run({"x": x})
    pid = pid_of(pipeline)
    os.kill(pid, signal.SIGKILL)
    made = pipeline.run({"x": x})
    assert np.array_equal(made.outputs["y"], 2 * x + 1)
    happens(pipeline, "restored")
    made = pipeline.run({"x": x})
    assert (made.target, made.reason) == (target("right@gpu:0"), "")
    assert pid_of(pipeline) not in (0, pid)


def test_an_executor_that_dies_during_a_request_loses_none(begin, x):
    pipeline = begin("dies_on_demand@gpu:0", "onnxruntime")
    fatal = np.full((1, 4), 666, np.float32)
    made = pipeline.run({"x": fatal})
    assert np.array_equal(made.outputs["y"], 2 * fatal + 1)
    assert made.target == target("onnxruntime")
    assert "SIGKILL" in made.reason


def test_an_executor_that_hangs_during_a_request_is_replaced(begin, happens):
    pipeline = begin("dies_on_demand@gpu:0", "onnxruntime", limits=Limits(fewest_hang_s=0.5, first_run_s=0.5))
    fatal = np.full((1, 4), 999, np.float32)
    made = pipeline.run({"x": fatal})
    assert np.array_equal(made.outputs["y"], 2 * fatal + 1)
    assert made.target == target("onnxruntime")
    assert "nothing was heard" in made.reason  # the library holds the interpreter, so no heartbeat comes


def test_a_stopped_executor_is_replaced(begin, x, happens):
    pipeline = begin("right@gpu:0", "onnxruntime")
    pid = pid_of(pipeline)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # the signal takes its time
    made = pipeline.run({"x": x})
    assert np.array_equal(made.outputs["y"], 2 * x + 1)
    assert made.target == target("onnxruntime")
    assert "was stopped" in made.reason
    happens(pipeline, "restored")
    assert pid_of(pipeline) != pid


def test_a_fallback_that_dies_of_the_same_request_leaves_it_to_the_last_resort(begin, happens):
    pipeline = begin("dies_on_demand@gpu:0", "dies_on_demand@npu:0", "onnxruntime")
    happens(pipeline, "ready", count=2)
    fatal = np.full((1, 4), 666, np.float32)
    made = pipeline.run({"x": fatal})
    assert np.array_equal(made.outputs["y"], 2 * fatal + 1)
    assert made.target == target("onnxruntime")
    assert made.reason.count("SIGKILL") == 2
    happens(pipeline, "restored")
    assert pipeline.run({"x": fatal - 1}).target == target("dies_on_demand@gpu:0")


@pytest.mark.parametrize("name", ["wrong_shape", "wrong_dtype", "no_output"])
def test_what_cannot_be_an_answer_is_never_passed_on(begin, x, name):
    pipeline = begin(f"{name}@gpu:0", "onnxruntime")
    made = pipeline.run({"x": x})
    assert np.array_equal(made.outputs["y"], 2 * x + 1)
    assert made.target == target("onnxruntime")
    assert "garbage" in made.reason


def test_inputs_that_every_target_refuses_are_an_error_and_change_nothing(begin, x):
    pipeline = begin("picky@gpu:0", "fussy")
    with pytest.raises(RunFailed, match="9 rows are too many"):
        pipeline.run({"x": np.zeros((9, 4), np.float32)})
    made = pipeline.run({"x": x})
    assert (made.target, made.reason) == (target("picky@gpu:0"), "")


def test_a_request_that_one_target_refuses_is_answered_by_the_next_and_the_first_stays(begin, x, happens):
    pipeline = begin("picky@gpu:0", "onnxruntime")
    pipeline.run({"x": x})
    many = np.zeros((9, 4), np.float32)
    made = pipeline.run({"x": many})
    assert np.array_equal(made.outputs["y"], 2 * many + 1)
    assert made.target == target("onnxruntime")
    assert "9 rows are too many" in made.reason
    happens(pipeline, "restored")  # tried on a request that it took before
    assert pipeline.run({"x": x}).target == target("picky@gpu:0")


def test_a_second_device_answers_before_the_last_resort(begin, happens):
    pipeline = begin("dies_on_demand@gpu:0", "right@npu:0", "onnxruntime")
    happens(pipeline, "ready", 2)
    fatal = np.full((1, 4), 666, np.float32)
    made = pipeline.run({"x": fatal})
    assert np.array_equal(made.outputs["y"], 2 * fatal + 1)
    assert made.target == target("right@npu:0")


@pytest.mark.parametrize("name", ["refuses@gpu:0", "throws@gpu:0", "crashes_in_prepare@gpu:0", "no_such_backend@gpu:0"])
def test_a_target_that_does_not_prepare_is_passed_over(begin, x, name):
    pipeline = begin(name, "onnxruntime")
    made = pipeline.run({"x": x})
    assert made.target == target("onnxruntime")
    assert made.reason


def test_without_any_way_the_error_has_each_ones_reason(begin):
    with pytest.raises(DeviceLost, match="Mul is not known") as caught:
        begin("refuses@gpu:0")
    assert "no fallback on a CPU" in caught.value.message


def test_several_requests_are_under_way_and_each_gets_its_own_answer(begin):
    pipeline = begin("right@gpu:0", "onnxruntime")
    inputs = [np.full((2, 4), mark, np.float32) for mark in range(100)]
    futures = [pipeline.submit({"x": each}, lambda made: made.outputs["y"]) for each in inputs]
    for each, future in zip(inputs, futures, strict=True):
        assert np.array_equal(future.result(60), 2 * each + 1)


def test_too_many_requests_are_refused_at_once(begin, x):
    pipeline = begin("slow@gpu:0", "onnxruntime", limits=dataclasses.replace(UNHURRIED, waiting=8))
    with stopped(pipeline):
        futures = [pipeline.submit({"x": x}, lambda made: made.outputs["y"]) for _ in range(8)]
        with pytest.raises(Overloaded, match="8 requests wait already") as caught:
            pipeline.submit({"x": x}, lambda made: made)
    assert caught.value.waiting == 8
    assert all(np.array_equal(future.result(60), 2 * x + 1) for future in futures)


def test_a_deadline_that_cannot_be_met_is_refused_or_ends_the_request(begin, x):
    pipeline = begin("slow@gpu:0", "onnxruntime", limits=UNHURRIED)
    with pytest.raises(DeadlineExceeded) as caught:
        pipeline.submit({"x": x}, lambda made: made, deadline_s=0.001).result(60)
    assert caught.value.deadline_s == 0.001
    pipeline.run({"x": x})
    with stopped(pipeline):
        futures = [pipeline.submit({"x": x}, lambda made: made) for _ in range(100)]  # 20 ms each
        with pytest.raises(Overloaded, match="the deadline is in"):
            pipeline.submit({"x": x}, lambda made: made, deadline_s=0.1)
    assert all(future.result(60) for future in futures)


def test_a_cancelled_request_is_not_answered_and_others_are(begin, x):
    pipeline = begin("slow@gpu:0", "onnxruntime", limits=UNHURRIED)
    with stopped(pipeline):
        futures = [pipeline.submit({"x": x}, lambda made: made.outputs["y"]) for _ in range(8)]
        assert futures[5].cancel()
    assert futures[5].cancelled()
    for number, future in enumerate(futures):
        if number != 5:
            assert np.array_equal(future.result(60), 2 * x + 1)
    assert not futures[0].cancel()


def test_a_higher_priority_goes_first(begin, x):
    pipeline = begin("slow@gpu:0", "onnxruntime", limits=UNHURRIED)
    order = []
    with stopped(pipeline):
        futures = [
            pipeline.submit({"x": x}, lambda made, mark=mark: order.append(mark), priority=int(mark == 30))
            for mark in range(31)
        ]
    for future in futures:
        future.result(60)
    assert order.index(30) < 10


def test_a_closed_pipeline_refuses_and_leaves_nothing_behind(begin, x):
    begin("right@gpu:0", "onnxruntime").close()  # imports what a first start imports
    before = open_descriptors()
    pipeline = begin("right@gpu:0", "onnxruntime")
    pid = pid_of(pipeline)
    pipeline.run({"x": x})
    futures = [pipeline.submit({"x": x}, lambda made: made.outputs["y"]) for _ in range(4)]
    pipeline.close()
    pipeline.close()
    assert all(np.array_equal(future.result(0), 2 * x + 1) for future in futures)
    with pytest.raises(Closed):
        pipeline.run({"x": x})
    with pytest.raises(Closed):
        pipeline.submit({"x": x}, lambda made: made)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert open_descriptors() <= before


def test_arrays_of_a_result_are_never_overwritten(begin):
    pipeline = begin("right@gpu:0", "onnxruntime")
    many = np.arange(4000, dtype=np.float32).reshape(1000, 4)  # large enough for shared memory
    first = pipeline.run({"x": many}).outputs["y"]
    kept = first.copy()
    second = pipeline.run({"x": many + 1}).outputs["y"]
    assert np.array_equal(first, kept)
    first[...] = 0
    assert np.array_equal(second, 2 * (many + 1) + 1)


def test_numbers_that_drift_are_seen_and_their_target_is_left(begin, x, happens):
    often = Limits(fewest_hang_s=5.0, lapse_s=5.0, shadow=1.0)
    pipeline = begin("off_by_one_percent@gpu:0", "onnxruntime", limits=often)
    wrong = pipeline.run({"x": x})
    assert wrong.target == target("off_by_one_percent@gpu:0")
    seen = happens(pipeline, "drift")
    assert "off by" in seen.detail or "range" in seen.detail
    made = pipeline.run({"x": x})
    assert np.array_equal(made.outputs["y"], 2 * x + 1)
    assert (made.target, "wrong numbers" in made.reason) == (target("onnxruntime"), True)


def test_right_numbers_do_not_drift(begin, x):
    pipeline = begin("right@gpu:0", "onnxruntime", limits=Limits(fewest_hang_s=5.0, lapse_s=5.0, shadow=1.0))
    for number in range(50):
        assert pipeline.run({"x": x + number}).target == target("right@gpu:0")
    assert pipeline._dispatcher.shadow.checked
    assert "drift" not in {event.kind for event in pipeline.events()}


@pytest.fixture
def fork(tmp_path_factory):
    """y = (x + 1) + (x + 2) + (x + 3): three Adds that can run at once, and one Sum of them."""
    onnx = pytest.importorskip("onnx", reason="the model is written with onnx")
    helper, f32 = onnx.helper, onnx.TensorProto.FLOAT
    constants = [onnx.numpy_helper.from_array(np.float32([number]), f"c{number}") for number in (1, 2, 3)]
    nodes = [helper.make_node("Add", ["x", f"c{n}"], [f"v{n}"], name=f"add{n}") for n in (1, 2, 3)]
    nodes.append(helper.make_node("Sum", ["v1", "v2", "v3"], ["y"], name="sum"))
    infos = {
        name: helper.make_tensor_value_info(name, f32, ("N", 4)) for name in ("x", "y", "v1", "v2", "v3")
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "fork", [infos["x"]], [infos["y"]], constants, value_info=[infos[f"v{n}"] for n in (1, 2, 3)]
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = tmp_path_factory.mktemp("fork") / "fork.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def plan_of(path, segments, instances, machine, **more):
    file = open_model(path)
    graph = file.graph
    crossing = {name for segment in segments for name in (*segment.inputs, *segment.outputs)}
    return Plan(
        file.digest, machine.fingerprint, {}, "throughput", "own", "onnx", "f32", graph.inputs, graph.outputs,
        tuple(segments), tuple(instances), fallbacks=(target("onnxruntime"),), verification=Verification("onnx"),
        values=tuple(graph.values[name] for name in sorted(crossing)), **more,
    )  # fmt: skip


def source_at(path):
    graph = open_model(path).graph
    return Source(path, "onnx", graph.inputs, graph.outputs, "f32")


def test_branches_run_on_different_executors_and_are_joined(fork, machine_of, tmp_path):
    names = ["genuine@gpu:0", "genuine@npu:0", "genuine@npu:1", "genuine@gpu:0"]
    other = Device("npu:1", "npu", "a third one", 0, driver="1.0")
    machine = machine_of(*names, devices=(GPU, NPU, other))
    segments = [Segment(target(names[n - 1]), (f"add{n}",), ("x",), (f"v{n}",)) for n in (1, 2, 3)]
    segments.append(Segment(target(names[3]), ("sum",), ("v1", "v2", "v3"), ("y",)))
    plan = plan_of(fork, segments, [Instance(number) for number in range(4)], machine)
    pipeline = start(plan, source_at(fork), machine, tmp_path, fleet=Fleet(PATIENT))
    try:
        inputs = [np.full((300, 4), mark, np.float32) for mark in range(20)]
        futures = [pipeline.submit({"x": each}, lambda made: made) for each in inputs]
        for each, future in zip(inputs, futures, strict=True):
            made = future.result(60)
            assert np.array_equal(made.outputs["y"], 3 * each + 6)
            assert (made.targets, made.reason) == (plan.targets, "")
        os.kill(pid_of(pipeline, "npu:1"), signal.SIGKILL)
        assert np.array_equal(pipeline.run({"x": inputs[7]}).outputs["y"], 3 * inputs[7] + 6)
    finally:
        pipeline.close()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_replicas_of_a_stage_share_the_requests_and_one_may_die(fork, machine_of, tmp_path, happens):
    cores = sorted(os.sched_getaffinity(0))[:2]
    machine = machine_of("genuine")
    segments = [
        Segment(target("genuine"), ("add1", "add2", "add3"), ("x",), ("v1", "v2", "v3")),
        Segment(target("genuine"), ("sum",), ("v1", "v2", "v3"), ("y",)),
    ]
    instances = [Instance(0, (cores[0],)), Instance(0, (cores[1],)), Instance(1, (cores[1],))]
    plan = plan_of(fork, segments, instances, machine)
    pipeline = start(plan, source_at(fork), machine, tmp_path, fleet=Fleet(PATIENT))
    try:
        happens(pipeline, "started", 2)
        x = np.ones((300, 4), np.float32)
        first, second = (
            next(each for each in pipeline.members() if each.place.cores == (core,)) for core in cores
        )  # fmt: skip
        for member in (first, second):
            assert os.sched_getaffinity(member.pid) == set(member.place.cores)
        for _ in range(50):
            futures = [pipeline.submit({"x": x}, lambda made: made) for _ in range(8)]
            assert all(np.array_equal(future.result(60).outputs["y"], 3 * x + 6) for future in futures)
        runs = [{name.rpartition(".")[2]: held.runs for name, held in each.held.items()} for each in (first, second)]
        assert runs[0]["0"]
        assert runs[1]["0"]
        os.kill(first.pid, signal.SIGKILL)  # the other replica goes on: no request needs the fallback any more
        happens(pipeline, "lost")
        made = pipeline.run({"x": x})
        assert (made.targets, made.reason) == (plan.targets, "")
    finally:
        pipeline.close()


def test_models_share_the_executor_of_a_device_and_it_ends_with_the_last(line, fork, machine_of, x, tmp_path):
    machine = machine_of("genuine@gpu:0", devices=(GPU,))
    pipelines = []
    for path in (line, fork):
        graph = open_model(path).graph
        whole = Segment(target("genuine@gpu:0"), (), ("x",), ("y",))
        plan = plan_of(path, [whole], [Instance(0)], machine)
        assert graph.inputs == plan.inputs
        pipelines.append(start(plan, source_at(path), machine, tmp_path))
    one, other = pipelines
    assert pid_of(one) == pid_of(other)
    assert np.array_equal(one.run({"x": x}).outputs["y"], 2 * x + 1)
    assert np.array_equal(other.run({"x": x}).outputs["y"], 3 * x + 6)
    pid = pid_of(one)
    one.close()
    assert np.array_equal(other.run({"x": x}).outputs["y"], 3 * x + 6)
    other.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_library_that_can_computes_into_shared_memory_and_all_of_it_is_freed(fork, machine_of, tmp_path):
    machine = machine_of("onnxruntime")
    cores = sorted(os.sched_getaffinity(0))[:1]
    segments = [
        Segment(target("onnxruntime"), ("add1", "add2", "add3"), ("x",), ("v1", "v2", "v3")),
        Segment(target("onnxruntime"), ("sum",), ("v1", "v2", "v3"), ("y",)),
    ]
    plan = plan_of(fork, segments, [Instance(number, tuple(cores)) for number in range(2)], machine)
    fleet = Fleet(PATIENT, "inproc")  # in this process, so that its pools can be looked at
    pipeline = start(plan, source_at(fork), machine, tmp_path, fleet=fleet)
    try:
        (member,) = pipeline.members()
        pool = member.thread._mail._pool
        given = []
        take = pool.take
        pool.take = lambda dtype, shape, **more: given.append(shape) or take(dtype, shape, **more)
        pool.put = None  # nothing is copied into it
        for rows in (1000, 1000, 3000, 500):
            x = np.full((rows, 4), rows, np.float32)
            made = pipeline.run({"x": x})
            assert np.array_equal(made.outputs["y"], 3 * x + 6)
            assert made.reason == ""
        assert given
        done = threading.Event()
        fleet.loop.post(done.set)  # after the messages that free the last slots
        assert done.wait(60)
        while pool.used_bytes:  # the executor's own loop reads them in its own time
            assert pipeline.run({"x": np.ones((1, 4), np.float32)}).reason == ""
    finally:
        pipeline.close()
