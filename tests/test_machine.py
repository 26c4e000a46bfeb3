"""Machines as JSON, and what their fingerprint is over."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings

from edgert.errors import OptionError, UnknownTarget
from edgert.machine import BackendInfo, Device, Link, Machine, Reach
from tests.values import machines

CPU = Device("cpu:0", "cpu", "Some CPU", 8 << 30, (0, 1), ("avx2",))
MACHINE = Machine("x86_64", (CPU,), (BackendInfo("onnxruntime", "1.0"),), (Reach("onnxruntime", "cpu:0"),))


@given(machines)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_machine_reads_back_from_json_text(drawn):
    read = Machine.from_json(json.loads(json.dumps(drawn.to_json())))
    assert read == drawn
    assert read.fingerprint == drawn.fingerprint


@pytest.mark.parametrize(
    "change", [{"name": "X"}, {"cores": (0,)}, {"features": ()}, {"driver": "2"}, {"memory_bytes": 16 << 30}]
)
def test_the_fingerprint_changes_with_what_decides_speed_and_numbers(change):
    other = dataclasses.replace(MACHINE, devices=(dataclasses.replace(CPU, **change),))
    assert other.fingerprint != MACHINE.fingerprint


@pytest.mark.parametrize(
    "change", [{"bandwidth_bytes_per_s": 1e9}, {"peak_ops_per_s": {"f32": 1e9}}, {"memory_bytes": (8 << 30) + 4096}]
)
def test_the_fingerprint_ignores_what_is_measured_or_jitters(change):
    other = dataclasses.replace(MACHINE, devices=(dataclasses.replace(CPU, **change),), links=(Link("a", "b", 1, 1),))
    assert other.fingerprint == MACHINE.fingerprint


def test_only_ways_to_run_that_did_not_fail_are_reached():
    reaches = tuple(Reach("b", "cpu:0", health=health) for health in ("ok", "wrong", "failed", "untested"))
    found = dataclasses.replace(MACHINE, reaches=reaches).reached()
    assert [reach.health for reach in found] == ["ok", "untested"]


def test_an_unknown_device_is_refused_with_those_there_are():
    with pytest.raises(UnknownTarget, match="cpu:0"):
        MACHINE.device("gpu:0")
    assert MACHINE.device("cpu:0") is CPU
    assert MACHINE.backend("onnxruntime").usable
    assert MACHINE.backend("nothing") is None


@pytest.mark.parametrize(
    "damage", [{"format": 99}, {"devices": [{}]}, {"devices": 1}, {"backends": [{"surplus": 1}]}, {"format": None}]
)
def test_a_malformed_description_is_refused_with_the_command_that_makes_one(damage):
    with pytest.raises(OptionError, match="edgert probe"):
        Machine.from_json({**MACHINE.to_json(), **damage})
