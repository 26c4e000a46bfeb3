"""NPUs: found by the device nodes of their drivers, by their USB numbers, or as a library that emulates one.

`NPUS` is the whole knowledge: to know another NPU, add a row.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from edgert.machine import Device


@dataclass(frozen=True, slots=True)
class Npu:
    """One family."""

    name: str
    nodes: tuple[str, ...] = ()
    """Globs below the root; a driver makes one node a device."""
    drivers: tuple[str, ...] = ()
    """Kernel drivers behind a node that several families share (/dev/accel/accelN); empty for any."""
    usb: tuple[str, ...] = ()
    """vendor:product, as lsusb prints it."""
    backends: tuple[str, ...] = ()
    """Backends of edgert that drive it, where its vendor's package is installed; empty when none does yet."""
    remedy: str = ""
    """What helps when no backend reaches it."""

    @property
    def lacks(self) -> str:
        known = f"{' or '.join(self.backends)} would drive it" if self.backends else "no backend drives it"
        return f"{known}: {self.remedy}"


NPUS: tuple[Npu, ...] = (
    Npu("Intel NPU", ("dev/accel/accel*",), ("intel_vpu",), backends=("openvino",),
        remedy='pip install "edgert[openvino]", install intel-level-zero-npu and join the group "render"'),
    Npu("AMD XDNA NPU", ("dev/accel/accel*",), ("amdxdna",),
        remedy="AMD's onnxruntime with the VitisAI provider; edgert does not drive it yet"),
    Npu("Rockchip NPU", ("dev/accel/accel*",), ("rocket",),
        remedy="Mesa's Teflon delegate for LiteRT; edgert does not drive it yet"),
    Npu("Rockchip NPU", ("dev/rknpu*", "sys/kernel/debug/rknpu", "sys/class/devfreq/*.npu"),
        remedy="Rockchip's rknn-toolkit-lite2; edgert does not drive it yet"),
    Npu("Qualcomm Hexagon", ("dev/fastrpc-cdsp", "dev/fastrpc-cdsp1", "dev/cdsprpc-smd"), backends=("onnxruntime",),
        remedy='pip install "edgert[qnn]" and install Qualcomm\'s fastrpc'),
    Npu("Google Coral Edge TPU", ("dev/apex_*",), usb=("1a6e:089a", "18d1:9302"),
        remedy="Coral's libedgetpu1-std; edgert does not drive it yet"),
    Npu("Hailo", ("dev/hailo[0-9]*",), remedy="HailoRT; edgert does not drive it yet"),
    Npu("Arm Ethos-U", ("dev/ethosu*",), remedy="the Ethos-U delegate for LiteRT; edgert does not drive it yet"),
    Npu("VeriSilicon NPU", ("dev/galcore",), remedy="the TIM-VX delegate for LiteRT; edgert does not drive it yet"),
    Npu("DeepX", ("dev/dxrt*",), remedy="DeepX's dx_rt; edgert does not drive it yet"),
    Npu("MemryX", ("dev/memx*",), remedy="MemryX's mx_accl; edgert does not drive it yet"),
)  # fmt: skip

QNN_PACKAGE, QNN_LIBRARY = "onnxruntime_qnn", "libQnnHtp.so"


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    driver: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    software: bool = False


def discover(root: Path = Path("/"), *, emulated: bool = True) -> tuple[Device, ...]:
    """Every NPU, real ones before emulated ones; milliseconds, nothing is opened or loaded.

    Args:
        root: where dev, proc and sys are read.
        emulated: whether libraries of this Python that emulate an NPU count.
    """
    found = list(_real(root))
    if emulated and not any(npu.name == "Qualcomm Hexagon" for npu in found):
        found += _qualcomm_library()
    return tuple(
        Device(f"npu:{number}", "npu", npu.name, 0, driver=npu.driver, software=npu.software, attributes=npu.attributes)
        for number, npu in enumerate(found)
    )


def _real(root: Path) -> Iterator[_Found]:
    named = set()
    usb = list(_usb(root))
    for npu in NPUS:
        if npu.name in named:
            continue  # two rows of one name are two drivers of one device
        for node in _nodes(root, npu):
            driver = _driver(root, node)
            if not npu.drivers or driver in npu.drivers:
                named.add(npu.name)
                yield _Found(npu.name, driver, {"node": f"/{node.relative_to(root)}", "lacks": npu.lacks})
        for address, numbers in usb:
            if numbers in npu.usb:
                yield _Found(f"{npu.name} (USB)", "usb", {"usb": address, "lacks": npu.lacks})


def _nodes(root: Path, npu: Npu) -> list[Path]:
    """Device nodes of a family. Several globs are signs of the same devices: the first that shows any counts."""
    return next((found for pattern in npu.nodes if (found := sorted(root.glob(pattern)))), [])


def _driver(root: Path, node: Path) -> str:
    try:
        return os.readlink(root / "sys/class/accel" / node.name / "device/driver").rpartition("/")[2]
    except OSError:  # not of the accel class
        return ""


def _usb(root: Path) -> Iterator[tuple[str, str]]:
    """Address and vendor:product of every device on USB."""
    for folder in sorted((root / "sys/bus/usb/devices").glob("*")):
        try:
            vendor, product = (folder / "idVendor").read_text().strip(), (folder / "idProduct").read_text().strip()
        except OSError:  # an interface, not a device
            continue
        yield folder.name, f"{vendor}:{product}"


def _qualcomm_library() -> list[_Found]:
    """Qualcomm's HTP library for x86-64, which computes on the CPU what the Hexagon would."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    spec = importlib.util.find_spec(QNN_PACKAGE)  # finds, does not import
    folders = list(spec.submodule_search_locations or ()) if spec else []
    library = next((path for folder in folders for path in sorted(Path(folder).rglob(QNN_LIBRARY))), None)
    if library is None:
        return []
    name, version = "onnxruntime-qnn", metadata.version("onnxruntime-qnn")
    return [_Found("Qualcomm HTP library for x86-64", driver=f"{name} {version}", software=True,
                   attributes={"library": str(library)})]  # fmt: skip
