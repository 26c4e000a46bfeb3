"""How long a trial may run: a model that never ends costs what the budget says, and one cut short is tried again."""

from __future__ import annotations

import shutil

import pytest

import edgert
from edgert.devices.remote import Remote
from edgert.errors import ModelUnsupported
from edgert.measure import RUN_LIMIT_S
from edgert.planning import trials
from edgert.planning.trials import run_limit_s


@pytest.fixture
def endless(tmp_path):
    """A model whose loop never ends, whatever it is given."""
    onnx = pytest.importorskip("onnx", reason="the model is written with onnx")
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        endless (float[4] x) => (float[4] y) {
            always = Constant <value = bool {1}> ()
            y = Loop <body = step (int64 i, bool go_in, float[4] before) => (bool go, float[4] after) {
                go = Identity (go_in)
                after = Add (before, before)
            }> (, always, x)
        }
    """)
    onnx.save(proto, tmp_path / "endless.onnx")
    return tmp_path / "endless.onnx"


def test_the_limit_of_a_run_follows_the_budget_between_its_ends():
    limits = [run_limit_s(budget_s) for budget_s in (1e-3, 1, 2, 5, 10, 1000)]
    assert limits == [10, 10, 12, 30, RUN_LIMIT_S, RUN_LIMIT_S]
    assert run_limit_s(0) == RUN_LIMIT_S  # nothing is compared: the first that runs, however slow


def test_a_model_that_never_ends_is_refused_by_the_limit_of_the_budget(endless, machine_of, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "_FEWEST_RUN_S", 1.0)
    monkeypatch.setattr("edgert.planning.reference.LIMIT_S", 2.0)
    with pytest.raises(ModelUnsupported) as caught:
        edgert.load(endless, machine=machine_of("onnxruntime", "reference"), budget_s=0.1, cache_dir=tmp_path)
    assert "onnxruntime@cpu:0: no answer to 'run' within 1.0 s" in caught.value.message
    # The evaluator was at it for its two seconds already, and is not asked again.
    assert caught.value.message.count("evaluator onnx: no answer") == 1
    assert "larger budget_s than 0.1" in caught.value.remedy


def row_of(name, plan):
    return next(row for row in plan.candidates if row.target.backend == name)


@pytest.fixture
def model(line, tmp_path):
    """A model in a folder of its own."""
    return shutil.copy(line, tmp_path / "model.onnx")


@pytest.fixture
def hang(model, machine_of, tmp_path, monkeypatch):
    """Loads a model on a backend that hangs until the file 'go' lies beside the model, which then is soon found out."""
    prepare = Remote.prepare

    def impatient(self, source, target, *others, timeout_s=None):
        hangs = target.backend == "waits" and not (model.parent / "go").exists()
        return prepare(self, source, target, *others, timeout_s=0.5 if hangs else timeout_s)

    def load(**options):
        with edgert.load(model, machine=machine_of("waits", "reference"), cache_dir=tmp_path, **options) as loaded:
            return loaded.plan

    monkeypatch.setattr(Remote, "prepare", impatient)
    return load


def test_what_ran_out_of_a_short_time_is_tried_again_with_more_of_it(hang, model):
    hurried = hang(budget_s=1)
    assert row_of("waits", hurried).outcome == "timeout"
    assert not hurried.complete
    (model.parent / "go").touch()
    assert row_of("waits", hang(budget_s=10)).outcome == "ok"


def test_what_ran_out_of_the_longest_time_is_not_tried_again(hang, model):
    patient = hang(budget_s=10)
    assert patient.complete
    (model.parent / "go").touch()
    assert row_of("waits", hang(budget_s=20, objective="throughput")).reason.startswith("as before: ")


def test_without_a_budget_a_library_that_hangs_is_not_asked_for_each_number_of_threads(
    endless, machine_of, tmp_path, monkeypatch
):  # fmt: skip
    monkeypatch.setattr(trials, "RUN_LIMIT_S", 1.0)
    machine = machine_of("onnxruntime", "reference")
    with pytest.raises(ModelUnsupported) as caught:
        edgert.load(endless, machine=machine, budget_s=0, cache_dir=tmp_path, targets=["onnxruntime@cpu:0/f32/*"])
    assert caught.value.message.count("onnxruntime@cpu:0/f32/") == 1
