"""What limits say after very many faults, and after a time in which nobody looked."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgert.devices.backend import Source
from edgert.execution.limits import Limits
from edgert.execution.member import Held, Member, Order, Place
from edgert.machine import Device
from edgert.profile import Target
from edgert.transport.messages import Heartbeat, Running

DEVICE = Device("npu:0", "npu", "a device on paper", 0)


def test_a_device_that_fails_for_days_is_still_tried_again():
    limits = Limits()
    assert [limits.backoff(faults) for faults in (1, 2, 9, 10, 2000, 10**6)] == [0.1, 0.2, 25.6, 30.0, 30.0, 30.0]


@pytest.fixture
def member():
    """Up, last heard of at 100 s, when a run of its one segment had taken a second of the two that it may."""
    target = Target("simulated", "npu:0", "f32")
    order = Order("a", Source(Path("a.onnx"), "onnx", (), (), "f32"), target, DEVICE, "a", "", 0.1, 0.0)
    held = Held(order, ready=True, runs=1, mean_s=0.1)
    beat = Heartbeat("a", 1, 0, (Running(1, 0, "a", 1.0),), {})
    return Member(Place("npu:0"), DEVICE, Limits(), "up", life=1, heard_s=100.0, beat=beat, held={"a": held})


def test_silence_of_a_time_in_which_nobody_looked_proves_nothing(member):
    assert member.complaint(100.1) is None
    assert member.complaint(160.0)[0] == "stopped"
    member.excused_s = 160.0
    assert member.complaint(160.0) is None
    assert member.complaint(170.0)[0] == "stopped"


def test_a_run_that_stood_still_with_the_machine_has_its_whole_limit_again(member):
    member.beat = Heartbeat("a", 1, 0, (Running(1, 0, "a", 60.0),), {})
    member.heard_s = 160.0
    assert member.complaint(160.0)[0] == "hung"
    member.excused_s = 159.9
    assert member.complaint(160.0) is None
    member.heard_s = 162.0
    assert member.complaint(162.0)[0] == "hung"
