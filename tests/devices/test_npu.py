"""Discovery of NPUs by their nodes."""

from __future__ import annotations

import importlib.util
import platform

import pytest

from edgert.devices import npu
from tests.devices.boards import Board


def accel(board: Board, number: int, driver: str) -> Board:
    board.write(f"dev/accel/accel{number}", "")
    return board.link(f"sys/class/accel/accel{number}/device/driver", f"../../../bus/pci/drivers/{driver}")


def names(board: Board) -> list[str]:
    return [device.name for device in npu.discover(board.root, emulated=False)]


def test_an_accel_node_is_known_by_its_kernel_driver(tmp_path):
    board = accel(accel(Board(tmp_path), 0, "intel_vpu"), 1, "amdxdna")
    assert names(board) == ["Intel NPU", "AMD XDNA NPU"]


def test_an_accel_node_of_an_unknown_driver_is_no_npu(tmp_path):
    assert names(accel(Board(tmp_path), 0, "habanalabs")) == []


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("dev/apex_0", "Google Coral Edge TPU"),
        ("dev/hailo0", "Hailo"),
        ("dev/fastrpc-cdsp", "Qualcomm Hexagon"),
        ("dev/rknpu", "Rockchip NPU"),
        ("sys/kernel/debug/rknpu/version", "Rockchip NPU"),
        ("dev/ethosu0", "Arm Ethos-U"),
        ("dev/galcore", "VeriSilicon NPU"),
    ],
)
def test_each_vendors_node_is_known(tmp_path, node, name):
    (device,) = npu.discover(Board(tmp_path).write(node, "").root, emulated=False)
    assert (device.id, device.kind, device.name) == ("npu:0", "npu", name)
    assert device.attributes["node"].startswith("/")
    assert device.attributes["lacks"]


def test_each_of_four_corals_is_a_device(tmp_path):
    board = Board(tmp_path)
    for number in range(4):
        board.write(f"dev/apex_{number}", "")
    assert [device.id for device in npu.discover(tmp_path, emulated=False)] == ["npu:0", "npu:1", "npu:2", "npu:3"]


@pytest.mark.parametrize("numbers", ["1a6e:089a", "18d1:9302"])
def test_a_coral_on_usb_is_known_before_and_after_its_firmware_is_loaded(tmp_path, numbers):
    vendor, _, product = numbers.partition(":")
    folder = "sys/bus/usb/devices"
    board = Board(tmp_path).write(f"{folder}/2-1/idVendor", f"{vendor}\n").write(f"{folder}/2-1/idProduct", product)
    board.write(f"{folder}/1-1/idVendor", "046d\n").write(f"{folder}/1-1/idProduct", "c52b\n")
    board.write(f"{folder}/2-1:1.0/bInterfaceClass", "ff\n")
    (device,) = npu.discover(tmp_path, emulated=False)
    assert (device.name, device.attributes["usb"]) == ("Google Coral Edge TPU (USB)", "2-1")


def test_two_signs_of_one_rockchip_npu_make_one_device(tmp_path):
    board = Board(tmp_path).write("dev/rknpu", "").write("sys/kernel/debug/rknpu/version", "0.9.8")
    board.write("sys/class/devfreq/fdab0000.npu/cur_freq", "1")
    assert names(board) == ["Rockchip NPU"]
    assert names(accel(board, 0, "rocket")) == ["Rockchip NPU"]


def test_a_board_without_npus_has_none(tmp_path):
    assert names(Board(tmp_path)) == []


@pytest.mark.skipif(
    importlib.util.find_spec(npu.QNN_PACKAGE) is None or platform.machine() != "x86_64",
    reason="onnxruntime-qnn is not installed, or this is not x86-64",
)
def test_qualcomms_library_for_x86_is_a_software_npu_and_gives_way_to_a_real_one(tmp_path):
    (device,) = npu.discover(tmp_path)
    assert device.software
    assert device.attributes["library"].endswith(npu.QNN_LIBRARY)
    Board(tmp_path).write("dev/fastrpc-cdsp", "")
    assert [device.software for device in npu.discover(tmp_path)] == [False]
