"""Tidying up an .onnx model: what never changes is a constant, names stay, answers stay."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the models are written with onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgert.errors import ModelUnsupported  # noqa: E402
from edgert.formats import open_model  # noqa: E402
from edgert.formats.onnx_clean import clean  # noqa: E402


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def save(path, nodes, constants, shape=(1, 3, 8, 8), ir_version=10, **more):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants, **more,
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return open_model(path)


def run(path, feed=None):
    runtime = pytest.importorskip("onnxruntime", reason="runs both")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    return session.run(None, {"x": x} if feed is None else feed)[0]


@pytest.fixture
def tidy(tmp_path):
    """The file tidied up, or None where that changes nothing."""

    def work(file):
        def compute(nodes, values, given):
            runtime = pytest.importorskip("onnxruntime", reason="runs the constant part")
            part = tmp_path / "part.onnx"
            file.write(nodes, part)
            session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
            made = session.run(list(values), {each.name: given[each.name] for each in session.get_inputs()})
            return dict(zip(values, made, strict=True))

        path = tmp_path / "tidy.onnx"
        return open_model(path) if clean(file, path, compute) else None

    return work


def conv(*, bias=False, reads="x", makes="c"):
    names = [reads, "w", "b"] if bias else [reads, "w"]
    return helper.make_node("Conv", names, [makes], "conv", pads=[1, 1, 1, 1])


def normalisation(rng, reads="c", makes="y", name="bn"):
    node = helper.make_node("BatchNormalization", [reads, "gamma", "beta", "mean", "var"], [makes], name, epsilon=1e-3)
    parts = {"gamma": rng.standard_normal(4), "beta": rng.standard_normal(4), "mean": rng.standard_normal(4),
             "var": rng.random(4)}  # fmt: skip
    return node, [constant(key, array.astype(np.float32)) for key, array in parts.items()]


@pytest.mark.parametrize("bias", [False, True])
def test_a_normalisation_goes_into_its_convolution(tmp_path, tidy, bias):
    rng = np.random.default_rng(5)
    bn, constants = normalisation(rng)
    constants += [constant("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32))]
    constants += [constant("b", rng.standard_normal(4).astype(np.float32))] if bias else []
    file = save(tmp_path / "a.onnx", [conv(bias=bias), bn], constants)
    tidied = tidy(file)
    assert [(node.name, node.op, node.writes) for node in tidied.graph.nodes] == [("conv", "Conv", ("y",))]
    expected = run(file.path)
    np.testing.assert_allclose(run(tidied.path), expected, atol=1e-5 * np.ptp(expected))


def test_a_convolution_that_others_read_keeps_its_normalisation_apart(tmp_path, tidy):
    rng = np.random.default_rng(5)
    bn, constants = normalisation(rng, makes="n")
    constants += [constant("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32))]
    assert tidy(save(tmp_path / "a.onnx", [conv(), bn, helper.make_node("Add", ["c", "n"], ["y"])], constants)) is None


def test_what_follows_from_constants_alone_is_a_constant(tmp_path, tidy):
    nodes = [
        helper.make_node("Add", ["one", "two"], ["three"], "sum"),
        helper.make_node("Sqrt", ["three"], ["root"], "sqrt"),
        helper.make_node("Mul", ["x", "root"], ["y"], "mul"),
    ]
    file = save(tmp_path / "a.onnx", nodes, [constant("one", np.float32(1)), constant("two", np.float32(2))])
    tidied = tidy(file)
    assert [node.name for node in tidied.graph.nodes] == ["mul"]
    assert set(tidied.graph.constants) == {"root"}
    np.testing.assert_array_equal(run(tidied.path), run(file.path))


SHAPE = [
    helper.make_node("Shape", ["x"], ["s"], "shape"),
    helper.make_node("Gather", ["s", "zero"], ["n"], "gather"),
    helper.make_node("Concat", ["n", "rest"], ["form"], "concat", axis=0),
    helper.make_node("Reshape", ["x", "form"], ["y"], "reshape"),
]
SHAPE_CONSTANTS = [constant("zero", np.array([0])), constant("rest", np.array([-1]))]


def test_arithmetic_on_a_fixed_shape_is_a_constant(tmp_path, tidy):
    file = save(tmp_path / "a.onnx", SHAPE, SHAPE_CONSTANTS)
    tidied = tidy(file)
    assert [node.name for node in tidied.graph.nodes] == ["reshape"]
    np.testing.assert_array_equal(run(tidied.path), run(file.path))


def test_arithmetic_on_a_free_shape_stays(tmp_path, tidy):
    assert tidy(save(tmp_path / "a.onnx", SHAPE, SHAPE_CONSTANTS, shape=("N", 3, 8, 8))) is None


def test_what_leads_nowhere_and_identities_go(tmp_path, tidy):
    nodes = [
        helper.make_node("Exp", ["x"], ["unused"], "exp"),
        helper.make_node("Identity", ["x"], ["same"], "identity"),
        helper.make_node("Relu", ["same"], ["y"], "relu"),
    ]
    tidied = tidy(save(tmp_path / "a.onnx", nodes, []))
    assert [(node.name, node.reads) for node in tidied.graph.nodes] == [("relu", ("x",))]


def test_nodes_without_a_name_get_the_one_that_the_graph_has(tmp_path, tidy):
    nodes = [helper.make_node("Exp", ["x"], ["unused"]), helper.make_node("Relu", ["x"], ["y"])]
    file = save(tmp_path / "a.onnx", nodes, [])
    assert {node.name for node in tidy(file).graph.nodes} <= {node.name for node in file.graph.nodes}


@pytest.mark.parametrize("op", ["RandomNormal", "DequantizeLinear"])
def test_what_draws_and_what_is_quantised_stays(tmp_path, tidy, op):
    if op == "RandomNormal":
        nodes = [helper.make_node(op, [], ["r"], "draw", shape=[1])]
    else:
        nodes = [helper.make_node(op, ["q", "scale"], ["r"], "dq")]
    constants = [constant("q", np.int8([3])), constant("scale", np.float32(0.5))]
    assert tidy(save(tmp_path / "a.onnx", [*nodes, helper.make_node("Mul", ["x", "r"], ["y"])], constants)) is None


def test_a_constant_that_would_be_huge_is_made_anew_at_each_run(tmp_path, tidy):
    nodes = [helper.make_node("Expand", ["one", "form"], ["big"]), helper.make_node("ReduceSum", ["big"], ["sum"]),
             helper.make_node("Slice", ["big", "zero", "one1"], ["part"]),
             helper.make_node("Mul", ["x", "part"], ["y"])]  # fmt: skip
    # Its slice alone is small: what counts is what would have to be stored.
    constants = [constant("one", np.float32([1])), constant("form", np.array([1 << 10, 1 << 13])),
                 constant("zero", np.array([0, 0])), constant("one1", np.array([1, 1]))]  # fmt: skip
    tidied = tidy(save(tmp_path / "a.onnx", nodes, constants))
    assert [node.op for node in tidied.graph.nodes] == ["Mul"]
    nodes = [nodes[0], helper.make_node("ReduceSum", ["x"], ["t"]), helper.make_node("Mul", ["big", "t"], ["y"])]
    assert tidy(save(tmp_path / "b.onnx", nodes, constants[:2])) is None


def test_external_weights_are_folded_and_kept_beside_the_new_file(tmp_path, tidy):
    rng = np.random.default_rng(5)
    bn, constants = normalisation(rng, makes="n")
    constants += [constant("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32)),
                  constant("wide", rng.standard_normal((8, 4096)).astype(np.float32))]  # fmt: skip
    inside = save(
        tmp_path / "a.onnx", [conv(), bn, helper.make_node("MatMul", ["n", "wide"], ["y"], "product")], constants
    )
    onnx.save(onnx.load(inside.path), tmp_path / "b.onnx", save_as_external_data=True, location="b.data",
              size_threshold=0)  # fmt: skip
    tidied = tidy(open_model(tmp_path / "b.onnx"))
    assert [node.name for node in tidied.graph.nodes] == ["conv", "product"]
    (companion,) = (path for path in tmp_path.glob("tidy.onnx.*"))
    assert companion.stat().st_size >= 8 * 4096 * 4
    expected = run(inside.path)
    np.testing.assert_allclose(run(tidied.path), expected, atol=1e-5 * np.ptp(expected))


def test_a_model_over_which_the_passes_stumble_is_refused(tmp_path, monkeypatch, tidy):
    import onnx_ir

    file = save(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"], "relu")], [])
    monkeypatch.setattr(onnx_ir, "from_proto", lambda _: {}["no"])
    with pytest.raises(ModelUnsupported, match=r"does not tidy the model up \(KeyError: 'no'\)"):
        tidy(file)


def test_in_an_old_file_new_constants_are_no_inputs(tmp_path, tidy):
    rng = np.random.default_rng(5)
    bn, constants = normalisation(rng)
    constants += [constant("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32))]
    graph = helper.make_graph(
        [conv(), bn], "old", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8)),
        *(helper.make_tensor_value_info(each.name, TensorProto.FLOAT, each.dims) for each in constants)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 9)]), tmp_path / "a.onnx")
    file = open_model(tmp_path / "a.onnx")
    tidied = tidy(file)
    assert [value.name for value in tidied.graph.inputs] == ["x"]
    expected = run(file.path)
    np.testing.assert_allclose(run(tidied.path), expected, atol=1e-5 * np.ptp(expected))
