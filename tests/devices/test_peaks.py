"""Measuring a device's memory and arithmetic: what it must not do."""

from __future__ import annotations

import dataclasses
import os
import tracemalloc

from edgert.devices import cpu, peaks
from edgert.machine import Device, Reach

CPU = cpu.discover()[0]


def test_a_small_board_is_not_brought_to_swap():
    """No more than a 32nd of the memory is touched."""
    small = dataclasses.replace(CPU, memory_bytes=256 << 20)
    tracemalloc.start()
    try:
        assert peaks.copy_bandwidth(small) > 0
        _, highest_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert highest_bytes < (256 << 20) // 32 + (1 << 20)


def test_measuring_leaves_the_callers_affinity_alone():
    before = os.sched_getaffinity(0)
    peaks.copy_bandwidth(dataclasses.replace(CPU, memory_bytes=64 << 20))
    assert os.sched_getaffinity(0) == before


def test_an_emulated_device_is_not_measured():
    device = Device("gpu:0", "gpu", "llvmpipe", 0, software=True)
    assert peaks.measured(device, [Reach("onnxruntime", "gpu:0", "webgpu", "ok")]) == device


def test_a_device_that_nothing_drives_rightly_is_not_measured():
    reaches = [Reach("onnxruntime", "cpu:0", "", "wrong"), Reach("onnxruntime", "cpu:1", "", "ok")]
    assert peaks.measured(CPU, reaches) == CPU
