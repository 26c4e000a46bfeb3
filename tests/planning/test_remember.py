"""What is remembered of a model: found again under the same circumstances, and under no others."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from edgert import store
from edgert.machine import BackendInfo, Device, Machine, Reach
from edgert.plan import Instance, Plan, Segment, Tolerance
from edgert.planning import Memory, Wish
from edgert.profile import Row, Target

TARGET = Target("onnxruntime", "cpu:0", "f32", 1)
MACHINE = Machine(
    "x86_64", (Device("cpu:0", "cpu", "Some CPU", 8 << 30, (0, 1)),), (BackendInfo("onnxruntime", "1.0"),),
    (Reach("onnxruntime", "cpu:0"),),
)  # fmt: skip
PLAN = Plan(
    "m" * 64, MACHINE.fingerprint, {}, "latency", "own", "onnx", "f32", (), (), (Segment(TARGET),), (Instance(0),)
)


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path, "m" * 64, MACHINE)


def test_a_plan_is_found_by_the_wish_that_made_it(memory):
    memory.keep_plan(Wish(), PLAN)
    assert memory.plan(Wish()) == PLAN


@pytest.mark.parametrize(
    "wish",
    [Wish("throughput"), Wish(precision="any"), Wish(tolerance=Tolerance(lsb=3)), Wish(targets=("a@*",)),
     Wish(samples="digest")],
)  # fmt: skip
def test_another_wish_finds_nothing(memory, wish):
    memory.keep_plan(Wish(), PLAN)
    assert memory.plan(wish) is None


@pytest.mark.parametrize(
    "machine",
    [dataclasses.replace(MACHINE, devices=()),
     dataclasses.replace(MACHINE, backends=(BackendInfo("onnxruntime", "1.1"),)),
     dataclasses.replace(MACHINE, backends=(*MACHINE.backends, BackendInfo("openvino", "1"))),
     dataclasses.replace(MACHINE, reaches=(Reach("onnxruntime", "cpu:0", health="wrong"),))],
    ids=["devices", "version", "another backend", "health"],
)  # fmt: skip
def test_another_machine_finds_nothing(memory, machine):
    memory.keep_plan(Wish(), PLAN)
    memory.keep_rows("", "onnx", [Row(TARGET, "ok")])
    other = dataclasses.replace(memory, machine=machine)
    assert other.plan(Wish()) is None
    assert other.rows("") == {}


def test_another_model_finds_nothing(memory):
    memory.keep_plan(Wish(), PLAN)
    assert dataclasses.replace(memory, model="n" * 64).plan(Wish()) is None


def test_newer_rows_replace_older_ones_and_the_untried_are_no_knowledge(memory):
    other = Target("openvino", "cpu:0", "f32")
    memory.keep_rows("", "onnx", [Row(TARGET, "ok"), Row(other, "crashed", "boom")])
    memory.keep_rows("", "onnx", [Row(TARGET, "refused", "no"), Row(other, "untried")])
    assert {target: row.outcome for target, row in memory.rows("").items()} == {TARGET: "refused", other: "crashed"}


def test_without_a_folder_nothing_is_kept_and_nothing_breaks():
    memory = Memory(None, "m" * 64, MACHINE)
    memory.keep_plan(Wish(), PLAN)
    memory.keep_rows("", "", [Row(TARGET, "ok")])
    assert (memory.plan(Wish()), memory.rows(""), memory.compiled()) == (None, {}, None)


@pytest.mark.parametrize(
    "damage",
    [{"segments": [{"target": "nonsense", "nodes": [], "inputs": [], "outputs": []}]}, {"plan_format": 99}, {"id": "x"},
     {"inputs": None}],
)  # fmt: skip
def test_a_whole_entry_of_another_form_is_reported_and_not_used(memory, tmp_path, caplog, damage):
    memory.keep_plan(Wish(), PLAN)
    (path,) = (tmp_path / "plans").rglob("*.json")
    store.write_json(path, {**PLAN.to_json(), **damage})
    with caplog.at_level(logging.WARNING, "edgert"):
        assert memory.plan(Wish()) is None
    assert "measuring again" in caplog.text


def test_a_profile_of_another_form_is_reported_and_not_used(memory, tmp_path, caplog):
    memory.keep_rows("", "onnx", [Row(TARGET, "ok")])
    (path,) = (tmp_path / "profiles").rglob("*.json")
    store.write_json(path, {"rows": [{"target": "nonsense", "errors": []}]})
    with caplog.at_level(logging.WARNING, "edgert"):
        assert memory.rows("") == {}
    assert "measuring again" in caplog.text
