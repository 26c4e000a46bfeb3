"""What the tests of the backends share: devices, sources, and the shared models' known answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgert import devices
from edgert.devices.backend import Source
from edgert.formats import open_model
from edgert.machine import Device
from tests.formats.models import save

FEATURES = tuple(
    word
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    if line.startswith(("flags", "Features"))
    for word in line.partition(":")[2].split()
)
CPU = Device("cpu:0", "cpu", "the CPU", 0, cores=(0,), features=FEATURES)
GPU = Device("gpu:0", "gpu", "llvmpipe", 0, software=True)
NPU = Device("npu:0", "npu", "Qualcomm HTP library", 0, software=True)
ONNX_BACKENDS = ("onnxruntime", "openvino", "reference")


def source(proto, folder, name="model.onnx"):
    return source_of(save(proto, folder / name))


def source_of(path):
    file = open_model(path)
    return Source(file.path, file.format, file.graph.inputs, file.graph.outputs, file.precision)


def prepared(name, model, *, device=CPU, variant="", precision=None, cache=None):
    """The model on the backend's first target of that precision (its first of all unless given), with one thread."""
    backend = devices.backend(name)
    offered = backend.targets(model, device, variant, [1])
    target = next(each for each in offered if precision in (None, each.precision))
    return backend.prepare(model, target, device, cache)


def answers(name, proto, folder, feed, **options):
    """Outputs of one run."""
    runnable = prepared(name, source(proto, folder), **options)
    try:
        return runnable.run(feed)
    finally:
        runnable.close()


def reached(kind, variant):
    """The device of that kind that onnxruntime reaches by the variant, or skip."""
    device = {"gpu": GPU, "npu": NPU}[kind]
    found = [reach for reach in devices.backend("onnxruntime").reaches([device]) if reach.variant == variant]
    if not found or found[0].health == "failed":
        why = found[0].detail if found else "no such variant"
        if os.environ.get("EDGERT_SOFTWARE_DEVICES") == "1":
            pytest.fail(f"EDGERT_SOFTWARE_DEVICES=1, and onnxruntime+{variant} is not reached: {why}")
        pytest.skip(f"onnxruntime+{variant} is not reached ({why}); cross/software_devices.py sets one up")
    return device


def manifest():
    """The shared models' entries; none where EDGERT_MODELS is not set."""
    folder = os.environ.get("EDGERT_MODELS")
    if not folder:
        return []
    return json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["entries"]


def entry_source(entry):
    return source_of(Path(os.environ["EDGERT_MODELS"]) / entry["file"])


def cases(entry):
    """(inputs, expected outputs) of each known answer; of a stream, its frames are the inputs of one case."""
    folder = Path(os.environ["EDGERT_MODELS"])
    for case in entry["cases"]:
        expected = case.get("expected") or case["feeds"].replace(".npz", ".expected.npz")
        with np.load(folder / case["feeds"]) as feed, np.load(folder / expected) as outputs:
            yield dict(feed), dict(outputs)


def run_case(entry, runnable, feed):
    """Outputs for a case; a stream is run frame by frame, its state handed on."""
    if entry.get("run") != "stream":
        return runnable.run(feed)
    streamed, state = entry["stream_inputs"], dict(entry["state"])
    held = {name: value for name, value in feed.items() if name not in streamed}
    frames = []
    for index in range(len(feed[streamed[0]])):
        outputs = runnable.run({**held, **{name: feed[name][index] for name in streamed}})
        held = {into: outputs[out] for out, into in state.items()}
        frames.append(outputs)
    last = frames[-1]
    return {name: last[name] if name in state else np.stack([each[name] for each in frames]) for name in last}
