from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgert.errors import ModelCorrupt, ModelNotFound, ModelUnsupported, OptionError
from edgert.formats import digest, open_model
from edgert.formats.onnx_tensors import DTYPES
from tests.formats import models
from tests.formats.models import info, model, save, weights

F32 = TensorProto.FLOAT


def answer(path: Path, feed):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(
        zip(names, session.run(names, {item.name: feed[item.name] for item in session.get_inputs()}), strict=True)
    )


def read(proto, tmp_path):
    return open_model(save(proto, tmp_path / "m.onnx"))


def test_a_chain_is_read_with_its_constants_and_types(tmp_path):
    graph = read(models.chain(), tmp_path).graph
    assert [node.op for node in graph.nodes] == ["MatMul", "Add", "Mul", "Relu"]
    assert set(graph.constants) == {"two", "w", "b"}
    assert graph.constants["two"].read().tolist() == [2.0]
    assert graph.values["c"].shape == ("batch", 400)
    assert graph.values["c"].dtype == "float32"
    assert graph.opsets == {"": 21}


def test_a_constant_cannot_be_written_to(tmp_path):
    array = read(models.chain(), tmp_path).graph.constants["w"].read()
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_subgraphs_say_what_they_capture(tmp_path):
    graph = read(models.control_flow(), tmp_path).graph
    branch, loop = graph.nodes[1:]
    assert branch.captured == ("a", "w")
    assert loop.captured == ("flag", "a")
    assert loop.subgraphs[0].nodes[1].captured == ("s", "a")
    assert loop.inputs == ("n", "", "b")


def test_functions_are_listed_and_called_by_their_full_name(tmp_path):
    graph = read(models.with_function(), tmp_path).graph
    assert graph.nodes[0].op == "local::Quad"
    assert set(graph.functions) == {"local::Double", "local::Quad"}


def test_sequences_and_sparse_constants_keep_their_kind(tmp_path):
    graph = read(models.sequences(), tmp_path).graph
    assert (graph.values["s"].kind, graph.values["s"].dtype) == ("sequence", "float32")
    assert graph.constants["k"].value.kind == "sparse"
    assert graph.constants["k"].read().tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize("code", sorted(DTYPES.keys() & set(TensorProto.DataType.values())))
def test_every_element_type_of_the_standard_is_read_exactly(code, tmp_path):
    dtype = DTYPES[code]
    if dtype == "string":
        tensor = helper.make_tensor("w", code, [3], [b"a", "ä".encode(), b""])
        expected = np.array(["a", "ä", ""], object)
    else:
        numpy_type = np.dtype(getattr(ml_dtypes, dtype, dtype))
        expected = np.ones(3).astype(numpy_type)
        tensor = onnx_ir.to_proto(onnx_ir.Tensor(expected, name="w"))  # an older onnx cannot make them all
    proto = model([helper.make_node("Identity", ["w"], ["y"])], [], [info("y", code, (3,))], [tensor], onnx.IR_VERSION)
    constant = read(proto, tmp_path).graph.constants["w"]
    assert constant.value.dtype == dtype
    assert constant.read().dtype == expected.dtype
    assert constant.read().tolist() == expected.tolist()


def test_careless_node_names_become_unique(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["a"], "n"), helper.make_node("Relu", ["a"], ["b"], "n")]
    nodes += [helper.make_node("Relu", ["b"], ["y"])]
    graph = read(model(nodes, [info("x")], [info("y")]), tmp_path).graph
    assert [node.name for node in graph.nodes] == ["n", "n_1", "y"]


def test_nodes_out_of_order_are_sorted(tmp_path):
    nodes = [helper.make_node("Relu", ["a"], ["y"], "second"), helper.make_node("Abs", ["x"], ["a"], "first")]
    graph = read(model(nodes, [info("x")], [info("y")]), tmp_path).graph
    assert [node.name for node in graph.nodes] == ["first", "second"]


@pytest.mark.parametrize(("ir_version", "optional"), [(3, frozenset()), (10, frozenset({"w"}))])
def test_an_initialiser_that_is_an_input_is_optional_since_ir_4(ir_version, optional, tmp_path):
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    proto = model(nodes, [info("x"), info("w")], [info("y")], [weights("w", 1, 4)], ir_version, opset=8)
    graph = read(proto, tmp_path).graph
    assert [value.name for value in graph.inputs] == ["x"]
    assert graph.optional_inputs == optional
    assert "w" in graph.constants


def test_a_constant_node_that_is_an_output_stays_a_node(tmp_path):
    node = helper.make_node("Constant", [], ["y"], value_ints=[1, 2])
    graph = read(model([node], [], [info("y", TensorProto.INT64, (2,))]), tmp_path).graph
    assert [node.op for node in graph.nodes] == ["Constant"]


def half():
    return model(
        [helper.make_node("Relu", ["x"], ["y"])], [info("x", TensorProto.FLOAT16)], [info("y", TensorProto.FLOAT16)]
    )


@pytest.mark.parametrize(("make", "expected"), [(models.chain, "f32"), (models.qdq, "i8"), (half, "f16")])
def test_precision_is_the_models_own(make, expected, tmp_path):
    assert read(make(), tmp_path).precision == expected


def test_weights_that_are_only_stored_as_integers_do_not_make_a_model_quantised(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.int8([1, 2, 3, 4]), "w"), numpy_helper.from_array(np.float32(1), "s")]
    assert read(model(nodes, [info("x")], [info("y")], constants), tmp_path).precision == "f32"


# --- writing


def groups_of(reads, wishes):
    """A group for each node such that values flow to equal or later groups only: then each group is convex."""
    groups = []
    for (a, b), wish in zip(reads, wishes, strict=True):
        below = [groups[index - 1] for index in (a, b) if index > 0]
        groups.append(max([wish, *below]))
    return groups


@st.composite
def cut_graphs(draw):
    count = draw(st.integers(2, 12))
    reads = [(draw(st.integers(0, index)), draw(st.integers(0, index))) for index in range(count)]
    return reads, groups_of(reads, draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))


def compose(source, graph_groups, feed, folder, run):
    """The answer of a model's parts, each written, opened and run in turn."""
    have = dict(feed)
    for group in sorted(set(graph_groups)):
        path = folder / f"{group}.{source.format}"
        nodes = [node.name for node, own in zip(source.graph.nodes, graph_groups, strict=True) if own == group]
        inputs, outputs = source.write(nodes, path)
        part = open_model(path).graph
        assert tuple(value.name for value in part.inputs) == inputs
        assert tuple(value.name for value in part.outputs) == outputs
        if outputs:  # a part that nothing reads and that makes no output is valid, but says nothing
            have |= run(path, have)
    return have


@settings(max_examples=25, deadline=None)
@given(cut_graphs())
def test_parts_composed_give_the_whole_models_answer(tmp_path_factory, case):
    reads, groups = case
    folder = tmp_path_factory.mktemp("parts")
    path = save(models.random_onnx(reads), folder / "whole.onnx")
    feed = {"x": np.float32([[1, 2, 3, 4]])}
    got = compose(open_model(path), groups, feed, folder, answer)
    for name, expected in answer(path, feed).items():
        np.testing.assert_array_equal(got[name], expected)


@pytest.mark.parametrize(
    "make", [models.chain, models.control_flow, models.with_function, models.qdq, models.sequences]
)
def test_each_node_alone_composes_to_the_whole(make, tmp_path):
    path = save(make(), tmp_path / "whole.onnx")
    source = open_model(path)
    feed = {"x": np.float32([[1, -2, 3, 4]]), "flag": np.asarray(True)}
    got = compose(source, range(len(source.graph.nodes)), feed, tmp_path, answer)
    for name, expected in answer(path, feed).items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-6)


def test_all_nodes_keep_the_models_own_inputs_and_outputs(tmp_path):
    proto = model([helper.make_node("Relu", ["b"], ["y"])], [info("unused"), info("b")], [info("y"), info("unused")])
    source = read(proto, tmp_path)
    assert source.write(["y"], tmp_path / "w.onnx") == (("unused", "b"), ("y", "unused"))
    assert open_model(tmp_path / "w.onnx").graph.inputs == source.graph.inputs


def test_a_set_that_is_not_convex_is_refused(tmp_path):
    source = read(models.chain(), tmp_path)
    with pytest.raises(OptionError, match="not convex"):
        source.write(["mm", "mul"], tmp_path / "w.onnx")


@pytest.mark.parametrize("nodes", [["nobody"], []])
def test_unknown_or_no_nodes_are_refused(nodes, tmp_path):
    with pytest.raises(OptionError):
        read(models.chain(), tmp_path).write(nodes, tmp_path / "w.onnx")


def test_a_cut_through_a_value_of_unknown_type_is_refused_by_name(tmp_path):
    nodes = [helper.make_node("Mystery", ["x"], ["m"], domain="other"), helper.make_node("Relu", ["m"], ["y"])]
    source = read(model(nodes, [info("x")], [info("y")], domains=["other"]), tmp_path)
    with pytest.raises(ModelUnsupported, match="'m'"):
        source.write(["y"], tmp_path / "w.onnx")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(OptionError):
        read(models.chain(), tmp_path).write(["mm"], tmp_path / "absent" / "w.onnx")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.onnx"]


# --- external data


def test_external_data_is_mapped_and_a_written_part_brings_its_own(tmp_path):
    source = open_model(models.external(tmp_path))
    np.testing.assert_array_equal(source.graph.constants["w"].read(), weights_of(models.chain(), "w"))
    other = tmp_path / "elsewhere"
    other.mkdir()
    source.write(["mm", "add"], other / "p.onnx")
    feed = {"x": np.float32([[1, 2, 3, 4]])}
    whole = answer(source.path, feed)["y"]
    (tmp_path / "weights.bin").unlink()
    part = answer(other / "p.onnx", feed)["c"]
    np.testing.assert_allclose(np.maximum(part * 2, 0), whole, rtol=1e-6)


def test_shapes_that_lie_in_external_data_take_part_in_inference(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["r"]), helper.make_node("Relu", ["r"], ["y"])]
    shape = numpy_helper.from_array(np.int64([2, 2]), "shape")
    proto = model(nodes, [info("x")], [info("y", shape=(2, 2))], [shape])
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert open_model(path).graph.values["r"].shape == (2, 2)


def weights_of(proto, name):
    return next(numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == name)


def test_the_digest_covers_external_data(tmp_path):
    path = models.external(tmp_path)
    before = digest(path)
    assert open_model(path).digest == before
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert digest(path) != before


def test_a_model_beyond_2_gib_is_mapped_not_read(tmp_path):
    rows = 550_000_000
    tensor = TensorProto(name="w", data_type=F32, dims=[rows], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "big.bin"), ("offset", "0"), ("length", str(4 * rows))):
        tensor.external_data.add(key=key, value=value)
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(4 * rows)  # sparse: takes no space
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"])]
    index = info("i", TensorProto.INT64, (1,))
    source = read(model(nodes, [index], [info("y", shape=(1,))], [tensor]), tmp_path)
    array = source.graph.constants["w"].read()
    assert array.shape == (rows,)
    assert array[-1] == 0


def point_elsewhere(tmp_path, location):
    path = models.external(tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return save(proto, path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../x", "", "C:\\x", "..\\x", "."])
def test_external_data_outside_the_folder_is_corrupt(location, tmp_path):
    with pytest.raises(ModelCorrupt, match="folder"):
        open_model(point_elsewhere(tmp_path, location))


def test_external_data_through_a_link_that_leads_out_is_corrupt(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(10_000))
    inner = tmp_path / "inner"
    inner.mkdir()
    path = point_elsewhere(inner, "link.bin")
    (inner / "link.bin").symlink_to(secret)
    for action in (open_model, digest):
        with pytest.raises(ModelCorrupt, match=r"link\.bin"):
            action(path)


def test_missing_external_data_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"gone\.bin"):
        open_model(point_elsewhere(tmp_path, "gone.bin"))


def test_truncated_external_data_is_corrupt(tmp_path):
    path = models.external(tmp_path)
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(ModelCorrupt, match="100"):
        open_model(path)


# --- bad content


def huge_constant():
    tensor = TensorProto(name="w", data_type=F32, dims=[1 << 40, 1 << 40], raw_data=b"1234")
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [info("x")], [info("y")], [tensor])


def big_constant():
    tensor = TensorProto(name="w", data_type=F32, dims=[1 << 30], raw_data=b"1234")
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [info("x")], [info("y")], [tensor])


def negative_constant():
    tensor = TensorProto(name="w", data_type=F32, dims=[-1], raw_data=b"")
    return model([helper.make_node("Add", ["x", "w"], ["y"])], [info("x")], [info("y")], [tensor])


def huge_input():
    return model([helper.make_node("Relu", ["x"], ["y"])], [info("x", shape=(1 << 40, 1 << 40))], [info("y")])


def double_write():
    nodes = [helper.make_node("Relu", ["x"], ["y"], "one"), helper.make_node("Abs", ["x"], ["y"], "two")]
    return model(nodes, [info("x")], [info("y")])


def from_nowhere():
    return model([helper.make_node("Add", ["x", "ghost"], ["y"], "n")], [info("x")], [info("y")])


def twin_inputs():
    return model([helper.make_node("Relu", ["x"], ["y"])], [info("x"), info("x")], [info("y")])


def no_such_output():
    return model([helper.make_node("Relu", ["x"], ["y"])], [info("x")], [info("ghost")])


def self_calling():
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    nodes = [helper.make_node("F", ["i"], ["o"], domain="local")]
    function = helper.make_function("local", "F", ["i"], ["o"], nodes, opsets)
    nodes = [helper.make_node("F", ["x"], ["y"], domain="local")]
    return model(nodes, [info("x")], [info("y")], functions=[function], domains=["local"])


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (models.cyclic, "'first'"), (huge_constant, "'w'"), (big_constant, "'w'"), (negative_constant, "'w'"),
        (huge_input, "'x'"), (double_write, "'two'"), (from_nowhere, "'ghost'"), (no_such_output, "'ghost'"),
        (self_calling, "local::F"), (twin_inputs, "'x'"),
    ],
)  # fmt: skip
def test_a_hostile_graph_is_corrupt_and_its_culprit_named(make, culprit, tmp_path):
    with pytest.raises(ModelCorrupt, match=culprit):
        read(make(), tmp_path)


def test_functions_that_double_each_other_cost_no_time(tmp_path):
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    functions = [helper.make_function("local", "F0", ["i"], ["o"], [helper.make_node("Relu", ["i"], ["o"])], opsets)]
    for level in range(1, 40):
        calls = [helper.make_node(f"F{level - 1}", [a], [b], domain="local") for a, b in (("i", "m"), ("m", "o"))]
        functions.append(helper.make_function("local", f"F{level}", ["i"], ["o"], calls, opsets))
    nodes = [helper.make_node("F39", ["x"], ["m"], domain="local"), helper.make_node("Relu", ["m"], ["y"])]
    graph = read(model(nodes, [info("x")], [info("y")], functions=functions, domains=["local"]), tmp_path).graph
    assert graph.values["m"].dtype is None  # 2**40 nodes: inference was skipped


def test_a_newer_ir_version_is_unsupported(tmp_path):
    proto = models.chain()
    proto.ir_version = onnx.IR_VERSION + 1
    with pytest.raises(ModelUnsupported, match="IR version"):
        read(proto, tmp_path)


def test_a_newer_operator_set_is_unsupported(tmp_path):
    proto = models.chain()
    proto.opset_import[0].version = 10_000
    with pytest.raises(ModelUnsupported, match="10000"):
        read(proto, tmp_path)


def test_reading_needs_no_library_that_runs_models(tmp_path):
    path = save(models.chain(), tmp_path / "m.onnx")
    code = (
        "import sys; from edgert.formats import digest, open_model; assert 'onnx' not in sys.modules;"
        f"digest({str(path)!r}); assert 'onnx' not in sys.modules; open_model({str(path)!r});"
        "assert not {'onnxruntime', 'openvino', 'ai_edge_litert', 'onnx_ir'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
