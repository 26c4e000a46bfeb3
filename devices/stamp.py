"""Whether anything on this box may have changed since `probe` looked: a few milliseconds, and no look at the devices
themselves.

What `probe` found is filed under a stamp over what cannot stay the same when it changes: the boot, the folders that
Python imports from (installing, upgrading or removing a package renames something in them), the processors and memory
that are left to this process, the names of device files and of what is on the buses, Vulkan's manifests, the
variables that hide or add devices. A new stamp only means that `probe` looks closer.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from edgert.devices import cgroup

_RULES = 1
_LISTED = ("dev", "dev/dri", "dev/accel", "sys/bus/pci/devices", "sys/bus/usb/devices", "sys/class/misc")
_DATED = ("usr/share/vulkan/icd.d", "etc/vulkan/icd.d", "usr/local/share/vulkan/icd.d", "etc/OpenCL/vendors")
_READ = ("proc/sys/kernel/random/boot_id", "proc/driver/nvidia/version")
_PREFIXES = ("VK_", "CUDA_", "HIP_", "ZE_", "ORT_", "OV_", "OPENVINO", "MESA_", "QNN_", "LD_LIBRARY_PATH", "LIBGL_")
_PASSING = ("tty", "pts", "loop", "vcs", "ptmx", "shm", "fd", "core", "std")
"""Device files that come and go and compute nothing."""


def stamp(root: Path = Path("/")) -> str:
    """16 hex digits that change when what `probe` finds might; `root` is where /dev, /proc and /sys are read."""
    limits = cgroup.limits(root)
    seen = [
        _RULES,
        sys.version,
        sys.prefix,
        [f"{folder} {_dated(Path(folder))}" for folder in sys.path],
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        [limits.cpus, limits.memory_bytes],
        [_names(root / folder) for folder in _LISTED],
        [_dated(root / folder) for folder in _DATED],
        [_text(root / file) for file in _READ],
        sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_PREFIXES)),
    ]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def path(folder: Path) -> Path:
    """Where the name of the machine's own entry is filed under the present stamp."""
    return folder / "stamps" / f"{stamp()}.json"


def _dated(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith(_PASSING))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
