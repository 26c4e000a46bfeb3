"""A model is tidied up before it is split: fewer blocks, the same answers, and a plan that still can be explained."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgert
from edgert.bundle import is_bundle
from edgert.execution.segments import seal, tidied_path
from edgert.formats import onnx_clean, open_model
from edgert.formats.onnx_placement import read_placement, wishes, write_placement
from edgert.partitioner.draw import draw_svg
from edgert.partitioner.explain import explain

onnx = pytest.importorskip("onnx", reason="the models are written with onnx")
ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "Relu", "Sigmoid", "Relu")


@pytest.fixture
def untidy(layers, tmp_path):
    """Six layers, the third with a Tanh; the first weight is a sum of two constants, and a node leads nowhere."""
    rng = np.random.default_rng(3)
    halves = [onnx.numpy_helper.from_array((rng.standard_normal((16, 16)) / 8).astype(np.float32), n) for n in "ab"]
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["w0"], "sum"),
             onnx.helper.make_node("Exp", ["x"], ["nothing"], "exp")]  # fmt: skip
    return layers(tmp_path / "untidy.onnx", *ACTIVATIONS, before=(nodes, halves))


def folder_of(cache, plan):
    return cache / "compiled" / plan.model[:16]


def check(load, path, model, feed):
    result = model.run(feed)
    assert result.receipt.targets == model.plan.targets
    assert not result.receipt.degraded
    known = load(path, "onnxruntime").run(feed)
    np.testing.assert_allclose(result["y"], known["y"], rtol=1e-4, atol=1e-5)


def test_constants_and_dead_nodes_are_no_blocks(load, untidy, feed, kept):
    model = load(untidy, "swift", "crawls", cache_dir=kept)
    nodes = [name for segment in model.plan.segments for name in segment.nodes]
    assert len(model.plan.segments) == 3, model.plan.explain()
    assert nodes == [node.name for node in open_model(untidy).graph.nodes if node.name not in ("sum", "exp")]
    assert "before it was split, 2 of 14 nodes were folded or dropped" in model.plan.notes
    assert model.plan.tidied == open_model(tidied_path(folder_of(kept, model.plan))).digest
    check(load, untidy, model, feed)


def test_the_plan_can_be_explained_drawn_and_exported_on_the_original(load, untidy, tmp_path, kept):
    plan = load(untidy, "swift", "crawls", cache_dir=kept).plan
    file = open_model(untidy)
    text = explain(plan, file.graph)
    assert "segment 1 of 3: swift@cpu:0/f32" in text
    assert "holds     6 nodes" in text  # the sum and the dead node are shown where their neighbours are
    assert "sum" in draw_svg(plan, file.graph, "untidy")
    write_placement(file, plan, tmp_path / "placed.onnx")
    placed = read_placement(open_model(tmp_path / "placed.onnx"))
    assert placed.devices == ("swift@cpu:0/f32", "crawls@cpu:0/f32")
    assert placed.stages["matmul0"] == 0
    assert placed.stages["act2"] == 1
    assert placed.stages["matmul3"] == 2
    assert "sum" not in placed.nodes


def test_a_placement_written_into_the_model_asks_for_the_same_targets(load, untidy, tmp_path):
    plan = load(untidy, "swift", "crawls", "drags").plan
    write_placement(open_model(untidy), plan, tmp_path / "placed.onnx")
    wanted = wishes(read_placement(open_model(tmp_path / "placed.onnx")))
    assert wanted == tuple(dict.fromkeys(map(str, plan.targets)))
    again = load(tmp_path / "placed.onnx", "swift", "crawls", "drags", targets=wanted).plan
    assert again.targets == plan.targets
    assert [segment.nodes for segment in again.segments] == [segment.nodes for segment in plan.segments]


def test_the_next_load_uses_what_is_there(load, untidy, feed, monkeypatch, kept):
    first = load(untidy, "swift", "crawls", cache_dir=kept)
    monkeypatch.setattr("edgert.planning.make_plan", lambda *_: pytest.fail("planned again"))
    second = load(untidy, "swift", "crawls", cache_dir=kept)
    assert second.plan == first.plan
    monkeypatch.undo()
    check(load, untidy, first, feed)


def test_segments_that_are_gone_are_cut_from_the_tidied_model_again(load, untidy, feed, kept):
    first = load(untidy, "swift", "crawls", cache_dir=kept)
    for path in (folder_of(kept, first.plan) / "segments-tidied").iterdir():
        path.unlink()
    check(load, untidy, load(untidy, "swift", "crawls", cache_dir=kept), feed)


def test_without_the_tidied_model_the_plan_is_made_anew(load, untidy, feed, tmp_path):
    first = load(untidy, "swift", "crawls")
    path = tidied_path(folder_of(tmp_path / "cache", first.plan))
    path.unlink()
    seal(path).unlink()
    check(load, untidy, load(untidy, "swift", "crawls"), feed)
    assert path.exists()


def test_a_tidied_model_with_other_answers_is_not_used(load, untidy, feed, monkeypatch):
    real = onnx_clean.clean

    def wrong(source, path, compute):
        return real(source, path, lambda *asked: {name: 2 * array for name, array in compute(*asked).items()})

    monkeypatch.setattr(onnx_clean, "clean", wrong)
    model = load(untidy, "swift", "crawls")
    (note,) = [note for note in model.plan.notes if "tidied" in note]
    assert note.startswith("the model is split as it is: tidied up it would give other numbers (output 'y': off by")
    assert not model.plan.tidied
    assert {"sum", "exp"} <= {name for segment in model.plan.segments for name in segment.nodes}
    check(load, untidy, model, feed)


def test_a_bundle_holds_the_tidied_segments(load, untidy, feed, tmp_path, machine_of):
    from edgert.compile import compile_model

    machine, cache = machine_of("swift", "crawls"), tmp_path / "cache"
    known = load(untidy, machine=machine)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("edgert.devices.probe.probe", lambda **_: machine)
        made = compile_model(untidy, tmp_path / "untidy.edgert", cache_dir=cache, budget_s=4)
    assert is_bundle(made.path)
    assert made.plan.tidied == known.plan.tidied
    with edgert.load(made.path, machine=machine, cache_dir=tmp_path / "other") as model:
        result = model.run(feed)
    assert result.receipt.targets == known.plan.targets
    np.testing.assert_allclose(result["y"], known.run(feed)["y"], rtol=1e-5, atol=1e-6)
    assert json.dumps(made.plan.to_json())
