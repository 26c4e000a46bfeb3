"""Large .onnx files are read without their weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")

from google.protobuf.message import DecodeError  # noqa: E402 - without onnx there is no protobuf

from edgert.errors import ModelCorrupt  # noqa: E402 - as above
from edgert.formats import digest, onnx_check, open_model  # noqa: E402
from edgert.formats.onnx_skim import Malformed, skim  # noqa: E402
from tests.formats import models  # noqa: E402


@pytest.fixture
def large(monkeypatch):
    """Every file counts as large."""
    monkeypatch.setattr(onnx_check, "LARGE_BYTES", 0)


@pytest.fixture
def path(tmp_path):
    """A product with 256 KB of weights, which stay outside, and a sum with 4 bytes of them, which do not."""
    weights = onnx.numpy_helper.from_array(np.arange(256 * 256, dtype=np.float32).reshape(256, 256), "w")
    one = onnx.numpy_helper.from_array(np.float32(1), "one")
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["m"]), onnx.helper.make_node("Add", ["m", "one"], ["y"])]
    proto = models.model(
        nodes, [models.info("x", shape=(1, 256))], [models.info("y", shape=(1, 256))], [one, weights]
    )  # fmt: skip
    return models.save(proto, tmp_path / "model.onnx")


def test_the_graph_and_its_constants_are_the_same(path, large):
    plain = onnx.load(str(path))
    model = open_model(path)
    assert model.proto.graph.initializer[1].data_location == onnx.TensorProto.EXTERNAL
    assert model.proto.graph.initializer[0].raw_data
    assert [tensor.name for tensor in model.proto.graph.initializer] == ["one", "w"]
    for tensor in plain.graph.initializer:
        np.testing.assert_array_equal(model.graph.constants[tensor.name].read(), onnx.numpy_helper.to_array(tensor))
    assert list(model.proto.graph.node) == list(plain.graph.node)
    assert model.proto.opset_import == plain.opset_import


def test_the_digest_is_that_of_the_file(path, large, monkeypatch):
    skimmed = open_model(path).digest
    assert skimmed == digest(path)
    monkeypatch.undo()
    assert skimmed == open_model(path).digest == digest(path)


@pytest.mark.parametrize("lean", [False, True])
def test_what_is_cut_from_it_runs_on_its_own(path, large, lean, tmp_path):
    part = tmp_path / "parts" / "part.onnx"
    part.parent.mkdir()
    open_model(path).write(["m"], part, lean=lean)
    path.unlink()
    session = pytest.importorskip("onnxruntime").InferenceSession(str(part), providers=["CPUExecutionProvider"])
    x = np.ones((1, 256), np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ np.arange(65536, dtype=np.float32).reshape(256, 256))


def test_a_weight_that_does_not_fill_its_shape_is_noticed(path, large):
    proto = onnx.load(str(path))
    proto.graph.initializer[1].dims[0] = 255
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelCorrupt, match="tensor 'w' holds 262144 bytes"):
        open_model(path)


@pytest.mark.parametrize(
    "make", [models.chain, models.control_flow, models.with_function, models.qdq, models.sequences]
)
def test_without_large_weights_the_message_is_the_same(make, tmp_path):
    proto = make()
    assert skim(tmp_path / "m.onnx", memoryview(proto.SerializeToString())) == proto


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_malformed(content):
    from pathlib import Path

    try:
        skim(Path("m.onnx"), memoryview(content))
    except (Malformed, DecodeError):
        return


@given(st.data())
def test_a_message_that_was_cut_or_changed_is_never_trusted_beyond_its_end(data):
    from pathlib import Path

    content = bytearray(models.chain().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        skim(Path("m.onnx"), memoryview(bytes(content[: data.draw(st.integers(1, len(content)))])))
    except (Malformed, DecodeError):
        return
