"""Plans of several segments: split gives the unsplit answer, failures are named and answered by a fallback."""

from __future__ import annotations

import itertools
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from bench.zoo import build
from edgert import data, formats, samples
from edgert.devices import backend
from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.errors import OptionError, RunFailed
from edgert.execution.pipeline import Pipeline
from edgert.execution.segments import Parts, Relay, Step
from edgert.formats import open_model
from edgert.partitioner.blocks import blocks_of
from edgert.plan import Instance, Plan, Segment, Tolerance, Verification
from edgert.profile import Target
from edgert.verify import compare, judge, output_steps

MODELS = ("digits_f32.onnx", "digits_i8.onnx", "digits_f32.tflite", "digits_i8.tflite")
ZOO = (
    ("kws", "f32", "onnx"), ("kws", "i8", "onnx"), ("kws", "i8", "tflite"), ("lstm", "f32", "onnx"),
    ("dlrm", "f32", "onnx"), ("mobilenet_v2", "f32", "onnx"), ("unet", "f32", "onnx"), ("bert_4x256", "f32", "onnx"),
)  # fmt: skip
REAL = (
    "dtln_model_1.onnx", "dtln_model_1.tflite", "mlperf_tiny_ic_resnet_f32.tflite", "mlperf_tiny_ic_resnet_int8.tflite",
    "mlperf_tiny_kws_dscnn_int8.tflite", "mobilenet_v2_1.0_224_quant.tflite", "ultraface_rfb_320.onnx",
)  # fmt: skip
CUTS = int(os.environ.get("EDGERT_CUTS", "3"))
"""Ways in which each model is cut."""
TARGETS = {  # format -> backends that read it
    "onnx": ("onnxruntime", "openvino"),
    "tflite": ("litert", "openvino"),
}


@pytest.fixture(scope="module")
def machine():
    return glance()


def source_of(file):
    return Source(file.path, file.format, file.graph.inputs, file.graph.outputs, file.precision)


def target_of(name, precision):
    return Target(name, "cpu:0", precision, 0 if name == "reference" else 1)


def cut_at(graph, places):
    """Names of the nodes of each stretch of blocks between the places."""
    blocks = blocks_of(graph)
    edges = [0, *sorted(places), len(blocks)]
    stretches = [blocks[low:high] for low, high in itertools.pairwise(edges)]
    return [tuple(graph.nodes[i].name for block in part for i in block.nodes) for part in stretches if part]


def plan_of(file, machine, pieces, targets, fallbacks=()):
    graph = file.graph
    index = {node.name: number for number, node in enumerate(graph.nodes)}
    segments = []
    for nodes, target in zip(pieces, targets, strict=True):
        inputs, outputs = graph.boundary(frozenset(index[name] for name in nodes))
        segments.append(Segment(target, nodes, inputs, outputs))
    crossing = dict.fromkeys(name for segment in segments for name in (*segment.inputs, *segment.outputs))
    return Plan(
        file.digest, machine.fingerprint, {}, "latency", "own", file.format, file.precision, graph.inputs,
        graph.outputs, tuple(segments), tuple(Instance(number) for number in range(len(segments))),
        fallbacks=tuple(fallbacks), verification=Verification("onnx"),
        values=tuple(graph.values[name] for name in crossing),
    )  # fmt: skip


def whole(file, machine, name, inputs):
    target = target_of(name, file.precision)
    runnable = backend(name).prepare(source_of(file), target, machine.device("cpu:0"))
    try:
        return runnable.run(inputs)
    finally:
        runnable.close()


def check_cuts(path, machine, folder):
    """Cut a model at random legal places, run the pieces on random targets, and hold the answer to the unsplit one."""
    file = open_model(path)
    (inputs,) = samples.synthesise(file.graph, count=1)
    choice = random.Random(Path(path).name)
    backends = TARGETS[file.format]
    expected, *others = [whole(file, machine, name, inputs) for name in backends]
    blocks = len(blocks_of(file.graph))
    for _ in range(CUTS):
        places = choice.sample(range(1, blocks), choice.randint(1, min(3, blocks - 1)))
        pieces = cut_at(file.graph, places)
        targets = [target_of(choice.choice(takers(file, nodes)), file.precision) for nodes in pieces]
        pipeline = Pipeline(plan_of(file, machine, pieces, targets), source_of(file), machine, folder)
        try:
            made = pipeline.run(inputs)
        finally:
            pipeline.close()
        assert made.targets == tuple(targets), made.reason
        assert not difference(file, expected, others, made.outputs), (places, targets)


def takers(file, nodes):
    """The backends for a piece: OpenVINO wants to know how many axes its inputs have, and not every model says so."""
    graph = file.graph
    index = {node.name: number for number, node in enumerate(graph.nodes)}
    inputs, _ = graph.boundary(frozenset(index[name] for name in nodes))
    known = all(graph.values[name].shape is not None for name in inputs)
    return TARGETS[file.format] if known else TARGETS[file.format][:1]


def difference(file, expected, others, outputs):
    """Why the answers differ by more than their precision allows; integers by more than those of unsplit models do."""
    errors = compare(expected, outputs, output_steps(file.graph))
    if file.precision != "i8":
        return judge(errors, Tolerance(same_top1=False), file.precision, file.precision, {})
    usual = {}
    for other in others:
        for error in compare(expected, other, output_steps(file.graph)):
            usual[error.name] = max(usual.get(error.name, 0.0), error.range_fraction)
    # Kernels of one integer arithmetic round differently here and there: one step, or twice what libraries differ by.
    return [e for e in errors if e.mismatch or (e.lsb > 1 and e.range_fraction > max(0.02, 2 * usual[e.name]))]


@pytest.mark.parametrize("name", MODELS)
def test_cut_at_random_places_on_random_targets_gives_the_unsplit_answer(name, machine, tmp_path):
    check_cuts(data.path(name), machine, tmp_path)


@pytest.mark.parametrize(("name", "precision", "form"), ZOO)
def test_a_model_of_the_zoo_cut_anywhere_gives_the_unsplit_answer(name, precision, form, machine, tmp_path):
    check_cuts(build(name, precision, format=form), machine, tmp_path)


@pytest.mark.parametrize("name", REAL)
def test_a_real_model_cut_anywhere_gives_the_unsplit_answer(name, machine, tmp_path, known_models):
    check_cuts(known_models / name, machine, tmp_path)


@pytest.fixture
def split(machine, tmp_path):
    """The float digits in two, both on ONNX Runtime, with the whole on OpenVINO to fall back on."""
    file = open_model(data.path("digits_f32.onnx"))
    target = target_of("onnxruntime", "f32")
    plan = plan_of(file, machine, cut_at(file.graph, [2]), [target, target], [target_of("openvino", "f32")])
    (inputs,) = samples.synthesise(file.graph, count=1)
    return file, plan, inputs, tmp_path


def test_a_plan_of_segments_needs_no_reader_once_they_are_written(split, machine, monkeypatch):
    file, plan, inputs, folder = split
    Pipeline(plan, source_of(file), machine, folder).close()
    monkeypatch.setattr(formats, "open_model", lambda path: pytest.fail(f"{path} was read again"))
    pipeline = Pipeline(plan, source_of(file), machine, folder)
    assert pipeline.run(inputs).targets == plan.targets
    pipeline.close()


def test_a_damaged_segment_is_written_again(split, machine):
    file, plan, inputs, folder = split
    Pipeline(plan, source_of(file), machine, folder).close()
    for path in (folder / "segments").glob("*.onnx"):
        path.write_bytes(path.read_bytes()[:-40])
    pipeline = Pipeline(plan, source_of(file), machine, folder)
    assert pipeline.run(inputs).targets == plan.targets
    pipeline.close()


def test_without_a_cache_nothing_stays_behind(split, machine, tmp_path, monkeypatch):
    file, plan, inputs, _ = split
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pipeline = Pipeline(plan, source_of(file), machine, None)
    assert pipeline.run(inputs).targets == plan.targets
    pipeline.close()
    assert not list(tmp_path.iterdir())


def test_a_segment_that_fails_is_answered_for_by_the_whole_model(split, machine, monkeypatch):
    file, plan, inputs, folder = split
    expected = whole(file, machine, "onnxruntime", inputs)
    pipeline = Pipeline(plan, source_of(file), machine, folder)
    good = pipeline.run(inputs)

    def broken(_values):
        raise RunFailed("the second device is on fire.")

    steps = pipeline._current._relay._steps
    pipeline._current._relay._steps = (steps[0], Step(steps[1].target, steps[1].inputs, steps[1].outputs, broken))
    made = pipeline.run(inputs)
    pipeline.close()
    assert (good.reason, good.targets) == ("", plan.targets)
    assert made.targets == plan.fallbacks
    assert "segment 2 of 2" in made.reason
    assert "on fire" in made.reason
    for name, array in expected.items():
        np.testing.assert_allclose(made.outputs[name], array, rtol=1e-4, atol=1e-4)


def test_a_segment_that_does_not_prepare_leaves_the_whole_model(split, machine):
    file, plan, inputs, folder = split
    bad = Segment(
        Target("litert", "cpu:0", "f32", 1), *[getattr(plan.segments[1], n) for n in ("nodes", "inputs", "outputs")]
    )
    broken = Plan(**{**{f: getattr(plan, f) for f in plan.__dataclass_fields__}, "segments": (plan.segments[0], bad)})
    pipeline = Pipeline(broken, source_of(file), machine, folder)
    made = pipeline.run(inputs)
    pipeline.close()
    assert made.targets == plan.fallbacks
    assert "litert" in made.reason


def step(device, inputs, outputs, run):
    return Step(Target("right", device, "f32"), inputs, outputs, run)


def test_segments_on_different_devices_run_at_the_same_time():
    meet = threading.Barrier(2, timeout=30)

    def branch(values):
        meet.wait()  # passes only when both are there
        return {f"{name}{name}": value + 1 for name, value in values.items()}

    steps = [
        step("cpu:0", ("x",), ("a", "b"), lambda values: {"a": values["x"], "b": 2 * values["x"]}),
        step("cpu:0", ("a",), ("aa",), branch),
        step("gpu:0", ("b",), ("bb",), branch),
        step("cpu:0", ("aa", "bb"), ("y",), lambda values: {"y": values["aa"] + values["bb"]}),
    ]
    relay = Relay(steps, ["y"])
    assert relay.run({"x": np.float32([3.0])}) == {"y": np.float32([11.0])}
    relay.close()


def test_segments_of_one_device_never_run_at_the_same_time():
    inside = threading.Lock()

    def alone(values):
        assert inside.acquire(blocking=False)
        inside.release()
        return {"out" + name: value for name, value in values.items()}

    steps = [step("cpu:0" if number % 3 else "gpu:0", (f"x{number}",), (f"outx{number}",),
                  alone if number % 3 else (lambda values: {"out" + n: v for n, v in values.items()}))
             for number in range(9)]  # fmt: skip
    relay = Relay(steps, [f"outx{number}" for number in range(9)])
    assert relay.run({f"x{number}": number for number in range(9)}) == {f"outx{n}": n for n in range(9)}
    relay.close()


def test_values_are_dropped_after_their_last_reader():
    seen = []

    def look(values):
        seen.append(sorted(values))
        return {"c": values["b"]}

    relay = Relay(
        [step("cpu:0", ("x",), ("a",), lambda v: {"a": v["x"]}), step("cpu:0", ("a",), ("b",), lambda v: {"b": v["a"]}),
         step("cpu:0", ("b",), ("c",), look)], ["c"],
    )  # fmt: skip
    assert relay._dead == [("x",), ("a",), ("b",)]
    assert relay.run({"x": 1}) == {"c": 1}
    assert seen == [["b"]]


def test_kept_values_become_outputs_of_the_file(tmp_path):
    file = open_model(data.path("digits_f32.onnx"))
    kept = [node.writes[0] for node in file.graph.nodes[:2]]
    path = Parts(source_of(file), tmp_path).file([node.name for node in file.graph.nodes], kept)
    assert [value.name for value in open_model(path).graph.outputs] == [
        *(value.name for value in file.graph.outputs), *kept,
    ]  # fmt: skip


def test_only_values_that_are_made_can_be_kept(tmp_path):
    file = open_model(data.path("digits_f32.onnx"))
    with pytest.raises(OptionError, match="is not made"):
        file.write([file.graph.nodes[0].name], tmp_path / "part.onnx", ["elsewhere"])


def test_what_was_only_tried_is_removed(tmp_path):
    file = open_model(data.path("digits_f32.onnx"))
    parts = Parts(source_of(file), tmp_path)
    names = [node.name for node in file.graph.nodes]
    kept, tried = parts.file(names[:2]), parts.file(names[2:])
    parts.prune([Segment(target_of("onnxruntime", "f32"), tuple(names[:2]))])
    assert kept.exists()
    assert not tried.exists()
    assert len(list(tmp_path.iterdir())) == 2  # the kept one and its digest
