"""onnx's evaluator beside ONNX Runtime on ops of older opsets, where left alone it answers wrong."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgert.errors import PrepareRefused, RunFailed
from tests.devices.sources import answers, prepared, source
from tests.formats.models import info, model

RNG = np.random.default_rng(3)
X = RNG.standard_normal((1, 4, 6, 6)).astype(np.float32)


def one_node(op, opset, arrays, outputs=1, **attributes):
    """A model of one node and its feed; its inputs are the arrays, '' where one is None."""
    names = ["" if array is None else f"i{index}" for index, array in enumerate(arrays)]
    node = helper.make_node(op, names, [f"o{index}" for index in range(outputs)], **attributes)
    feed = {name: array for name, array in zip(names, arrays, strict=True) if name}
    inputs = [info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in feed.items()]
    outs = [info(f"o{index}", TensorProto.FLOAT, None) for index in range(outputs)]
    return model([node], inputs, outs, ir_version=7, opset=opset), feed


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def recurrent(op, gates, **attributes):
    arrays = [floats(5, 2, 3), floats(1, gates * 4, 3), floats(1, gates * 4, 4), floats(1, gates * 8)]
    return one_node(op, 14, arrays, 2, hidden_size=4, **attributes)


CASES = {
    **{
        f"{op}-{opset}-{axis}": one_node(op, opset, [X], **({} if axis is None else {"axis": axis}))
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for opset in (11, 13)
        for axis in (None, 0, 1, -1)
    },
    **{
        f"BatchNormalization-{opset}": one_node(
            "BatchNormalization", opset, [X, floats(4), floats(4), floats(4), np.abs(floats(4))], epsilon=1e-3
        )
        for opset in (7, 9, 13, 15)
    },
    "LpNormalization-7": one_node("LpNormalization", 7, [X], axis=1, p=1),
    "DequantizeLinear-10": one_node(
        "DequantizeLinear", 10, [np.arange(8, dtype=np.uint8), np.array(0.5, np.float32), np.array(3, np.uint8)]
    ),
    "DequantizeLinear-13-axis": one_node(
        "DequantizeLinear", 13, [np.ones((2, 4), np.int8), np.abs(floats(4)), np.arange(4, dtype=np.int8)], axis=1
    ),
    **{f"LRN-{size}": one_node("LRN", 13, [X], size=size, alpha=0.5, beta=0.7, bias=1.5) for size in (1, 3, 5)},
    **{
        f"{op}-{opset}-{name}": one_node(op, opset, [floats(2, 3, 7, 10)], kernel_shape=[3, 2], **attributes)
        for op in ("MaxPool", "AveragePool", "LpPool")
        for opset in (11, 22)
        for name, attributes in {
            "plain": {"pads": [1, 1, 1, 0]},
            "same": {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
            **({"ceil": {"ceil_mode": 1, "strides": [2, 2]}} if op != "LpPool" else {}),
            **({"dilated": {"dilations": [2, 2]}} if op == "MaxPool" or opset == 22 else {}),
        }.items()
    },
    "AveragePool-19-ceil-of-three": one_node(  # of which the last window lacks one
        "AveragePool", 19, [floats(1, 2, 8, 11)], kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1
    ),
    "LSTM": recurrent("LSTM", 4),
    "GRU": recurrent("GRU", 3, linear_before_reset=1),
    "RNN": recurrent("RNN", 1),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_agrees_with_onnxruntime(case, tmp_path):
    proto, feed = CASES[case]
    expected = answers("onnxruntime", proto, tmp_path, feed)
    got = answers("reference", proto, tmp_path, feed)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-5)


LENGTHS = one_node("LSTM", 14, [floats(5, 2, 3), floats(1, 16, 3), floats(1, 16, 4), None, np.int32([5, 3])], 2,
                   hidden_size=4)  # fmt: skip
REFUSED = {
    "AveragePool": one_node("AveragePool", 19, [X], kernel_shape=[3, 3], strides=[5, 5], ceil_mode=1),
    "clip": recurrent("LSTM", 4, clip=0.3),
    "input_forget": recurrent("LSTM", 4, input_forget=1),
    "activations": recurrent("GRU", 3, activations=["HardSigmoid", "Tanh"]),
    "lengths": LENGTHS,
    "RoiAlign": one_node(
        "RoiAlign", 10, [X, np.float32([[0, 0, 4, 4]]), np.int64([0])], output_height=2, output_width=2
    ),
}


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ("MaxPool", {"auto_pad": "SAME_UPPER", "dilations": [2, 2]}),
        ("MaxPool", {"auto_pad": "VALID", "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", {"pads": [1, 1, 1, 1], "ceil_mode": 1}),  # of GoogLeNet
        ("AveragePool", {"auto_pad": "VALID", "dilations": [2, 2]}),
        ("LpPool", {"auto_pad": "SAME_UPPER", "dilations": [2, 2]}),
        ("LpPool", {"strides": [2, 2], "ceil_mode": 1}),
    ],
)
def test_windows_that_the_evaluator_would_put_elsewhere_are_refused(op, attributes, tmp_path):
    proto, _ = one_node(op, 22, [X], kernel_shape=[3, 3], **attributes)
    with pytest.raises(PrepareRefused, match=op):
        prepared("reference", source(proto, tmp_path))


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_evaluator_would_ignore_is_refused_and_not_answered_wrong(case, tmp_path):
    proto, feed = REFUSED[case]
    with pytest.raises((PrepareRefused, RunFailed), match=case if case != "activations" else "of its own"):
        answers("reference", proto, tmp_path, feed)


def test_lengths_that_are_all_whole_are_no_reason_to_refuse(tmp_path):
    proto, feed = LENGTHS
    whole = {**feed, "i4": np.int32([5, 5])}
    expected = answers("onnxruntime", proto, tmp_path, whole)
    got = answers("reference", proto, tmp_path, whole)
    np.testing.assert_allclose(got["o0"], expected["o0"], rtol=1e-4, atol=1e-5)


def test_a_softmax_of_an_older_opset_inside_a_branch_is_right_too(tmp_path):
    def branch(op, name):
        node = helper.make_node(op, ["x"], [name], axis=1)
        return helper.make_graph([node], name, [], [info(name, shape=None)])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Softmax", "t"), else_branch=branch("Hardmax", "e"))
    proto = model([node], [info("x", shape=X.shape), info("c", TensorProto.BOOL, ())], [info("y", shape=None)],
                  ir_version=7, opset=11)  # fmt: skip
    feed = {"x": X, "c": np.array(True)}
    expected = answers("onnxruntime", proto, tmp_path, feed)["y"]
    np.testing.assert_allclose(answers("reference", proto, tmp_path, feed)["y"], expected, rtol=1e-5)


def loop(shape, condition):
    """Adds the turn's number to x up to n times, as long as the sum stays below a limit, and stacks what x was."""
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["turn"], ["step"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["before", "step"], ["after"]),
            helper.make_node("ReduceMax", ["after"], ["most"], keepdims=0),
            helper.make_node("Less", ["most", "limit"], ["on"]),
            helper.make_node("Identity", ["before"], ["seen"]),
        ],
        "body",
        [info("turn", TensorProto.INT64, ()), info("given", TensorProto.BOOL, ()), info("before", shape=shape)],
        [info("on", TensorProto.BOOL, ()), info("after", shape=shape), info("seen", shape=shape)],
    )
    start = ["go"] if condition else []
    node = helper.make_node("Loop", ["n", "go" if condition else "", "x"], ["last", "all"], body=body)
    inputs = [info("n", TensorProto.INT64, ()), info("x", shape=shape), info("limit", shape=())]
    inputs += [info(name, TensorProto.BOOL, ()) for name in start]
    return model([node], inputs, [info("last", shape=shape), info("all", shape=(None, *shape))],
                 ir_version=8, opset=17)  # fmt: skip


@pytest.mark.parametrize("condition", [True, False], ids=["condition", "without"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("limit", [1e9, 6.0])
def test_a_loop_makes_the_turns_that_it_says_and_stacks_what_it_made(shape, condition, limit, tmp_path):
    feed = {"n": np.array(5), "x": np.ones(shape, np.float32), "limit": np.array(limit, np.float32)}
    if condition:
        feed["go"] = np.array(True)
    proto = loop(shape, condition)
    expected = answers("onnxruntime", proto, tmp_path, feed)
    got = answers("reference", proto, tmp_path, feed)
    assert len(expected["all"]) == (5 if limit > 100 else 4)
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


def test_a_loop_that_is_told_not_to_begin_hands_on_what_it_was_given(tmp_path):
    proto = loop((3,), True)
    feed = {"n": np.array(5), "x": np.float32([1, 2, 3]), "limit": np.float32(9), "go": np.array(False)}
    proto.graph.output.pop()  # nothing tells the shape of what no turn made
    proto.graph.node[0].output[1] = ""
    proto.graph.node[0].attribute[0].g.output.pop()
    assert answers("reference", proto, tmp_path, feed)["last"].tolist() == [1, 2, 3]


def running_sum(opset, inputs, **attributes):
    body = helper.make_graph(
        [helper.make_node("Add", ["sum", "each"], ["next"]), helper.make_node("Add", ["next", "other"], ["made"])],
        "body",
        [info("sum", shape=(2,)), info("each", shape=(2,)), info("other", shape=(2,))],
        [info("next", shape=(2,)), info("made", shape=(2,))],
    )
    node = helper.make_node("Scan", inputs, ["last", "all"], body=body, num_scan_inputs=2, **attributes)
    shapes = {"s": (2,), "a": (2, 2), "b": (2, 2)}
    return model([node], [info(name, shape=shape) for name, shape in shapes.items()],
                 [info("last", shape=None), info("all", shape=None)], ir_version=7, opset=opset)  # fmt: skip


@pytest.mark.parametrize(
    ("proto", "reason"),
    [(running_sum(17, ["s", "a", "b"], scan_input_axes=[-1, 0]), "other axes"),
     (running_sum(8, ["", "s", "a", "b"]), "opset 9")],
)  # fmt: skip
def test_a_scan_that_the_evaluator_would_take_for_another_is_refused(proto, reason, tmp_path):
    with pytest.raises(PrepareRefused, match=reason):
        prepared("reference", source(proto, tmp_path))


def test_a_division_by_zero_is_an_infinity_and_no_warning(tmp_path):
    proto, feed = one_node("Div", 14, [np.float32([1, -1, 0]), np.float32([0, 0, 0])])
    got = answers("reference", proto, tmp_path, feed)["o0"]
    assert got[0] == np.inf
    assert got[1] == -np.inf
    assert np.isnan(got[2])


def test_a_result_of_another_type_than_the_model_says_is_an_error(tmp_path):
    proto = model([helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.float32([1])))],
                  [info("x")], [info("y", TensorProto.DOUBLE, (1,))])  # fmt: skip
    with pytest.raises(RunFailed, match="made float32, the model says float64"):
        prepared("reference", source(proto, tmp_path)).run({"x": np.zeros((1, 4), np.float32)})


def test_a_result_of_another_rank_than_the_model_says_is_an_error(tmp_path):
    proto = model([helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.float32([[1]])))],
                  [info("x")], [info("y", shape=(1,))])  # fmt: skip
    with pytest.raises(RunFailed, match="made 'y' of rank 2, the model says 1"):
        prepared("reference", source(proto, tmp_path)).run({"x": np.zeros((1, 4), np.float32)})


def texts(given, tmp_path, **attributes):
    """What a StringNormalizer makes of texts. ONNX Runtime's needs a locale that few machines have."""
    node = helper.make_node("StringNormalizer", ["x"], ["y"], **attributes)
    shape = np.shape(given)
    proto = model(
        [node], [info("x", TensorProto.STRING, shape)], [info("y", TensorProto.STRING, [None] * len(shape))],
        ir_version=7, opset=13,
    )  # fmt: skip
    return answers("reference", proto, tmp_path, {"x": np.array(given, dtype=object)})["y"].tolist()


def test_texts_keep_their_accents_and_lose_stopwords_alone(tmp_path):
    given = ["The Cat", "", "Ü", "THE", "the"]
    assert texts(given, tmp_path, case_change_action="LOWER", stopwords=["the"]) == ["the cat", "", "ü"]
    asked = {"case_change_action": "UPPER", "stopwords": ["the"], "is_case_sensitive": 1}
    assert texts(given, tmp_path, **asked) == ["THE CAT", "", "Ü", "THE"]
    assert texts([["the", "the"]], tmp_path, stopwords=["the"]) == [[""]]


@pytest.mark.parametrize("labels", [{"classlabels_strings": ["ant", "bee"]}, {"classlabels_int64s": [7, 9]}], ids=repr)
def test_a_map_of_scores_is_that_of_onnxruntime(labels, tmp_path):
    key = TensorProto.STRING if "classlabels_strings" in labels else TensorProto.INT64
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, ()))
    )
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", **labels)
    outputs = [helper.make_value_info("y", maps)]
    proto = model([node], [info("x", shape=("n", 2))], outputs, ir_version=8, opset=17, domains=("ai.onnx.ml",))
    feed = {"x": floats(3, 2)}
    got, expected = (answers(name, proto, tmp_path, feed)["y"] for name in ("reference", "onnxruntime"))
    assert got == expected
    assert len(got) == 3
