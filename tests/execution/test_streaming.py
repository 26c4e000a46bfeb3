"""Segments that take turns in memory."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.compile import compile_model
from edgert.devices import backend, memory
from edgert.devices.probe import glance
from edgert.errors import PrepareRefused, RunFailed
from edgert.execution.segments import Parts
from edgert.execution.streaming import LeanParts, Piece, Streamed, extents_of
from edgert.formats import open_model
from edgert.machine import Device
from edgert.plan import Segment
from edgert.profile import Target

TARGET = Target.parse("onnxruntime@cpu:0/f32/1t")
CPU = Device("cpu:0", "cpu", "here", 0)


@dataclass
class Shelf:
    """Pieces that add one, and a record of which of them are in memory."""

    count: int
    inside: set[int] = field(default_factory=set)
    seen: list[frozenset[int]] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pieces(self) -> list[Piece]:
        return [
            Piece(TARGET, (f"v{index}",), (f"v{index + 1}",), (), partial(_Loaded, self, index))
            for index in range(self.count)
        ]


class _Loaded:
    def __init__(self, shelf: Shelf, index: int) -> None:
        if index in shelf.broken:
            raise PrepareRefused(f"piece {index} is broken.", target="x")
        self.shelf, self.index = shelf, index
        with shelf.lock:
            shelf.inside.add(index)
            shelf.loads.append(index)
            shelf.seen.append(frozenset(shelf.inside))

    def run(self, inputs):
        return {f"v{self.index + 1}": inputs[f"v{self.index}"] + 1}

    def close(self) -> None:
        with self.shelf.lock:
            self.shelf.inside.remove(self.index)


def test_no_more_is_in_memory_than_the_plan_holds():
    shelf = Shelf(5)
    held = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)]
    streamed = Streamed(shelf.pieces(), ["v5"], held)
    for request in range(3):
        assert streamed.run({"v0": np.float32([request])})["v5"] == request + 5
    streamed.close()
    assert all(any(inside <= set(own) for own in held) for inside in shelf.seen)
    assert shelf.inside == set()


def test_what_stays_is_loaded_once():
    shelf = Shelf(3)
    streamed = Streamed(shelf.pieces(), ["v3"], [(0, 1), (0, 1, 2), (0, 2)])
    for _ in range(4):
        streamed.run({"v0": np.float32([0])})
    streamed.close()
    assert shelf.loads.count(0) == 1
    assert shelf.loads.count(1) > 1


def test_a_piece_that_does_not_load_is_named_and_tried_again():
    shelf = Shelf(3, broken={1})
    streamed = Streamed(shelf.pieces(), ["v3"], [(0,), (1,), (2,)])
    with pytest.raises(RunFailed, match=r"segment 2 of 3 on onnxruntime@cpu:0/f32/1t: piece 1 is broken"):
        streamed.run({"v0": np.float32([0])})
    shelf.broken.clear()
    assert streamed.run({"v0": np.float32([0])})["v3"] == 3
    streamed.close()


def test_resting_releases_everything_until_the_next_request():
    shelf = Shelf(2)
    streamed = Streamed(shelf.pieces(), ["v2"], [(0, 1), (0, 1)])
    streamed.run({"v0": np.float32([0])})
    streamed.rest()
    assert shelf.inside == set()
    assert streamed.run({"v0": np.float32([0])})["v2"] == 2
    streamed.close()


def _chain(folder: Path) -> Path:
    from bench.big_model import build

    folder.mkdir()
    return build(folder / "chain.onnx", 3 * 4 * 2048**2)


def _segment(model) -> Segment:
    inputs, outputs = model.graph.boundary(frozenset({0, 1}))
    return Segment(TARGET, tuple(node.name for node in model.graph.nodes[:2]), inputs, outputs)


def test_segments_share_one_copy_of_the_weights_and_give_the_same_numbers(tmp_path):
    model = open_model(_chain(tmp_path / "model"))
    source = _source(model)
    parts = LeanParts(source, tmp_path / "parts", lambda: model)
    own = extents_of(parts.source(_segment(model), model.graph.values).path)
    other = extents_of(parts.file([node.name for node in model.graph.nodes[2:4]]))
    assert own[1].path == other[1].path
    assert (own[1].offset, own[1].length) == (0, other[1].offset)
    assert (tmp_path / "model" / "chain.onnx.data").stat().st_nlink == 1
    x = np.random.default_rng(0).standard_normal((1, 2048)).astype(np.float32)
    lean = Target.parse("onnxruntime+lean@cpu:0/f32/1t")
    runnable = backend("onnxruntime").prepare(parts.source(_segment(model), model.graph.values), lean, CPU)
    expected = np.maximum(x @ model.graph.constants["w0"].read(), 0)
    np.testing.assert_allclose(runnable.run({"x0": x})["x1"], expected, rtol=1e-3, atol=1e-4)
    runnable.close()


def test_a_copy_that_changed_is_made_again(tmp_path):
    model = open_model(_chain(tmp_path / "model"))
    parts = LeanParts(_source(model), tmp_path / "parts", lambda: model)
    path = parts.source(_segment(model), model.graph.values).path
    copy = extents_of(path)[1].path
    with open(copy, "r+b") as file:
        file.write(b"\0" * 4096)
    assert parts.file(_segment(model).nodes) == path
    assert copy.read_bytes() == (tmp_path / "model" / "chain.onnx.data").read_bytes()


def test_a_tflite_whose_weights_lie_behind_its_tables_gives_the_same_numbers(tmp_path):
    from bench.big_model import build_tflite

    model = open_model(build_tflite(tmp_path / "chain.tflite", 3 * 4 * 256**2, wide=256))
    inputs, outputs = model.graph.boundary(frozenset({0, 1}))
    target = Target.parse("litert+builtin@cpu:0/f32/1t")
    segment = Segment(target, tuple(node.name for node in model.graph.nodes[:2]), inputs, outputs)
    x = np.random.default_rng(0).standard_normal((1, 256)).astype(np.float32)
    answers = []
    for parts in (Parts(_source(model), tmp_path / "plain"), LeanParts(_source(model), tmp_path / "lean")):
        runnable = backend("litert").prepare(parts.source(segment, model.graph.values), target, CPU)
        answers.append(runnable.run({"x0": x})["x2"])
        runnable.close()
    np.testing.assert_array_equal(*answers)
    assert np.ptp(answers[0]) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_bundle_carries_its_segments_and_runs_them_in_turn(tmp_path):
    from bench.big_model import build

    path = build(tmp_path / "big.onnx", 64 << 20, wide=1024)
    limit = memory.resident().now_bytes + 120_000_000
    made = compile_model(
        path, tmp_path / "big.edgert", memory_limit_bytes=limit, budget_s=0.1,
        targets=["onnxruntime@cpu:0/f32/1t"],
    )  # fmt: skip
    assert made.plan.residency is not None
    count = len(made.plan.segments)
    assert count > 2
    x = np.random.default_rng(0).standard_normal((1, 1024)).astype(np.float32)
    with edgert.load(path, targets=["onnxruntime@cpu:0/f32/1t"], budget_s=0.1, machine=glance()) as whole:
        expected = whole.run(x)
    with edgert.load(tmp_path / "big.edgert") as model:
        result = model.run(x)
    assert (result.receipt.turns, expected.receipt.turns) == (count, 0)
    (name,) = result
    np.testing.assert_allclose(result[name], expected[name], rtol=1e-3, atol=1e-4 * np.ptp(expected[name]))


def _source(model):
    from edgert.devices.backend import Source

    return Source(model.path, model.format, model.graph.inputs, model.graph.outputs, model.precision)
