from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings

from edgert.errors import ModelCorrupt, ModelUnsupported
from edgert.formats import digest, open_model
from edgert.formats.flat import schema
from edgert.formats.tflite import _Tflite
from tests.formats import models
from tests.formats.test_onnx import compose, cut_graphs

Interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter


def answer(path, feed):
    names = open_model(path).graph
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    for value, detail in zip(names.inputs, interpreter.get_input_details(), strict=True):
        interpreter.set_tensor(detail["index"], feed[value.name])
    interpreter.invoke()
    details = interpreter.get_output_details()
    return {value.name: interpreter.get_tensor(d["index"]) for value, d in zip(names.outputs, details, strict=True)}


def read(content, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    return open_model(path)


def test_names_types_quantisation_and_state_are_read(tmp_path):
    graph = read(models.tflite_rich(), tmp_path).graph
    assert [value.name for value in graph.values.values()][:3] == ["x", "x_1", "tensor_2"]
    assert graph.inputs[0].shape == ("", 4)
    assert graph.values["k"].quantization.scales == (0.5,)
    assert graph.values["k"].quantization.zero_points == (3,)
    assert graph.variables == ("state",)
    assert graph.nodes[1].op == "CUSTOM:Mystery"
    assert graph.nodes[1].inputs == ("x_1", "k", "")
    assert graph.metadata == {"description": "made for a test"}


def test_constants_of_strings_and_nibbles_are_read(tmp_path):
    constants = read(models.tflite_rich(), tmp_path).graph.constants
    assert constants["texts"].read().tolist() == ["ab", "cde"]
    assert constants["nibbles"].read().astype(int).tolist() == [1, -1, 7]
    assert constants["k"].read().tolist() == [1, 2, 3, 4]


def test_signatures_name_their_values_and_subgraph(tmp_path):
    graph = read(models.tflite_while(), tmp_path).graph
    assert dict(graph.signatures["serving"].outputs) == {"out": "y"}
    assert graph.signatures["other"].subgraph == 3


def test_the_first_signature_decides_which_subgraph_is_shown(tmp_path):
    model = schema().ModelT.InitFromPackedBuf(models.tflite_while())
    flat = models.Flat()
    flat.model = model
    model.signatureDefs.reverse()
    graph = read(flat.bytes(), tmp_path).graph
    assert [value.name for value in graph.inputs] == ["i"]


def test_control_flow_carries_its_bodies(tmp_path):
    node = read(models.tflite_while(), tmp_path).graph.nodes[1]
    assert node.op == "WHILE"
    assert [body.name for body in node.subgraphs] == ["cond", "body"]


def test_a_part_with_control_flow_runs_alone(tmp_path):
    source = read(models.tflite_while(), tmp_path)
    got = compose(source, [0, 1, 2], {"x": np.float32([[1, 2, 3, 4]])}, tmp_path, answer)
    np.testing.assert_array_equal(got["y"], [[17, 34, 51, 68]])


def test_a_part_of_another_subgraph_becomes_the_first(tmp_path):
    flat = models.Flat()
    flat.model = schema().ModelT.InitFromPackedBuf(models.tflite_while())
    flat.model.subgraphs.reverse()  # main is number 3 now
    for operator in flat.model.subgraphs[3].operators:
        if hasattr(operator.builtinOptions, "condSubgraphIndex"):
            operator.builtinOptions.condSubgraphIndex, operator.builtinOptions.bodySubgraphIndex = 2, 1
    for signature in flat.model.signatureDefs:
        signature.subgraphIndex = 3 - signature.subgraphIndex
    source = read(flat.bytes(), tmp_path)
    got = compose(source, [0, 1, 1], {"x": np.float32([[1, 2, 3, 4]])}, tmp_path, answer)
    np.testing.assert_array_equal(got["y"], [[17, 34, 51, 68]])


@settings(max_examples=25, deadline=None)
@given(cut_graphs())
def test_parts_composed_give_the_whole_models_answer(tmp_path_factory, case):
    reads, groups = case
    folder = tmp_path_factory.mktemp("parts")
    source = read(models.random_tflite(reads), folder)
    feed = {"x": np.float32([[1, 2, 3, 4]])}
    got = compose(source, groups, feed, folder, answer)
    for name, expected in answer(source.path, feed).items():
        np.testing.assert_array_equal(got[name], expected)


def test_operators_that_share_a_variable_are_not_torn_apart(tmp_path):
    source = read(models.tflite_variable(), tmp_path)
    assert source.graph.variables == ("handle",)
    with pytest.raises(ModelUnsupported, match="share state"):
        source.write([source.graph.nodes[3].name], tmp_path / "w.tflite")
    stateful = [node.name for node in source.graph.nodes[1:]]
    assert source.write(stateful, tmp_path / "w.tflite") == (("a",), ("y",))
    got = answer(tmp_path / "w.tflite", {"a": np.float32([[1, 2, 3, 4]])})
    np.testing.assert_array_equal(got["y"], [[1, 2, 3, 4]])


def test_a_variable_tensor_is_no_input_of_a_part(tmp_path):
    source = read(models.tflite_rich(), tmp_path)
    inputs, _ = source.write([source.graph.nodes[0].name], tmp_path / "w.tflite")
    assert inputs == ("x",)
    assert open_model(tmp_path / "w.tflite").graph.variables == ("state",)


def test_buffers_beyond_the_flatbuffer_are_read_and_taken_along(tmp_path):
    flat = models.Flat()
    graph = flat.subgraph()
    x, k, y, z = (flat.tensor(graph, name) for name in "xkyz")
    flat.op(graph, "ADD", [x, k], [y], "AddOptions")
    flat.op(graph, "ADD", [y, y], [z], "AddOptions")
    graph.inputs, graph.outputs = [x], [z]
    flat.model.buffers.append(schema().BufferT())
    graph.tensors[k].buffer = 1
    flat.model.buffers[1].offset = flat.model.buffers[1].size = 16
    start = -(-len(flat.bytes()) // 16) * 16
    flat.model.buffers[1].offset = start
    source = read(flat.bytes().ljust(start, b"\0") + np.float32([1, 2, 3, 4]).tobytes(), tmp_path)
    assert source.graph.constants["k"].read().tolist() == [[1, 2, 3, 4]]
    source.write(["y"], tmp_path / "w.tflite")
    got = answer(tmp_path / "w.tflite", {"x": np.zeros((1, 4), np.float32)})
    assert got["y"].tolist() == [[1, 2, 3, 4]]


def in_other_file(folder, name="weights.bin"):
    flat = models.Flat()
    graph = flat.subgraph()
    x, k, y, z = (flat.tensor(graph, name) for name in "xkyz")
    flat.op(graph, "ADD", [x, k], [y], "AddOptions")
    flat.op(graph, "ADD", [y, y], [z], "AddOptions")
    graph.inputs, graph.outputs = [x], [z]
    graph.tensors[k].externalBuffer = 5
    group, buffer = schema().ExternalBufferGroupT(), schema().ExternalBufferT()
    group.name = name
    buffer.id, buffer.group, buffer.offset, buffer.length = 5, 0, 4, 16
    flat.model.externalBufferGroups, flat.model.externalBuffers = [group], [buffer]
    (folder / "weights.bin").write_bytes(np.float32([9, 1, 2, 3, 4]).tobytes())
    return flat.bytes()


knows_external = pytest.mark.skipif(
    not hasattr(schema(), "ExternalBuffer"), reason="this ai-edge-litert knows no external buffers"
)


@knows_external
def test_buffers_in_another_file_are_read_hashed_and_taken_along(tmp_path):
    source = read(in_other_file(tmp_path), tmp_path)
    assert source.graph.constants["k"].read().tolist() == [[1, 2, 3, 4]]
    assert source.digest == digest(source.path) != hashlib.sha256(source.path.read_bytes()).hexdigest()
    for nodes in (["y"], ["y", "z"]):
        source.write(nodes, tmp_path / "w.tflite")
        got = answer(tmp_path / "w.tflite", {"x": np.zeros((1, 4), np.float32)})
        assert got[nodes[-1]].tolist() == [[len(nodes) * i for i in (1, 2, 3, 4)]]


@knows_external
@pytest.mark.parametrize("name", ["../weights.bin", "/etc/passwd", ""])
def test_buffers_outside_the_folder_are_corrupt(name, tmp_path):
    with pytest.raises(ModelCorrupt, match="folder"):
        read(in_other_file(tmp_path, name), tmp_path)


def test_written_constants_are_aligned_to_16_bytes(tmp_path):
    source = read(models.tflite_while(), tmp_path)
    source.write([node.name for node in source.graph.nodes[1:]], tmp_path / "w.tflite")
    content = (tmp_path / "w.tflite").read_bytes()
    packed = schema().Model.GetRootAs(content, 0)
    starts = [
        packed.Buffers(index)._tab.Vector(packed.Buffers(index)._tab.Offset(4))
        for index in range(packed.BuffersLength())
        if packed.Buffers(index).DataLength()
    ]
    assert starts
    assert all(start % 16 == 0 for start in starts)


# --- hostile


def changed(change) -> bytes:
    flat = models.Flat()
    flat.model = schema().ModelT.InitFromPackedBuf(models.tflite_while())
    change(flat.model)
    return flat.bytes()


def set_(path, value):
    def change(model):
        *front, last = path
        owner = model
        for step in front:
            owner = owner[step] if isinstance(step, int) else getattr(owner, step)
        if isinstance(last, int):
            owner[last] = value
        else:
            setattr(owner, last, value)

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("subgraphs", 0, "operators", 0, "inputs"), [99]),
        (("subgraphs", 0, "operators", 0, "inputs"), [-7]),
        (("subgraphs", 0, "operators", 0, "opcodeIndex"), 99),
        (("subgraphs", 0, "operators", 0, "inputs"), [4]),
        (("subgraphs", 0, "operators", 1, "builtinOptions", "bodySubgraphIndex"), 99),
        (("subgraphs", 0, "operators", 1, "builtinOptions", "bodySubgraphIndex"), 0),
        (("subgraphs", 0, "tensors", 0, "shape"), [1 << 30, 1 << 30, 1 << 30]),
        (("subgraphs", 0, "tensors", 0, "shape"), [-5]),
        (("subgraphs", 0, "tensors", 1, "shape"), [1 << 30]),
        (("subgraphs", 0, "tensors", 1, "buffer"), 999),
        (("subgraphs", 0, "outputs"), [77]),
        (("subgraphs",), None),
        (("signatureDefs", 0, "subgraphIndex"), 9),
        (("buffers", 1, "offset"), 1 << 40),
    ],
)
def test_an_index_or_size_that_leads_nowhere_is_corrupt(path, value, tmp_path):
    with pytest.raises(ModelCorrupt, match=r"m\.tflite"):
        read(changed(set_(path, value)), tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("operatorCodes", 0, "builtinCode"), 5000),
        (("subgraphs", 0, "tensors", 0, "type"), 120),
    ],
)
def test_an_unknown_operator_or_element_type_is_unsupported(path, value, tmp_path):
    with pytest.raises(ModelUnsupported, match="unknown"):
        read(changed(set_(path, value)), tmp_path)


def test_subgraphs_that_double_each_other_cost_no_time(tmp_path):
    flat = models.Flat()
    for level in range(40):
        graph = flat.subgraph(f"s{level}")
        x = flat.tensor(graph, "x")
        for _ in range(2 if level < 39 else 0):
            flat.op(graph, "CALL_ONCE", [], [], "CallOnceOptions", initSubgraphIndex=level + 1)
        graph.inputs = graph.outputs = [x]
    with pytest.raises(ModelCorrupt, match="calls expanded"):
        read(flat.bytes(), tmp_path)


def test_vectors_longer_than_the_file_exhaust_the_budget(tmp_path):
    content = models.tflite_while()
    reader = _Tflite(tmp_path, memoryview(content), schema().Model.GetRootAs(content, 0))
    with pytest.raises(ModelCorrupt, match="more elements"):
        reader.spend(len(content) + 1, "a vector")
