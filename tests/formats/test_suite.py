"""A seeded sample of the ONNX standard's own test models."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest

from edgert.formats import open_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the suite's builders overflow and deprecate on purpose
    from onnx.backend.test.loader import load_model_tests

    CASES = [case for kind in ("node", "simple", "pytorch-operator") for case in load_model_tests(kind=kind)]


@pytest.mark.parametrize("case", random.Random(2).sample(CASES, 120), ids=lambda case: case.name)
def test_a_model_of_the_standards_suite_opens_and_is_written_back(case, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(case.model.SerializeToString() if case.model else Path(case.model_dir, "model.onnx").read_bytes())
    model = open_model(path)
    inputs, outputs = model.write([node.name for node in model.graph.nodes], tmp_path / "w.onnx")
    again = open_model(tmp_path / "w.onnx").graph
    assert tuple(value.name for value in again.inputs) == inputs
    assert tuple(value.name for value in again.outputs) == outputs
    nodes = [node.name for node in model.graph.nodes]
    for part in (nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :]):
        if part:
            inputs, _ = model.write(part, tmp_path / "p.onnx")
            assert tuple(value.name for value in open_model(tmp_path / "p.onnx").graph.inputs) == inputs
    assert all(value.dtype is not None for value in again.outputs)
