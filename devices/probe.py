"""What this box has: `glance` in milliseconds, `probe` after having tried everything."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from edgert.devices import cpu
from edgert.machine import BackendInfo, Machine, Reach

log = logging.getLogger("edgert.probe")

GROUP = "edgert.backends"
"""Entry point group through which other packages add backends."""

PACKAGES: Mapping[str, tuple[str, ...]] = {  # backend -> distributions that provide its library, any of them
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert", "tflite-runtime"),
    "reference": ("onnx",),
}

REMEDIES: Mapping[str, str] = {
    "onnxruntime": 'pip install "edgert[onnx]"',
    "openvino": 'pip install "edgert[openvino]"',
    "litert": 'pip install "edgert[tflite]"',
    "reference": 'pip install "edgert[onnx]"',
}

PLUGINS: tuple[str, ...] = ("onnxruntime-ep-webgpu", "onnxruntime-qnn")
"""Distributions that give a backend further devices."""


def glance(root: Path = Path("/")) -> Machine:
    """The CPU and which backends are installed, in milliseconds; nothing is run, so every reach is 'untested'.

    GPUs and NPUs are left to `probe`. `root` is where /proc and /sys are read.
    """
    devices = cpu.discover(root)
    backends = tuple(installed(name) for name in (*PACKAGES, *_others()))
    return Machine(
        architecture=platform.machine(),
        devices=devices,
        backends=backends,
        reaches=tuple(Reach(info.name, device.id) for info in backends if info.usable for device in devices),
        system=_system(root),
    )


def installed(name: str) -> BackendInfo:
    """A backend by what the package metadata says of it, without importing it."""
    distributions = PACKAGES.get(name) or _others().get(name, ())
    for distribution in distributions:
        if version := _version(distribution):
            return BackendInfo(name, version)
    wanted = " or ".join(distributions) or name
    return BackendInfo(name, reason=f"{wanted} is not installed", remedy=REMEDIES.get(name, f"pip install {wanted}"))


def _others() -> dict[str, tuple[str, ...]]:
    """Backends of other packages, with the distribution that brings each."""
    return {
        point.name: (point.dist.name,) if point.dist else ()
        for point in metadata.entry_points(group=GROUP)
        if point.name not in PACKAGES
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _system(root: Path) -> str:
    """Kernel and distribution, for people."""
    kernel = f"{platform.system()} {platform.release()}"
    try:
        release = platform.freedesktop_os_release() if root == Path("/") else {}
    except OSError:  # not Linux, or a minimal image
        release = {}
    return f"{kernel}, {release['PRETTY_NAME']}" if "PRETTY_NAME" in release else kernel
