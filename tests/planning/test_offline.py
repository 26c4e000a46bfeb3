"""Plans from a profile alone: what decides, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

import edgert
from edgert import bundle, measure
from edgert.compile import compile_model
from edgert.devices.probe import glance
from edgert.errors import ModelUnsupported, OptionError, UnknownTarget
from edgert.formats import open_model
from edgert.plan import Tolerance
from edgert.planning import Wish
from edgert.planning.offline import (
    plan_from_profile,
    profile_document,
    profile_of,
    read_machine,
    read_profile,
    write_profile,
)
from edgert.profile import OutputError, Profile, Row, Target, Timing

pytest.importorskip("onnxruntime", reason="the models run on it")
pytest.importorskip("onnx", reason="the models are read with it")

FAST, SLOW = "onnxruntime@cpu:0/f32/1t", "openvino@cpu:0/f32/1t"


@pytest.fixture
def machine():
    """A board that is not at hand: four cores, two libraries."""
    seen = glance()
    cpu = dataclasses.replace(seen.devices[0], name="a board's CPU", cores=(0, 1, 2, 3))
    kept = ("onnxruntime", "openvino")
    return dataclasses.replace(
        seen,
        devices=(cpu,),
        backends=tuple(
            dataclasses.replace(info, version="7", reason="") for info in seen.backends if info.name in kept
        ),
        reaches=tuple(reach for reach in seen.reaches if reach.backend in kept and reach.device == "cpu:0"),
    )


def row(target, p50_s, **fields):
    error = OutputError("y", fields.pop("range_fraction", 1e-6), 0, 120.0, True)
    timing = Timing(p50_s, p50_s, p50_s, 9, 9, fields.pop("items_per_s", 0.0), fields.pop("instances", 1))
    return dataclasses.replace(Row(Target.parse(target), "ok", timing=timing, errors=(error,)), **fields)


@pytest.fixture
def file(line):
    return open_model(line)


@pytest.fixture
def profile(file, machine):
    rows = (row(SLOW, 2e-3), row(FAST, 1e-3), row("openvino@cpu:0/bf16/1t", 5e-4))
    versions = {"onnxruntime": "7", "openvino": "7"}
    return Profile(file.digest, machine.fingerprint, versions, "synthesised:0", "onnx", rows)


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    def refuse(_, name):
        pytest.fail(f"{name} was started: nothing is to be measured")

    monkeypatch.setattr(measure.Remotes, "borrow", refuse)


def targets(plan):
    return [str(target) for target in plan.targets]


def test_the_fastest_row_that_is_allowed_wins(file, machine, profile):
    plan = plan_from_profile(file, machine, Wish(), profile)
    assert targets(plan) == [FAST]
    assert str(plan.fallbacks[0]) == SLOW
    assert (plan.machine, plan.measured_s) == (machine.fingerprint, 1e-3)
    assert plan.verification.reference == "onnx"
    assert plan.verification.verified
    assert any("from a profile" in note for note in plan.notes)
    assert edgert.Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_lower_precision_wins_when_it_is_allowed(file, machine, profile):
    assert targets(plan_from_profile(file, machine, Wish(precision="any"), profile)) == ["openvino@cpu:0/bf16/1t"]


def test_wanted_targets_are_obeyed(file, machine, profile):
    assert targets(plan_from_profile(file, machine, Wish(targets=("openvino@*",)), profile)) == [SLOW]
    with pytest.raises(UnknownTarget):
        plan_from_profile(file, machine, Wish(targets=("litert@*",)), profile)


def test_the_tolerance_is_judged_anew(file, machine, profile):
    rows = (row(FAST, 1e-3, range_fraction=9e-5), row(SLOW, 2e-3))
    coarse = dataclasses.replace(profile, rows=rows)
    strict = Wish(tolerance=Tolerance(range_fraction=1e-5))
    assert targets(plan_from_profile(file, machine, Wish(), coarse)) == [FAST]
    plan = plan_from_profile(file, machine, strict, coarse)
    assert targets(plan) == [SLOW]
    assert {str(row.target): row.outcome for row in plan.candidates}[FAST] == "wrong"
    with pytest.raises(OptionError, match="relative"):
        plan_from_profile(file, machine, Wish(tolerance=Tolerance(relative=1e-3)), coarse)


def test_throughput_goes_by_items_a_second_and_keeps_the_instances(file, machine, profile):
    rows = (row(FAST, 1e-3, items_per_s=900.0), row(SLOW, 2e-3, items_per_s=1500.0, instances=3))
    plan = plan_from_profile(file, machine, Wish(objective="throughput"), dataclasses.replace(profile, rows=rows))
    assert (targets(plan), plan.items_per_s) == ([SLOW], 1500.0)
    assert [instance.cores for instance in plan.instances] == [(0,), (1,), (2,)]
    with pytest.raises(OptionError, match="no throughput"):
        plan_from_profile(file, machine, Wish(objective="throughput"), profile)


def test_numbers_that_nothing_confirmed_stay_unconfirmed(file, machine, profile):
    plan = plan_from_profile(file, machine, Wish(), dataclasses.replace(profile, reference=""))
    assert not plan.verification.verified
    assert "not confirmed" in plan.verification.reason


def test_what_has_no_right_row_is_refused_with_each_reason(file, machine, profile):
    rows = (row(FAST, 1e-3, outcome="wrong", reason="off by 3"), row(SLOW, 1.0, outcome="refused", reason="no op"))
    with pytest.raises(ModelUnsupported, match=r"off by 3.*profile has no row.*no op"):
        plan_from_profile(file, machine, Wish(), dataclasses.replace(profile, rows=rows))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": "0" * 64}, "model: measured 0000000000000000, this is"),
        ({"machine": "f" * 16}, "machine: measured on ffffffffffffffff, planned for"),
        ({"versions": {"onnxruntime": "6", "openvino": "7"}}, "onnxruntime: measured with 6, the machine has 7"),
        ({"versions": {"onnxruntime": "7"}}, "openvino: measured with none, the machine has 7"),
    ],
)
def test_a_profile_of_something_else_is_refused_with_the_difference(file, machine, profile, fields, told):
    with pytest.raises(OptionError, match=told):
        plan_from_profile(file, machine, Wish(), dataclasses.replace(profile, **fields))


def test_a_profile_is_read_as_it_was_written(profile, tmp_path):
    strange = dataclasses.replace(
        profile,
        rows=(
            *profile.rows,
            Row(Target.parse(FAST), "wrong", errors=(OutputError("y", math.inf, 0, -math.inf, False),)),
        ),
    )
    write_profile(tmp_path / "p.json", strange)
    assert read_profile(tmp_path / "p.json") == strange


@pytest.mark.parametrize(
    "change",
    [
        {"profile_format": 2},
        {"rows": [{"target": "x"}]},
        {"rows": 3},
        {"rows": [None]},
        {"more": 1},
        {"profile_format": None},
    ],
    ids=str,
)
def test_a_malformed_profile_is_an_option_error(profile, tmp_path, change):
    (tmp_path / "p.json").write_text(json.dumps({**profile_document(profile), **change}))
    with pytest.raises(OptionError, match=r"p\.json.*edgert profile"):
        read_profile(tmp_path / "p.json")


@pytest.mark.parametrize("seconds", [math.nan, -1.0, "fast", None])
def test_a_profile_with_impossible_times_is_refused(profile, tmp_path, seconds):
    document = profile_document(profile)
    document["rows"][0]["timing"]["p50_s"] = seconds
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(OptionError, match=r"p\.json"):
        read_profile(tmp_path / "p.json")


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"\xff", b"[" * 100_000, None], ids=["empty", "list", "binary", "deep", "missing"]
)
@pytest.mark.parametrize("read", [read_profile, read_machine])
def test_what_is_no_json_object_is_an_option_error(tmp_path, read, content):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(OptionError, match=r"x\.json"):
        read(tmp_path / "x.json")


def test_a_machine_is_read_as_probe_described_it(machine, tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(machine.to_json()))
    assert read_machine(path) == machine
    path.write_text(json.dumps({**machine.to_json(), "architecture": "vax"}))
    with pytest.raises(OptionError, match="fingerprint"):
        read_machine(path)


def test_a_bundle_for_another_machine_is_made_without_running_anything(line, machine, profile, tmp_path):
    made = compile_model(str(line), str(tmp_path / "line.edgert"), machine=machine, profile=profile)
    assert bundle.read(str(made.path)).plan == made.plan
    assert (made.machine, made.profile, targets(made.plan)) == (machine, profile, [FAST])
    with pytest.raises(ModelUnsupported, match="made for a board's CPU"):
        edgert.load(made.path, machine=glance(), cache_dir=tmp_path / "cache")


def test_another_machine_cannot_be_measured_here(line, machine, tmp_path):
    with pytest.raises(OptionError, match=r"not this one.*fingerprint .* there, .* here.*--profile"):
        compile_model(line, tmp_path / "line.edgert", machine=machine)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_not_compiled_again(line, machine, profile, tmp_path):
    made = compile_model(line, tmp_path / "line.edgert", machine=machine, profile=profile)
    with pytest.raises(OptionError, match="bundle already"):
        compile_model(made.path, tmp_path / "again.edgert", machine=machine, profile=profile)


def test_a_disputed_reference_counts_as_none(file, machine, profile):
    plan = plan_from_profile(file, machine, Wish(), profile)
    check = dataclasses.replace(plan.verification, disputed="two against one")
    assert profile_of(plan).reference == "onnx"
    assert profile_of(dataclasses.replace(plan, verification=check)).reference == ""
