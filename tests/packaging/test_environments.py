"""The small environments: tflite-runtime beside numpy 1, as on a 32-bit board; the lower ends of all ranges.

`make test-tflite-runtime` and `make test-numpy-low` set EDGERT_EXPECT to say what must be there; elsewhere these skip.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.data import path

EXPECT = os.environ.get("EDGERT_EXPECT", "")
tflite_runtime = pytest.mark.skipif(EXPECT != "tflite-runtime", reason="for the environment with tflite-runtime")
low = pytest.mark.skipif(EXPECT != "low", reason="for the environment with the lower ends")


@low
def test_numpy_is_the_oldest_that_is_promised() -> None:
    assert importlib.metadata.version("numpy").startswith("1.24.")


@tflite_runtime
def test_this_environment_is_a_small_boards() -> None:
    assert importlib.metadata.version("tflite-runtime").startswith("2.14.")
    assert importlib.metadata.version("numpy").startswith("1.")
    absent = ("onnx", "onnx_ir", "onnxruntime", "openvino", "ai_edge_litert", "ml_dtypes")
    assert [name for name in absent if importlib.util.find_spec(name)] == []


@tflite_runtime
def test_probe_names_what_is_missing_and_what_is_there(tmp_path: Path) -> None:
    from edgert.devices.probe import probe

    machine = probe(cache_dir=tmp_path)
    by_name = {backend.name: backend for backend in machine.backends}
    assert "2.14" in by_name["litert"].version
    assert "pip install" in by_name["onnxruntime"].remedy


@tflite_runtime
@pytest.mark.parametrize("file", ["digits_f32.tflite", "digits_i8.tflite"])
def test_a_tflite_file_is_loaded_whole_and_reads_digits(file: str, tmp_path: Path) -> None:
    with np.load(path("digits.npz")) as data:
        images, labels = data["images"][:60], data["labels"][:60]
    right = 0
    with edgert.load(path(file), budget_s=3, cache_dir=tmp_path) as model:
        value = model.inputs[0]
        for image, label in zip(images, labels, strict=True):
            x = (image / 16).astype(np.float32)[None, :, :, None]
            if value.dtype == "int8":
                assert value.quantization is not None
                x = np.rint(x / value.quantization.scales[0] + value.quantization.zero_points[0]).clip(-128, 127)
            result = model.run([x.astype(value.dtype)])
            right += int(np.argmax(result[model.outputs[0].name]) == label)
        assert [target.backend for target in result.receipt.targets] == ["litert"]
    accuracy = json.loads(path("digits.json").read_text())["accuracy"][file]
    assert right / len(labels) >= accuracy - 0.05


@tflite_runtime
def test_a_bundle_is_made_and_opened_on_a_small_board(tmp_path: Path) -> None:
    from edgert.compile import compile_model

    made = compile_model(path("digits_i8.tflite"), tmp_path / "digits.edgert", budget_s=3, cache_dir=tmp_path)
    with edgert.load(made.path, cache_dir=tmp_path / "other") as model:
        image = np.zeros([size if isinstance(size, int) else 1 for size in model.inputs[0].shape or ()], np.int8)
        receipt = model.run([image]).receipt
    assert (receipt.plan, receipt.degraded) == (made.plan.id, False)


@tflite_runtime
def test_an_onnx_file_says_which_package_it_needs(tmp_path: Path) -> None:
    with pytest.raises(edgert.errors.MissingPackage, match="pip install"):
        edgert.load(path("digits_f32.onnx"), cache_dir=tmp_path)
