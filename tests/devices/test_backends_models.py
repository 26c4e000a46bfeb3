"""The shared models' known answers, on every backend and every precision that does not give any up."""

from __future__ import annotations

import numpy as np
import pytest

from tests.devices.sources import CPU, cases, entry_source, manifest, prepared, reached, run_case

ENTRIES = manifest()
pytestmark = pytest.mark.skipif(not ENTRIES, reason="EDGERT_MODELS is not set")

WAYS = {
    "onnx": (("onnxruntime", ""), ("openvino", ""), ("reference", "")),
    "tflite": (("litert", ""), ("litert", "builtin"), ("openvino", "")),
}
HOME = {"onnx": "onnxruntime", "tflite": "litert"}
ALL = [(entry, name, variant) for entry in ENTRIES for name, variant in WAYS[entry["format"]]]


def check(entry, runnable, tolerances):
    for feed, expected in cases(entry):
        outputs = run_case(entry, runnable, feed)
        for name, wanted in expected.items():
            assert outputs[name].dtype == wanted.dtype
            far = np.abs(outputs[name].astype(np.float64) - wanted.astype(np.float64)).max()
            assert far <= tolerances[name], (name, far)


@pytest.mark.parametrize(
    ("entry", "name", "variant"), ALL, ids=[f"{e['id']}-{n}{'+' if v else ''}{v}" for e, n, v in ALL]
)
def test_a_known_model_gives_its_known_answers(entry, name, variant):
    own = name == HOME[entry["format"]] and not variant
    if variant == "builtin" and entry["id"] == "ic-i8":
        # its kernels round otherwise than XNNPACK's: 4 steps in the manifest's `tflite_reference_kernels_max_abs_dev`
        entry = {**entry, "tol_cross": dict.fromkeys(entry["tol_cross"], 4.0)}
    runnable = prepared(name, entry_source(entry), variant=variant)
    assert list(runnable.ran_on) == [CPU.id]
    assert runnable.ran_on[CPU.id] > 0
    check(entry, runnable, entry["tol_same" if own else "tol_cross"])
    runnable.close()


SMALL = [each for each in ENTRIES if each["id"] == "dtln1-onnx"]
"""A software GPU needs a minute for the detector."""


@pytest.mark.parametrize("entry", SMALL, ids=lambda each: each["id"])
def test_a_known_model_runs_whole_and_right_on_a_gpu(entry):
    gpu = reached("gpu", "webgpu")
    runnable = prepared("onnxruntime", entry_source(entry), device=gpu, variant="webgpu")
    assert list(runnable.ran_on) == [gpu.id]
    feed, expected = next(cases(entry))
    frames = 8
    first = {name: value[:frames] if name in entry["stream_inputs"] else value for name, value in feed.items()}
    outputs = run_case(entry, runnable, first)
    for name in set(expected) - set(entry["state"]):
        assert np.abs(outputs[name] - expected[name][:frames]).max() <= entry["tol_cross"][name]
    runnable.close()
