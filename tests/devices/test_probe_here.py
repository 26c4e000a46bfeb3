"""A whole probe of the machine that the tests run on, once; with its software GPU and NPU where they are set up."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from edgert.devices import probe

WITH_GPU = bool(os.environ.get("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"))
needs_gpu = pytest.mark.skipif(
    not WITH_GPU, reason="no software GPU: run cross/software_devices.py, load what it wrote"
)
needs_npu = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason='no software NPU: pip install "edgert[qnn]"'
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("probed")


@pytest.fixture(scope="module")
def machine(cache):
    return probe.probe(cache_dir=cache)


def way(machine, device: str, backend: str, variant: str = ""):
    return next((r for r in machine.reaches if (r.device, r.backend, r.variant) == (device, backend, variant)), None)


def test_every_usable_backend_counts_right_on_the_cpu(machine):
    names = [info.name for info in machine.backends if info.usable and info.name != probe.SIMULATED]
    assert names, "no backend is installed"
    assert {name: way(machine, "cpu:0", name).health for name in names} == dict.fromkeys(names, "ok")


def test_a_missing_backend_has_a_reason_and_a_remedy(machine):
    assert all(info.reason and info.remedy for info in machine.backends if not info.usable)


def test_the_cpus_memory_and_arithmetic_were_measured(machine):
    device = machine.device("cpu:0")
    assert device.bandwidth_bytes_per_s > 1e8
    if machine.backend("onnxruntime").usable:
        assert device.peak_ops_per_s["float32"] > 1e8


def test_a_software_device_has_no_speed(machine):
    for device in machine.devices:
        if device.software:
            assert device.bandwidth_bytes_per_s is None
            assert device.peak_ops_per_s == {}


@needs_gpu
def test_the_software_gpu_counts_right_through_webgpu(machine):
    device = machine.device("gpu:0")
    assert "llvmpipe" in device.name
    assert device.software
    assert way(machine, "gpu:0", "onnxruntime", "webgpu").health == "ok"


@needs_npu
def test_the_software_npu_counts_right_through_qnn(machine):
    assert machine.device("npu:0").software
    assert way(machine, "npu:0", "onnxruntime", "qnn").health == "ok"


def test_every_device_that_counts_right_is_linked_with_the_cpu_both_ways(machine):
    good = {reach.device for reach in machine.reaches if reach.health == "ok" and not reach.device.startswith("cpu")}
    assert {link.sink for link in machine.links if link.source == "cpu:0"} == good
    assert {link.source for link in machine.links if link.sink == "cpu:0"} == good


def test_another_process_reads_it_from_the_cache_without_loading_a_backend(machine, cache):
    code = (
        "import sys, pathlib; from edgert.devices.probe import probe; "
        f"machine = probe(cache_dir=pathlib.Path({str(cache)!r})); "
        "print(machine.devices[0].bandwidth_bytes_per_s, *{'onnxruntime', 'openvino', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(machine.device("cpu:0").bandwidth_bytes_per_s)]
