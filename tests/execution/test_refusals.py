"""A request that a healthy target refuses costs nobody else anything; no fallback's guess is passed off as right."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.devices.backend import Source
from edgert.errors import RunFailed
from edgert.execution import refusals
from edgert.execution.pipeline import Pipeline
from edgert.formats import open_model
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import OutputError, Row, Target

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
ORT, OPENVINO, EVALUATOR = (
    Target(name, "cpu:0", "f32", threads) for name, threads in (("onnxruntime", 1), ("openvino", 1), ("reference", 0))
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """y = the rows of a table of 5 that `ids` name: ONNX Runtime and the evaluator refuse a sixth, OpenVINO answers."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    rows = onnx.numpy_helper.from_array(np.arange(1, 11, dtype=np.float32).reshape(5, 2), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])], "table",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ("N",))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("N", 2))], [rows],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("table") / "table.onnx"
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def start(machine_of, foreign):
    """Starts a pipeline of a model on a ladder of targets; ended with the test."""
    made = []
    foreign.FAIL.clear()

    def begin(path, *ladder, reached=()):
        graph = open_model(path).graph
        machine = machine_of(*(reached or dict.fromkeys(target.backend for target in ladder)))
        plan = Plan(
            "digest", machine.fingerprint, {}, "latency", "own", "onnx", "f32", graph.inputs, graph.outputs,
            (Segment(ladder[0]),), (Instance(0),), fallbacks=ladder[1:], verification=Verification("onnx"),
            candidates=tuple(Row(each, "ok", errors=(OutputError("y", 0.0, 0, 99.0, True),)) for each in ladder),
        )  # fmt: skip
        made.append(Pipeline(plan, Source(path, "onnx", graph.inputs, graph.outputs, "f32"), machine, None))
        return made[-1]

    yield begin
    foreign.FAIL.clear()
    for pipeline in made:
        pipeline.close()


def ids(*numbers):
    return {"ids": np.array(numbers, np.int64)}


@pytest.mark.parametrize("before", [1, 0], ids=["after a right request", "first of all"])
def test_what_the_evaluator_refuses_too_is_an_error_and_the_plan_stays(start, table, before):
    pipeline = start(table, ORT, OPENVINO, EVALUATOR)
    for _ in range(before):
        pipeline.run(ids(0, 4))
    with pytest.raises(RunFailed, match=r"onnxruntime.+idx=5"):
        pipeline.run(ids(0, 5))
    made = pipeline.run(ids(0, 4))
    assert (made.targets, made.reason) == ((ORT,), "")
    assert made.outputs["y"].tolist() == [[1, 2], [9, 10]]


def test_it_holds_for_submitted_requests(start, table):
    pipeline = start(table, ORT, OPENVINO, EVALUATOR)
    with pytest.raises(RunFailed, match="idx=5"):
        pipeline.submit(ids(0, 5), lambda made: made).result(60)
    assert pipeline.submit(ids(1), lambda made: made).result(60).targets == (ORT,)


def test_a_fallback_that_the_evaluator_confirms_answers_that_request_alone(start, line, x):
    picky, many = Target("picky", "cpu:0", "f32"), np.ones((9, 4), np.float32)
    pipeline = start(line, picky, ORT, EVALUATOR)
    pipeline.run({"x": x})
    made = pipeline.run({"x": many})
    assert np.array_equal(made.outputs["y"], 2 * many + 1)
    assert (made.targets, made.confirmed) == ((ORT,), True)
    assert "picky@cpu:0/f32 refused this request: foreign: 9 rows are too many" in made.reason
    assert pipeline.run({"x": x}).targets == (picky,)


def test_a_fallback_that_the_evaluator_contradicts_does_not_answer(start, line, x):
    picky, wrong = (Target(name, "cpu:0", "f32") for name in ("picky", "off_by_one_percent"))
    pipeline = start(line, picky, wrong)
    pipeline.run({"x": x})
    made = pipeline.run({"x": np.ones((9, 4), np.float32)})
    assert made.confirmed is False  # nobody to ask: it answers, and does not claim to be right
    pipeline = start(line, picky, wrong, reached=("picky", "off_by_one_percent", "reference"))
    pipeline.run({"x": x})
    with pytest.raises(RunFailed, match="9 rows"):
        pipeline.run({"x": np.ones((9, 4), np.float32)})


def test_a_target_that_is_not_well_is_left_for_good(start, line, x, foreign):
    fickle = Target("fickle", "cpu:0", "f32")
    pipeline = start(line, fickle, ORT)
    foreign.FAIL.set()
    answers = [pipeline.run({"x": x}) for _ in range(refusals._STRIKES)]
    foreign.FAIL.clear()
    assert [made.targets for made in answers] == [(ORT,)] * refusals._STRIKES
    assert pipeline.run({"x": x}).targets == (ORT,)


def test_second_opinions_have_an_end(start, line, x, monkeypatch):
    monkeypatch.setattr(refusals, "_SPEND_LIMIT_S", 0.0)
    pipeline = start(line, Target("picky", "cpu:0", "f32"), ORT)
    pipeline.run({"x": x})
    assert pipeline.run({"x": np.ones((9, 4), np.float32)}).targets == (ORT,)
    with pytest.raises(RunFailed, match="9 rows"):
        pipeline.run({"x": np.ones((9, 4), np.float32)})


def test_the_evaluator_alone_is_not_believed_against_two_libraries(start, line, x):
    picky, fussy = (Target(name, "cpu:0", "f32") for name in ("picky", "fussy"))
    pipeline = start(line, picky, fussy, EVALUATOR)
    pipeline.run({"x": x})
    with pytest.raises(RunFailed, match="9 rows"):
        pipeline.run({"x": np.ones((9, 4), np.float32)})
    pipeline = start(line, picky, EVALUATOR)
    pipeline.run({"x": x})
    made = pipeline.run({"x": np.ones((9, 4), np.float32)})
    assert (made.targets, made.confirmed) == ((EVALUATOR,), False)
