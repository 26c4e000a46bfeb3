"""The GPUs that Vulkan shows, asked in a process of its own: a driver may crash or hang while it is merely listed.

`listed` runs this module as a program. The calls and structures are those of the Vulkan specification, reached through
the loader (libvulkan) with ctypes, so that no tool need be installed.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

LIBRARY = "libvulkan.so.1"

_SUCCESS = 0
_INCOMPLETE = 5
_INSTANCE_CREATE_INFO = 1
_PROPERTIES_2, _DRIVER_PROPERTIES = 1000059001, 1000196000
"""Values of VkStructureType."""
_VERSION_1_1 = (1 << 22) | (1 << 12)
"""VK_API_VERSION_1_1: the first with vkGetPhysicalDeviceProperties2."""
_DEVICE_LOCAL = 1
_KINDS = ("other", "integrated", "discrete", "virtual", "cpu")
"""VkPhysicalDeviceType."""


class _Application(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("name", ctypes.c_char_p), ("version", ctypes.c_uint32),
        ("engine", ctypes.c_char_p), ("engine_version", ctypes.c_uint32), ("api", ctypes.c_uint32),
    )  # fmt: skip


class _InstanceInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint32),
        ("application", ctypes.POINTER(_Application)), ("layer_count", ctypes.c_uint32), ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32), ("extensions", ctypes.c_void_p),
    )  # fmt: skip


class _Properties(ctypes.Structure):
    _fields_ = (
        ("api", ctypes.c_uint32), ("driver", ctypes.c_uint32), ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_uint64 * 128),  # more than the limits take: they are not read
    )  # fmt: skip


class _Properties2(ctypes.Structure):
    _fields_ = (("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("properties", _Properties))


class _Driver(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("number", ctypes.c_uint32),
        ("name", ctypes.c_char * 256), ("info", ctypes.c_char * 256), ("conformance", ctypes.c_uint8 * 4),
    )  # fmt: skip


class _Heap(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint64), ("flags", ctypes.c_uint32))


class _Memory(ctypes.Structure):
    _fields_ = (
        ("type_count", ctypes.c_uint32), ("types", ctypes.c_uint32 * 2 * 32),
        ("heap_count", ctypes.c_uint32), ("heaps", _Heap * 16),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Adapter:
    """One physical device of Vulkan."""

    name: str
    vendor: int
    """PCI vendor, such as 0x10de; 0x10005 for Mesa's software."""
    device: int
    kind: str
    """One of `_KINDS`; 'cpu' is software."""
    driver: str
    """Its name and version, such as 'llvmpipe Mesa 25.0.7 (LLVM 19.1.7)'; '' when it does not say."""
    memory_bytes: int
    """Its own heaps, or the shared one."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What Vulkan shows."""

    adapters: tuple[Adapter, ...] = ()
    """In the loader's order."""
    reason: str = ""
    """Why it shows nothing: no loader, no driver, or one that crashed or hung; '' otherwise."""


def listed(timeout_s: float = 10.0) -> Listing:
    """Every adapter that the loader finds; takes as long as the slowest driver needs to wake, up to `timeout_s`."""
    # -I: only the standard library is imported, whatever the caller's path says.
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Listing(reason=f"a Vulkan driver did not answer within {timeout_s:g} s")
    except OSError as error:
        return Listing(reason=f"{sys.executable} does not start: {error}")
    if done.returncode < 0:
        return Listing(reason=f"a Vulkan driver crashed (signal {-done.returncode}) while it was listed")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return Listing(reason=f"listing Vulkan's devices failed: {done.stderr.strip()[-300:]}")
    return Listing(tuple(Adapter(**item) for item in answer["adapters"]), answer["reason"])


def _list() -> Listing:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        return Listing(reason=f"Vulkan's loader does not load ({error})")
    application = _Application(api=_VERSION_1_1)
    info = _InstanceInfo(type=_INSTANCE_CREATE_INFO, application=ctypes.pointer(application))
    instance = ctypes.c_void_p()
    if (code := library.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance))) != _SUCCESS:
        return Listing(reason=f"no Vulkan driver is installed (vkCreateInstance: {code})")
    count = ctypes.c_uint32()
    library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * max(1, count.value))()
    code = library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    if code not in (_SUCCESS, _INCOMPLETE):
        return Listing(reason=f"no Vulkan driver works (vkEnumeratePhysicalDevices: {code})")
    return Listing(tuple(_adapter(library, ctypes.c_void_p(handle)) for handle in handles[: count.value]))


def _adapter(library: Any, handle: ctypes.c_void_p) -> Adapter:
    found = _Properties()
    library.vkGetPhysicalDeviceProperties(handle, ctypes.byref(found))
    kind = _KINDS[found.kind] if found.kind < len(_KINDS) else "other"
    name = found.name.decode(errors="replace")
    return Adapter(name, found.vendor, found.device, kind, _driver(library, handle), _memory_bytes(library, handle))


def _driver(library: Any, handle: ctypes.c_void_p) -> str:
    """Name and version that the driver gives itself; '' when loader or driver are older than that question."""
    if not hasattr(library, "vkGetPhysicalDeviceProperties2"):
        return ""
    driver = _Driver(type=_DRIVER_PROPERTIES)
    properties = _Properties2(type=_PROPERTIES_2, next=ctypes.addressof(driver))
    library.vkGetPhysicalDeviceProperties2(handle, ctypes.byref(properties))
    return f"{driver.name.decode(errors='replace')} {driver.info.decode(errors='replace')}".strip()


def _memory_bytes(library: Any, handle: ctypes.c_void_p) -> int:
    """Bytes of the device's own heaps."""
    memory = _Memory()
    library.vkGetPhysicalDeviceMemoryProperties(handle, ctypes.byref(memory))
    heaps = memory.heaps[: min(memory.heap_count, len(memory.heaps))]
    return sum(heap.size for heap in heaps if heap.flags & _DEVICE_LOCAL)


def main() -> None:
    """Print what `listed` reads."""
    sys.stdout.write(json.dumps(asdict(_list())))


if __name__ == "__main__":
    main()
