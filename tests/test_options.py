"""A setting that makes no sense is an OptionError that names it, whatever it is."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert import options
from edgert.data import path as data
from edgert.devices.probe import glance
from edgert.errors import OptionError

MODEL = data("digits_f32.onnx")
NAN = float("nan")
NONSENSE = {
    "budget_s": ["abc", None, -1, NAN, float("inf"), [1], b"1", True, 1j, Decimal(1), np.zeros(2)],
    "tolerance": ["1e-3", -1, NAN, [1], 1j, object(), np.zeros(2), edgert.Tolerance(relative=-1)],
    "precision": [None, 5, "F32", ["f32"], np.array(["f32", "x"])],
    "targets": ["openvino@*", b"x", [], 5, [None], [1], {"a"}, ["nope"]],
    "samples": ["x", 5, [5], [None], {"a": 1}, np.zeros(3), iter([{}])],
    "objective": [None, 5, "nope", ["latency"]],
    "machine": [5, "x", {}],
    "isolation": [None, "x", []],
    "memory_limit_bytes": ["1GB", "x", 0, -5, NAN, float("inf"), [1], True],
    "progress": [5, "x"],
    "cache_dir": [5, "\0", [1]],
    "path": [None, 5, "\0", ["x"]],
    "source": [5, "\0"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Named by place: an address would differ from process to process.
        pytest.param(name, value, id=f"{name}-{place}-{type(value).__name__}")
        for name, values in NONSENSE.items()
        for place, value in enumerate(values)
    ],
)
def test_nonsense_is_refused_by_name(name, value, tmp_path):
    settings = {"path": MODEL, "cache_dir": tmp_path, "budget_s": 0, "machine": glance()}
    settings |= {name: value}
    if name == "source":
        settings["path"] = data("digits_i8.onnx")
    with pytest.raises(OptionError, match=f"(?i){name.removesuffix('s') if name == 'targets' else name}"):
        edgert.load(settings.pop("path"), **settings)


@pytest.mark.parametrize("setting", ["deadline_s", "priority"])
def test_a_request_that_makes_no_sense_is_refused(setting, tmp_path):
    with edgert.load(MODEL, cache_dir=tmp_path, budget_s=0.2, targets=["onnxruntime@*"]) as model:
        for value in ("soon", NAN, [1], np.zeros(2)):
            with pytest.raises(OptionError, match=setting):
                model.submit(np.zeros((1, 1, 8, 8), np.float32), **{setting: value})


def test_numbers_of_any_kind_will_do():
    assert options.seconds("x", np.float32(1.5)) == 1.5
    assert options.seconds("x", np.int64(2)) == 2


def test_paths_of_any_kind_will_do():
    assert options.path_of("x", b"/a/b") == options.path_of("x", Path("/a/b")) == Path("/a/b")
    assert options.path_of("x", "~/m.onnx") == Path.home() / "m.onnx"
