"""The zoo's models run, mean something, and agree across precisions, formats and backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter

from bench import zoo
from bench.zoo import vision
from bench.zoo.network import Conv, Dense, Flatten, Mean, Network, Softmax, to_onnx
from bench.zoo.qdq import Range, quantise
from bench.zoo.tflite import to_tflite
from edgert.errors import OptionError

SMALL = tuple(name for name in zoo.NAMES if name not in ("resnet50", "bert_12x768"))
"""Built and run in a second; the large ones come from the same builders."""
INTEGER_KERNELS = {"kws": "QLinearConv", "mobilenet_v2": "QLinearConv", "unet": "QLinearConv", "dlrm": "QGemm",
                   "lstm": "QGemm", "bert_4x256": "QGemm"}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def session_of(model: Path | bytes, optimised: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"]
    )


def run_tflite(model: bytes, x: np.ndarray) -> np.ndarray:
    """The real numbers that a .tflite model answers for an NHWC input of real numbers."""
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    if given["dtype"] is np.int8:
        scale, zero = given["quantization"]
        x = np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    y = interpreter.get_tensor(made["index"])
    scale, zero = made["quantization"]
    return (y.astype(np.float32) - zero) * scale if scale else y


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x


def sqnr_db(reference: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / max(((reference - got) ** 2).sum(), 1e-30)))


@pytest.mark.parametrize("name", SMALL)
def test_int8_answers_nearly_what_float_answers(name: str, folder: Path) -> None:
    f32, i8 = zoo.build(name, "f32", folder), zoo.build(name, "i8", folder)
    sample = zoo._samples(onnx.load(f32))[0]
    exact, rounded = session_of(f32).run(None, sample), session_of(i8).run(None, sample)
    assert all(sqnr_db(a, b) > 20 for a, b in zip(exact, rounded, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(exact, rounded, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_int8_models_become_integer_kernels(name: str, folder: Path, tmp_path: Path) -> None:
    session_of(zoo.build(name, "i8", folder), tmp_path / "optimised.onnx")
    kernels = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert INTEGER_KERNELS[name] in kernels


@pytest.mark.parametrize("name", SMALL)
def test_answers_depend_on_the_input_and_spread(name: str, folder: Path) -> None:
    path = zoo.build(name, "f32", folder)
    session = session_of(path)
    first, second = (session.run(None, sample)[0] for sample in zoo._samples(onnx.load(path))[:2])
    spread = float(first.std()) if first.size > 1 else 1.0
    assert 0.01 < spread < 100
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_openvino_at_f32_agrees_with_onnxruntime(name: str, folder: Path) -> None:
    import openvino

    path = zoo.build(name, "f32", folder)
    sample = zoo._samples(onnx.load(path))[0]
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = list(compiled(sample).values())
    for ours, theirs in zip(session_of(path).run(None, sample), answers, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-4 * max(float(np.ptp(ours)), 1.0)


@pytest.mark.parametrize("name", zoo.TFLITE_NAMES)
def test_tflite_answers_what_the_same_layers_answer_as_onnx(name: str, folder: Path) -> None:
    network = {"kws": vision.kws_network, "anomaly": vision.anomaly_network, "person": vision.person_network}[name]()
    x = np.random.default_rng(5).standard_normal((1, *network.shape), np.float32)
    expected = session_of(to_onnx(network).SerializeToString()).run(None, {network.input: x})[0]
    f32, i8 = (zoo.build(name, precision, folder, format="tflite").read_bytes() for precision in zoo.PRECISIONS)
    assert np.abs(run_tflite(f32, nhwc(x)) - expected).max() <= 1e-5
    assert sqnr_db(expected, run_tflite(i8, nhwc(x))) > 12
    assert run_tflite(i8, nhwc(x)).argmax() == expected.argmax()


def test_a_dense_layer_after_flattening_reads_both_formats_in_the_same_order() -> None:
    rng = np.random.default_rng(6)

    def weights(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    layers = (Conv(weights(4, 3, 3, 3), weights(4), stride=2), Flatten(), Dense(weights(7, 120), weights(7)))
    network = Network("flat", (3, 12, 10), layers)
    x = weights(1, 3, 12, 10)
    expected = session_of(to_onnx(network).SerializeToString()).run(None, {"input": x})[0]
    assert run_tflite(to_tflite(network), nhwc(x)) == pytest.approx(expected, abs=1e-3)
    assert sqnr_db(expected, run_tflite(to_tflite(network, [x]), nhwc(x))) > 25


def test_a_free_batch_answers_row_by_row() -> None:
    rng = np.random.default_rng(7)
    layers = (Conv(rng.standard_normal((4, 2, 3, 3), np.float32), np.zeros(4, np.float32)), Mean(), Softmax())
    session = session_of(to_onnx(Network("small", (2, 8, 8), layers), batch="batch").SerializeToString())
    x = rng.standard_normal((3, 2, 8, 8), np.float32)
    together = session.run(None, {"input": x})[0]
    alone = np.concatenate([session.run(None, {"input": row[None]})[0] for row in x])
    assert together == pytest.approx(alone, abs=1e-6)


def test_building_twice_writes_once_and_the_same_bytes(tmp_path: Path) -> None:
    path = zoo.build("kws", "f32", tmp_path / "a")
    before = path.stat().st_mtime_ns
    assert zoo.build("kws", "f32", tmp_path / "a").stat().st_mtime_ns == before
    assert zoo.build("kws", "f32", tmp_path / "b").read_bytes() == path.read_bytes()
    assert [item.name for item in (tmp_path / "a").iterdir()] == [path.name]  # no half-written file stays


def test_what_the_zoo_does_not_have_is_refused_with_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="kws"):
        zoo.build("alexnet", "f32", tmp_path)
    with pytest.raises(OptionError, match="f32"):
        zoo.build("kws", "f16", tmp_path)
    with pytest.raises(OptionError, match="batch"):
        zoo.build("kws", "f32", tmp_path, format="tflite", batch=4)


def test_a_range_represents_zero_exactly_and_both_ends() -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-7.0, -2.0), (0.0, 0.0)):
        found = Range.of(low, high)
        assert 0 <= found.zero_point <= 255
        assert found.scale * (255 - found.zero_point) >= high - found.scale
        assert found.scale * (0 - found.zero_point) <= low + found.scale


def test_quantising_leaves_no_float_weight_of_a_convolution(folder: Path) -> None:
    f32 = onnx.load(zoo.build("kws", "f32", folder))
    model = quantise(f32, zoo._samples(f32))
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    big = [
        tensor for tensor in model.graph.initializer if int(np.prod(tensor.dims)) > 100 and "scale" not in tensor.name
    ]
    assert big
    assert all(types[tensor.name] in (onnx.TensorProto.INT8, onnx.TensorProto.INT32) for tensor in big)
