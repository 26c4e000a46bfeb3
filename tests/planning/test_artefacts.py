"""What was compiled for one accelerator travels with the model that it was made from, or is refused."""

from __future__ import annotations

import numpy as np
import pytest

import edgert
from edgert.bundle import read
from edgert.compile import compile_model
from edgert.errors import ModelCorrupt, ModelUnsupported, NoLastResort, OptionError
from edgert.machine import Device

onnx = pytest.importorskip("onnx", reason="the contexts are written with onnx")
NPU = Device("npu:0", "npu", "made up", 0)


def context(folder, *, inputs=("x",), shape=("N", 4), **attributes):
    """A model that is one compiled context, as ONNX Runtime's providers write them."""
    make, info = onnx.helper, onnx.helper.make_tensor_value_info
    node = make.make_node("EPContext", list(inputs), ["y"], name="context", domain="com.microsoft", **attributes)
    graph = make.make_graph(
        [node], "compiled", [info(name, 1, shape) for name in inputs], [info("y", 1, shape)]
    )  # fmt: skip
    opsets = [make.make_opsetid("", 21), make.make_opsetid("com.microsoft", 1)]
    folder.mkdir(exist_ok=True)
    path = folder / "line_ctx.onnx"
    onnx.save(make.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


@pytest.fixture
def compiled(tmp_path):
    """A context whose binary lies beside it, as most are."""
    path = context(tmp_path / "compiled", embed_mode=0, ep_cache_context="line.bin")
    (path.parent / "line.bin").write_bytes(b"for one device")
    return path


@pytest.fixture(scope="module")
def edgetpu(tmp_path_factory):
    """The bundled digits as the Edge TPU's compiler leaves a model: one custom operation."""
    from edgert.data import path
    from edgert.formats.flat import schema

    flatbuffers = pytest.importorskip("flatbuffers")
    try:
        names = schema()
    except edgert.errors.MissingPackage as error:
        pytest.skip(error.message)
    model = names.ModelT.InitFromObj(names.Model.GetRootAs(path("digits_i8.tflite").read_bytes(), 0))
    code, op, (graph,) = names.OperatorCodeT(), names.OperatorT(), model.subgraphs
    code.builtinCode = code.deprecatedBuiltinCode = names.BuiltinOperator.CUSTOM
    code.customCode = b"edgetpu-custom-op"
    op.opcodeIndex, op.inputs, op.outputs = 0, list(graph.inputs), list(graph.outputs)
    model.operatorCodes, graph.operators = [code], [op]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    made = tmp_path_factory.mktemp("coral") / "digits_edgetpu.tflite"
    made.write_bytes(builder.Output())
    return made


@pytest.fixture
def load(machine_of, tmp_path):
    def begin(path, *names, **settings):
        machine = machine_of(*names, devices=(NPU,))
        return edgert.load(path, machine=machine, **{"budget_s": 0.2, "cache_dir": tmp_path / "cache", **settings})

    return begin


# ---- alone


@pytest.mark.parametrize("names", [("right@npu:0", "onnxruntime"), ("onnxruntime",)])
def test_a_context_alone_is_refused_whether_or_not_its_device_is_here(compiled, load, names):
    with pytest.raises(NoLastResort, match=r"holds com\.microsoft::EPContext, .*node 'context'") as caught:
        load(compiled, *names)
    assert "source=" in caught.value.remedy


@pytest.mark.parametrize("budget_s", [0, 0.2])
def test_a_program_for_an_edge_tpu_alone_is_refused(edgetpu, load, budget_s):
    with pytest.raises(NoLastResort, match=r"holds CUSTOM:edgetpu-custom-op, a program for the Edge TPU"):
        load(edgetpu, "litert", budget_s=budget_s)


def test_where_a_tflite_cannot_be_read_its_operation_is_named_all_the_same(edgetpu, load, monkeypatch):
    from edgert.errors import MissingPackage
    from edgert.formats import flat

    def missing():
        raise MissingPackage("no schema here.", "", package="ai-edge-litert")

    monkeypatch.setattr(flat, "schema", missing)
    with pytest.raises(NoLastResort, match=r"CUSTOM:edgetpu-custom-op"):
        load(edgetpu, "litert")


@pytest.mark.parametrize(("name", "start"), [("m.hef", b"\x01HEF"), ("m.bin", b"RKNN"), ("m.dlc", b"PK\x03")])
def test_a_vendor_s_own_file_alone_is_refused_by_name(load, tmp_path, name, start):
    path = tmp_path / name
    path.write_bytes(start + bytes(64))
    with pytest.raises(NoLastResort, match=r"Hailo|Rockchip|Qualcomm"):
        load(path, "onnxruntime")


# ---- with the model that it was made from


def test_the_accelerator_runs_the_context_and_the_cpu_the_source(compiled, line, load, x):
    """`marks` leaves a file beside whatever it is given."""
    with load(compiled, "marks@npu:0", "onnxruntime", "reference", source=line) as model:
        result, plan = model.run(x), model.plan
    np.testing.assert_array_equal(result["y"], 2 * x + 1)
    assert list(compiled.parent.glob("prepared.*"))
    assert not list(line.parent.glob("prepared.*"))
    assert (result.receipt.verified, result.receipt.degraded) == (True, False)
    assert {target.backend for target in (*plan.targets, *plan.fallbacks)} >= {"marks", "onnxruntime"}


def test_a_device_that_dies_leaves_the_answer_to_the_source(compiled, line, load, x):
    with load(compiled, "dies_on_demand@npu:0", "onnxruntime", source=line, targets=["*@npu:0/*", "onnx*"]) as model:
        first = model.plan.targets[0].device
        deadly = np.full_like(x, 666)
        result = model.run(deadly)
        np.testing.assert_array_equal(result["y"], 2 * deadly + 1)
        assert "onnxruntime" in {target.backend for target in (*result.receipt.targets, *model.plan.fallbacks)}
        assert result.receipt.degraded == (first == "npu:0")


def test_a_plan_is_remembered_for_the_pair_and_not_for_the_source_alone(compiled, line, load, x):
    with load(compiled, "right@npu:0", "onnxruntime", source=line) as model:
        pair = model.plan
    with load(compiled, "right@npu:0", "onnxruntime", source=line) as model:
        assert model.plan == pair
        np.testing.assert_array_equal(model.run(x)["y"], 2 * x + 1)
    (compiled.parent / "line.bin").write_bytes(b"compiled again")
    with load(compiled, "right@npu:0", "onnxruntime", source=line) as model:
        assert model.plan.model != pair.model
    with load(line, "right@npu:0", "onnxruntime") as model:
        assert model.plan.model not in (pair.model,)


def test_a_context_with_wrong_numbers_is_out(compiled, line, load, x):
    with load(compiled, "off_by_one_percent@npu:0", "onnxruntime", source=line) as model:
        result = model.run(x)
    assert [target.backend for target in result.receipt.targets] == ["onnxruntime"]
    assert result.receipt.degraded
    assert "line_ctx.onnx" in result.receipt.reason


def test_where_no_backend_reads_the_file_the_source_answers_and_says_why(edgetpu, load):
    from edgert.data import path

    source = path("digits_i8.tflite")
    with load(source, "litert") as model:
        feed = np.ones(list(model.inputs[0].shape), np.int8)
        expected = model.run(feed)
    with load(edgetpu, "litert", source=source) as model:
        result = model.run(feed)
    assert all(np.array_equal(result[name], expected[name]) for name in expected)
    assert result.receipt.degraded
    assert "a program for the Edge TPU, does not run here (no backend here reads it)" in result.receipt.reason


def test_a_blob_s_source_answers_and_says_why(line, load, x, tmp_path):
    path = tmp_path / "line.rknn"
    path.write_bytes(b"RKNN" + bytes(64))
    with load(path, "onnxruntime", source=line) as model:
        receipt = model.run(x).receipt
    assert receipt.degraded
    assert "a program for Rockchip's NPU" in receipt.reason


# ---- in bundles


@pytest.fixture
def packed(compiled, line, machine_of, tmp_path):
    """The bundle, and the machine that it is for."""
    machine = machine_of("marks@npu:0", "onnxruntime", devices=(NPU,))
    with edgert.load(compiled, source=line, machine=machine, budget_s=0.2, cache_dir=tmp_path / "cache") as model:
        plan = model.plan
    from edgert.bundle import write
    from edgert.planning.artefacts import open_artefact
    from edgert.planning.offline import profile_of

    path = tmp_path / "pair.edgert"
    write(path, line, plan, machine, profile_of(plan), artefact=open_artefact(compiled))
    return path, machine


def test_both_travel_in_one_bundle(packed, compiled, line, x, tmp_path):
    path, machine = packed
    names = set(read(path).members)
    assert {"model/model.onnx", "artefact/model.onnx", "artefact/line.bin"} <= names
    with edgert.load(path, machine=machine, cache_dir=tmp_path / "there") as model:
        result = model.run(x)
    np.testing.assert_array_equal(result["y"], 2 * x + 1)
    assert not result.receipt.degraded
    laid = {file.parent.name for file in (tmp_path / "there").rglob("prepared.*")}
    assert laid == ({"artefact"} if result.receipt.targets[0].device == "npu:0" else set())


def test_where_the_accelerator_is_missing_a_bundle_falls_to_the_source(packed, machine_of, x, tmp_path):
    path, _ = packed
    with edgert.load(path, machine=machine_of("onnxruntime"), cache_dir=tmp_path / "there") as model:
        result = model.run(x)
    np.testing.assert_array_equal(result["y"], 2 * x + 1)
    assert [target.backend for target in result.receipt.targets] == ["onnxruntime"]


def test_a_bundle_whose_context_was_changed_is_corrupt(packed, tmp_path):
    path, machine = packed
    content = path.read_bytes()
    assert content.count(b"for one device") == 1
    path.write_bytes(content.replace(b"for one device", b"for one devicf"))
    with pytest.raises(ModelCorrupt, match=r"artefact/line\.bin"):
        edgert.load(path, machine=machine, cache_dir=tmp_path / "there")


def test_what_has_no_artefact_is_written_in_the_first_format(line, machine_of, tmp_path):
    import json
    import zipfile

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGERT_CACHE", str(tmp_path / "cache"))
        made = compile_model(line, tmp_path / "line.edgert", budget_s=0.2, targets=["onnxruntime@*/1t"])
    with zipfile.ZipFile(made.path) as archive:
        assert json.loads(archive.read("edgert.json"))["format"] == 1


# ---- what does not belong together


def test_an_ordinary_model_has_no_source(line, load):
    with pytest.raises(OptionError, match="ordinary model"):
        load(line, "onnxruntime", source=line)


@pytest.mark.parametrize(("inputs", "shape"), [(("z",), ("N", 4)), (("x", "z"), ("N", 4)), (("x",), (1, 4))])
def test_a_context_of_another_model_is_refused_with_the_difference(line, load, tmp_path, inputs, shape):
    path = context(tmp_path / "other", inputs=inputs, shape=shape)
    with pytest.raises(ModelUnsupported, match=r"was not made from .*(input 'z'|input x: float32)"):
        load(path, "right@npu:0", "onnxruntime", source=line)


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/hostname", ""])
def test_a_context_that_leads_out_of_its_folder_is_refused(line, load, tmp_path, place):
    path = context(tmp_path / "hostile", embed_mode=0, ep_cache_context=place)
    with pytest.raises(ModelCorrupt, match="outside the model's folder"):
        load(path, "right@npu:0", "onnxruntime", source=line)


# ---- the command line


@pytest.mark.parametrize("command", ["run", "plan"])
def test_the_commands_take_a_source(compiled, line, monkeypatch, command):
    from typer.testing import CliRunner

    from edgert.cli import app

    asked = []

    def load(path, **arguments):
        asked.append((path, arguments["source"]))
        raise OptionError("enough was seen.")

    monkeypatch.setattr(edgert, "load", load)
    CliRunner().invoke(app, [command, str(compiled), "--source", str(line)])
    assert asked == [(compiled, line)]
