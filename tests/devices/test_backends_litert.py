from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from edgert import devices
from edgert.data import path as path_of
from edgert.devices import litert, quiet
from edgert.errors import MissingPackage, PrepareRefused, RunFailed, UnknownTarget
from edgert.machine import Device
from edgert.profile import Target
from tests.devices.sources import CPU, prepared, source_of

pytest.importorskip("ai_edge_litert", reason="the models of these tests are written with ai-edge-litert's schema")
models = pytest.importorskip("tests.formats.models")

EVERY_VARIANT = pytest.mark.parametrize("variant", ["", "builtin", "ref"])


def written(flat, folder, name="model.tflite"):
    path = folder / name
    path.write_bytes(flat if isinstance(flat, bytes) else flat.bytes())
    return source_of(path)


def sums(shape=(1, 4), dtype="FLOAT32", **fields):
    """y = x + x."""
    flat = models.Flat()
    graph = flat.subgraph()
    x = flat.tensor(graph, "x", shape, dtype, **fields)
    y = flat.tensor(graph, "y", shape, dtype, **fields)
    flat.op(graph, "ADD", [x, x], [y], "AddOptions")
    graph.inputs, graph.outputs = [x], [y]
    return flat


def copies(dtype, shape=(2,)):
    """y = x, for a type that has no arithmetic."""
    flat = models.Flat()
    graph = flat.subgraph()
    x, y = flat.tensor(graph, "x", shape, dtype), flat.tensor(graph, "y", (*shape, 1), dtype)
    flat.op(graph, "EXPAND_DIMS", [x, flat.tensor(graph, "axis", (), "INT32", np.int32(-1))], [y], "ExpandDimsOptions")
    graph.inputs, graph.outputs = [x], [y]
    return flat


def accumulator():
    """y = state + x with a variable tensor that an SVDF layer would leave behind in an interpreter."""
    flat = models.Flat()
    graph = flat.subgraph()
    x = flat.tensor(graph, "x", (1, 2))
    feature = flat.tensor(graph, "feature", (1, 2), data=np.ones((1, 2), np.float32))
    time = flat.tensor(graph, "time", (1, 3), data=np.ones((1, 3), np.float32))
    state = flat.tensor(graph, "state", (1, 3), isVariable=True)
    y = flat.tensor(graph, "y", (1, 1))
    flat.op(graph, "SVDF", [x, feature, time, -1, state], [y], "SVDFOptions", rank=1)
    graph.inputs, graph.outputs = [x], [y]
    return flat


@EVERY_VARIANT
def test_a_result_is_the_callers_own(variant, tmp_path):
    runnable = prepared("litert", written(sums(), tmp_path), variant=variant)
    first = runnable.run({"x": np.ones((1, 4), np.float32)})["y"]
    runnable.run({"x": np.zeros((1, 4), np.float32)})
    assert first.tolist() == [[2, 2, 2, 2]]
    assert runnable.ran_on == {"cpu:0": 1}


@EVERY_VARIANT
def test_a_free_dimension_takes_any_size_and_comes_back(variant, tmp_path):
    runnable = prepared("litert", written(sums(shapeSignature=[-1, 4]), tmp_path), variant=variant)
    for count in (3, 1, 5, 3):
        x = np.full((count, 4), count, np.float32)
        np.testing.assert_array_equal(runnable.run({"x": x})["y"], 2 * x)


@EVERY_VARIANT
def test_a_run_does_not_depend_on_those_before_it(variant, tmp_path):
    runnable = prepared("litert", written(accumulator(), tmp_path), variant=variant)
    x = np.ones((1, 2), np.float32)
    assert [runnable.run({"x": x})["y"].tolist() for _ in range(3)] == [[[2.0]]] * 3


@pytest.mark.parametrize("dtype", ["BOOL", "INT8", "INT32", "INT64", "UINT8", "FLOAT32"])
def test_every_type_comes_back_as_itself(dtype, tmp_path):
    x = np.array([0, 1]).astype(dtype.lower())
    got = prepared("litert", written(copies(dtype), tmp_path)).run({"x": x})["y"]
    assert got.dtype == x.dtype
    assert got.ravel().tolist() == x.tolist()


def test_strings_are_object_arrays_of_str(tmp_path):
    got = prepared("litert", written(copies("STRING"), tmp_path)).run({"x": np.array(["a", "bücher"], object)})["y"]
    assert got.dtype == object
    assert got.tolist() == [["a"], ["bücher"]]


def test_control_flow_and_the_first_signatures_inputs_run(tmp_path):
    x = np.ones((1, 4), np.float32)
    assert prepared("litert", written(models.tflite_while(), tmp_path)).run({"x": x})["y"].tolist() == [[17] * 4]


def test_an_op_that_it_does_not_have_is_refused_by_name(tmp_path):
    with pytest.raises(PrepareRefused, match=r"litert@cpu:0/i8/1t.*Mystery"):
        prepared("litert", written(models.tflite_rich(), tmp_path))


def test_a_run_that_breaks_says_who_and_why_and_the_next_one_works(tmp_path):
    runnable = prepared("litert", written(sums(shapeSignature=[-1, 4]), tmp_path))
    with pytest.raises(RunFailed, match="litert@cpu:0/f32/1t failed while it ran"):
        runnable.run({"x": np.zeros((1, 4), np.int8)})
    assert runnable.run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 4)
    runnable.close()
    runnable.close()
    with pytest.raises(RunFailed, match="closed"):
        runnable.run({"x": np.ones((2, 4), np.float32)})


def test_it_offers_the_models_own_precision_on_the_cpu_alone(tmp_path):
    backend, made = devices.backend("litert"), written(sums(), tmp_path)
    assert backend.targets(made, CPU, "", [1, 2]) == (
        Target("litert", "cpu:0", "f32", 1), Target("litert", "cpu:0", "f32", 2),
    )  # fmt: skip
    assert backend.targets(made, Device("gpu:0", "gpu", "a GPU", 0), "", [1]) == ()
    with pytest.raises(UnknownTarget, match="'warp'"):
        backend.targets(made, CPU, "warp", [1])
    with pytest.raises(PrepareRefused, match="own precision"):
        backend.prepare(made, Target("litert", "cpu:0", "bf16", 1), CPU)


def test_tflite_runtime_beside_a_numpy_that_it_cannot_use_is_missing_and_not_there(monkeypatch):
    monkeypatch.setattr(litert, "_PACKAGES", {"tflite_runtime": "tflite-runtime"})
    monkeypatch.setitem(sys.modules, "tflite_runtime", types.ModuleType("tflite_runtime"))
    monkeypatch.setattr(sys.modules["tflite_runtime"], "__spec__", types.SimpleNamespace(), raising=False)
    monkeypatch.setattr(litert, "version", lambda name: "2.1.0")
    with pytest.raises(MissingPackage, match=r"tflite-runtime.*numpy before 2, here is 2\.1\.0.*numpy<2"):
        devices.backend("litert").version()


def test_without_any_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr(litert, "_PACKAGES", {"no_such_litert": "ai-edge-litert"})
    for ask in (devices.backend("litert").version, lambda: devices.backend("litert").reaches([CPU])):
        with pytest.raises(MissingPackage, match=r'pip install "edgert\[tflite\]"') as caught:
            ask()
        assert caught.value.package == "ai-edge-litert"


IN_ITS_OWN_PROCESS = """
import os, sys
from pathlib import Path
from edgert.devices import litert, quiet
from tests.devices.sources import prepared, source_of
noisy = sys.argv[2] == "noisy"
if noisy:
    class Talkative:
        def __getattr__(self, name):
            os.write(2, b"ERROR: something real\\nINFO: other news\\n")
            return getattr(library, name)
    library = litert._interpreter_module()
    litert._interpreter_module = Talkative
model = source_of(Path(sys.argv[1]))
prepared("litert", model)
os.write(2, b"after\\n")
prepared("litert", model)
"""


@pytest.mark.parametrize(("kind", "said"), [("plain", "after"), ("noisy", "ERROR: something real INFO: other news")])
def test_its_greeting_never_reaches_the_callers_stderr_and_everything_else_does(kind, said):
    done = subprocess.run(
        [sys.executable, "-c", IN_ITS_OWN_PROCESS, path_of("digits_f32.tflite"), kind],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "XNNPACK" not in done.stderr
    assert said in " ".join(done.stderr.split())


def test_stderr_that_is_filtered_still_reaches_a_process_forked_meanwhile(capfd):
    with quiet.stderr_without(b"chatter"):
        late = subprocess.Popen([sys.executable, "-c", "import os; input(); os.write(2, b'late\\n')"],
                                stdin=subprocess.PIPE, text=True)  # fmt: skip
        os.write(2, b"chatter of a library\nnews\n")
    assert capfd.readouterr().err == "news\n"
    late.communicate("go\n")
    for thread in threading.enumerate():
        if thread.name == "stderr filter":
            thread.join()
    assert capfd.readouterr().err == "late\n"
