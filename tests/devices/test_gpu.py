"""Discovery of GPUs: buses that are not here, tools that misbehave, and the drivers that are."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys

import pytest

from edgert.devices import gpu, vulkan
from tests.devices.boards import Board

NVIDIA_SMI = gpu.nvidia_smi
"""The real function, which is replaced in most tests."""
LLVMPIPE = vulkan.Adapter("llvmpipe (LLVM 19.1.7, 256 bits)", 0x10005, 0, "cpu", "llvmpipe Mesa 25.0.7", 8 << 30)
RTX = vulkan.Adapter("NVIDIA GeForce RTX 4090", 0x10DE, 0x2684, "discrete", "NVIDIA 570.86", 24 << 30)
IRIS = vulkan.Adapter("Intel(R) Iris(R) Xe Graphics (ADL GT2)", 0x8086, 0x46A6, "integrated", "Mesa 25.0.7", 4 << 30)


@pytest.fixture(autouse=True)
def _no_nvidia_smi(monkeypatch):
    """The tests' own machine may have one."""
    monkeypatch.setattr(gpu, "nvidia_smi", list)


def pci(board: Board, address: str, numbers: str, driver: str = "", kind: str = "0x030000", node: str = "") -> None:
    folder = f"sys/bus/pci/devices/{address}"
    vendor, _, device = numbers.partition(":")
    board.write(f"{folder}/vendor", f"0x{vendor}\n").write(f"{folder}/device", f"0x{device}\n")
    board.write(f"{folder}/class", f"{kind}\n")
    if driver:
        board.link(f"{folder}/driver", f"../../../../bus/pci/drivers/{driver}")
    if node:
        board.write(f"{folder}/drm/{node}/dev", "226:128\n")


def found(board: Board, *adapters: vulkan.Adapter, reason: str = ""):
    return gpu.discover(board.root, lambda: vulkan.Listing(adapters, reason))


def test_a_gpu_on_the_bus_takes_its_name_from_vulkan(tmp_path):
    board = Board(tmp_path)
    pci(board, "0000:00:02.0", "8086:46a6", "i915", node="renderD128")
    (device,) = found(board, IRIS)
    assert (device.id, device.name, device.memory_bytes) == ("gpu:0", IRIS.name, 4 << 30)
    assert device.attributes["pci"] == "0000:00:02.0"
    assert device.attributes["node"] == "/dev/dri/renderD128"
    assert "lacks" not in device.attributes
    assert not device.software


def test_a_gpu_without_a_kernel_driver_is_listed_with_what_it_lacks(tmp_path):
    board = Board(tmp_path)
    pci(board, "0000:01:00.0", "1002:744c")
    (device,) = found(board, reason="no Vulkan driver is installed")
    assert device.name == "AMD GPU 1002:744c"
    assert "no kernel driver" in device.attributes["lacks"]


def test_a_gpu_that_vulkan_does_not_show_says_why_and_what_to_install(tmp_path):
    board = Board(tmp_path)
    pci(board, "0000:01:00.0", "1002:744c", "amdgpu")
    board.write("sys/bus/pci/devices/0000:01:00.0/mem_info_vram_total", "25753026560\n")
    (device,) = found(board, reason="no Vulkan driver is installed")
    assert device.memory_bytes == 25753026560
    assert device.attributes["lacks"].startswith("no Vulkan driver is installed: apt install")


@pytest.mark.parametrize("numbers", ["1a03:2000", "102b:0536", "1234:1111", "1af4:1050"])
def test_a_servers_or_virtual_machines_screen_is_no_gpu(tmp_path, numbers):
    board = Board(tmp_path)
    pci(board, "0000:02:00.0", numbers, "ast")
    assert found(board) == ()


def test_a_network_card_is_no_gpu(tmp_path):
    board = Board(tmp_path)
    pci(board, "0000:03:00.0", "8086:1533", "igb", kind="0x020000")
    assert found(board) == ()


def test_an_instinct_accelerator_counts_as_a_gpu(tmp_path):
    board = Board(tmp_path)
    pci(board, "0000:0c:00.0", "1002:74a1", "amdgpu", kind="0x120000")
    assert [device.name for device in found(board)] == ["AMD GPU 1002:74a1"]


def test_a_software_gpu_comes_after_the_real_ones_and_says_so(tmp_path):
    board = Board(tmp_path)
    pci(board, "0000:00:02.0", "8086:46a6", "i915")
    real, software = found(board, LLVMPIPE, IRIS)
    assert (real.name, real.software) == (IRIS.name, False)
    assert (software.id, software.name, software.software) == ("gpu:1", LLVMPIPE.name, True)


def test_two_drivers_of_one_gpu_make_one_device(tmp_path):
    board = Board(tmp_path)
    pci(board, "0000:01:00.0", "10de:2684", "nvidia")
    assert len(found(board, RTX, RTX)) == 1


def test_two_equal_gpus_are_two_devices(tmp_path):
    board = Board(tmp_path)
    pci(board, "0000:01:00.0", "10de:2684", "nvidia")
    pci(board, "0000:02:00.0", "10de:2684", "nvidia")
    assert [device.attributes["pci"] for device in found(board, RTX, RTX)] == ["0000:01:00.0", "0000:02:00.0"]


def test_nvidias_tool_gives_name_memory_driver_and_index(tmp_path, monkeypatch):
    row = {"index": "1", "name": "NVIDIA H200", "memory.total": "143771", "driver_version": "570.86.15",
           "pci.bus_id": "00000000:C1:00.0", "compute_cap": "9.0"}  # fmt: skip
    monkeypatch.setattr(gpu, "nvidia_smi", lambda: [row])
    board = Board(tmp_path)
    pci(board, "0000:c1:00.0", "10de:2335", "nvidia", kind="0x030200")
    (device,) = found(board)
    assert (device.name, device.driver, device.memory_bytes) == ("NVIDIA H200", "nvidia 570.86.15", 143771 << 20)
    assert device.attributes["index"] == "1"
    assert "lacks" not in device.attributes


def test_a_mali_is_found_by_its_kernel_driver(tmp_path):
    board = Board(tmp_path).write("sys/class/drm/renderD128/dev", "226:128\n")
    board.link("sys/class/drm/renderD128/device/driver", "../../bus/platform/drivers/panthor")
    mali = vulkan.Adapter("Mali-G610 (Panfrost)", 0x13B5, 0xA8670000, "integrated", "panvk Mesa 25.0.7", 8 << 30)
    (device,) = found(board, mali)
    assert (device.name, device.attributes["node"]) == (mali.name, "/dev/dri/renderD128")


def test_an_adreno_is_found_by_its_own_node_and_names_its_model(tmp_path):
    board = Board(tmp_path).write("dev/kgsl-3d0", "").write("sys/class/kgsl/kgsl-3d0/gpu_model", "Adreno690v1\n")
    (device,) = found(board, reason="no Vulkan driver is installed")
    assert device.name == "Qualcomm Adreno Adreno690v1"
    assert device.attributes["node"] == "/dev/kgsl-3d0"


def script(tmp_path, monkeypatch, text: str) -> None:
    """An nvidia-smi of ours, alone on the path."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\n{text}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tool.parent))


def test_an_nvidia_smi_that_hangs_is_given_up(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "import signal; signal.pause()")
    assert NVIDIA_SMI(timeout_s=0.5) == []


def test_an_nvidia_smi_that_fails_gives_nothing(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "raise SystemExit('Unable to determine the device handle: GPU is lost')")
    assert NVIDIA_SMI() == []


def test_nvidia_smis_table_is_read(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "print('0, NVIDIA H200, 143771, 570.86.15, 00000000:C1:00.0, 9.0')")
    (row,) = NVIDIA_SMI()
    assert (row["name"], row["memory.total"], row["compute_cap"]) == ("NVIDIA H200", "143771", "9.0")


def test_the_cheap_facts_change_when_a_driver_is_installed(tmp_path):
    board = Board(tmp_path)
    before = gpu.facts(tmp_path, {})
    board.write("usr/share/vulkan/icd.d/lvp_icd.json", "{}")
    after = gpu.facts(tmp_path, {})
    assert before != after
    assert gpu.facts(tmp_path, {"VK_ICD_FILENAMES": "/x.json"}) != after
    assert gpu.facts(tmp_path, {"HOME": "/root"}) == after


def fake_vulkan(tmp_path, monkeypatch, source: str) -> None:
    """A loader of ours, compiled, in place of libvulkan."""
    code = tmp_path / "vulkan.c"
    code.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / vulkan.LIBRARY), str(code)], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a bad driver with")


@needs_compiler
def test_a_vulkan_driver_that_crashes_takes_nothing_with_it(tmp_path, monkeypatch):
    fake_vulkan(tmp_path, monkeypatch, "#include <stdlib.h>\nint vkCreateInstance() { abort(); }")
    assert vulkan.listed().reason == "a Vulkan driver crashed (signal 6) while it was listed"


@needs_compiler
def test_a_vulkan_driver_that_hangs_is_given_up(tmp_path, monkeypatch):
    fake_vulkan(tmp_path, monkeypatch, "#include <unistd.h>\nint vkCreateInstance() { for (;;) pause(); }")
    assert "did not answer" in vulkan.listed(timeout_s=1.0).reason


@needs_compiler
def test_a_loader_without_drivers_says_so(tmp_path, monkeypatch):
    fake_vulkan(tmp_path, monkeypatch, "int vkCreateInstance() { return -9; }")
    assert vulkan.listed() == vulkan.Listing(reason="no Vulkan driver is installed (vkCreateInstance: -9)")
