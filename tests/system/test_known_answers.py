"""Real models give their known answers through `edgert.load(...).run(...)`, on every target that accepts them."""

from __future__ import annotations

import numpy as np
import pytest

import edgert
from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.errors import ModelUnsupported
from edgert.formats import open_model
from edgert.planning.candidates import candidates
from edgert.transforms import NonMaxSuppression
from tests.devices.sources import cases, manifest, run_case

ENTRIES = {entry["id"]: entry for entry in manifest()}
HOME = {"onnx": "onnxruntime", "tflite": "litert"}
pytestmark = pytest.mark.skipif(not ENTRIES, reason="EDGERT_MODELS is not set")


def top1(entry, outputs, answer):
    (output,) = (item for item in entry["outputs"] if item["name"] == answer["output"])
    scores = outputs[output["name"]].reshape(-1).astype(np.float64)
    best = int(scores.argmax())
    scale, zero = output["quant"] or (0.0, 0)
    return {"index": [best], "score": [(scores[best] - zero) * scale if scale else scores[best]]}


def moments(entry, outputs, answer):
    return {
        name: [outputs[name].mean(dtype=np.float64), outputs[name].std(dtype=np.float64)] for name in answer["expect"]
    }


def faces(entry, outputs, answer):
    boxes = np.concatenate([outputs["boxes"][0], outputs["scores"][0, :, 1:]], axis=1)
    kept = NonMaxSuppression(iou=0.3, score=0.7)(boxes)
    return {"count": len(kept), "score": kept[:, 4], "box": kept[:, :4]}


def assert_answers(entry, name, model, backend):
    case = entry["cases"][name]
    answer = case["answer"]
    feed, _ = list(cases(entry))[name]
    found = {"top1": top1, "moments": moments, "faces": faces}[answer["kind"]](
        entry, run_case(entry, model, feed), answer
    )
    tolerances = answer["tol" if backend == HOME[entry["format"]] else "tol_cross"]
    for key, expected in answer["expect"].items():
        allowed = tolerances.get(key, tolerances.get("*"))
        assert np.allclose(found[key], expected, rtol=0, atol=allowed + 1e-4), (case["name"], key, found[key])


def targets_of(path):
    file = open_model(path)
    source = Source(path, file.format, file.graph.inputs, file.graph.outputs, file.precision)
    return [str(target) for target in candidates(source, glance(), wanted=["*"]).targets]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "litert", "reference"])
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_target_that_accepts_a_model_gives_its_known_answers(entry, backend, known_models, tmp_path):
    path = known_models / entry["file"]
    targets = [target for target in targets_of(path) if target.startswith((f"{backend}@", f"{backend}+"))]
    if not targets:
        pytest.skip(f"{backend} does not read {path.suffix}, or is not installed")
    answered = []
    for target in targets:
        try:
            model = edgert.load(path, targets=[target], machine=glance(), budget_s=0.5, cache_dir=tmp_path)
        except ModelUnsupported:
            continue
        with model:
            for index in range(len(entry["cases"])):
                assert_answers(entry, index, model, backend)
            assert [str(used) for used in model.plan.targets] == [target]
        answered.append(target)
    if backend == HOME[entry["format"]]:
        assert answered


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_what_is_chosen_gives_the_known_answers_and_says_whether_it_was_checked(entry, known_models):
    path = known_models / entry["file"]
    with edgert.load(path, budget_s=3) as model:
        for index in range(len(entry["cases"])):
            assert_answers(entry, index, model, model.plan.targets[0].backend)
        verification = model.plan.verification
        if verification.verified:
            assert model.plan.fallbacks
        else:  # the kernels for integers may differ by more than a step after many layers
            assert "differ" in verification.reason
            assert any("could not be checked" in note for note in model.plan.notes)
