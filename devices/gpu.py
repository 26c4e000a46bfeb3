"""GPUs: what the bus and the kernel show, named by the tools and drivers that know more.

Three views are joined: PCI and the platform's device nodes (what is there), nvidia-smi and Vulkan (what works, with
names and memory), and Vulkan's software devices. A GPU that only the first view shows is listed all the same, with what
it lacks in `attributes["lacks"]`.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgert.devices import vulkan
from edgert.machine import Device

log = logging.getLogger(__name__)

VENDORS: Mapping[int, str] = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel", 0x1ED5: "Moore Threads"}
"""PCI vendors whose display devices compute; a server's Aspeed does not, nor a virtual machine's frame buffer."""

_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")
"""PCI classes: VGA, 3D controller, other display, processing accelerator (AMD's Instinct)."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A GPU that is part of a system on a chip: no bus shows it, its kernel driver does."""

    name: str
    drivers: tuple[str, ...]
    """Kernel drivers behind its DRM render node."""
    nodes: tuple[str, ...] = ()
    """Device nodes of vendors' own drivers."""
    vendor: int = 0
    """As Vulkan says it."""


PLATFORMS: tuple[Platform, ...] = (
    Platform("Arm Mali", ("panfrost", "panthor", "lima", "mali", "bifrost"), ("dev/mali0",), 0x13B5),
    Platform("Qualcomm Adreno", ("msm", "msm_dpu", "adreno"), ("dev/kgsl-3d0",), 0x5143),
    Platform("Broadcom VideoCore", ("v3d",), (), 0x14E4),
    Platform("NVIDIA Tegra", ("tegra", "nvgpu"), ("dev/nvhost-gpu", "dev/nvgpu/igpu0/ctrl"), 0x10DE),
    Platform("Imagination PowerVR", ("powervr", "pvrsrvkm"), ("dev/pvrsrvkm",), 0x1010),
    Platform("Vivante GC", ("etnaviv",), (), 0x10001),
)

ICD_FOLDERS = ("usr/share/vulkan/icd.d", "etc/vulkan/icd.d", "usr/local/share/vulkan/icd.d")
ENVIRONMENT = ("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES",
               "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER")  # fmt: skip
"""Variables that decide which GPUs libraries see."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A GPU by one view or by several joined."""

    name: str
    vendor: int
    device: int = 0
    """PCI device number; 0 on a platform."""
    pci: str = ""
    driver: str = ""
    node: str = ""
    memory_bytes: int = 0
    software: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)


def discover(root: Path = Path("/"), listing: Callable[[], vulkan.Listing] = vulkan.listed) -> tuple[Device, ...]:
    """Every GPU, real ones before software ones; may take seconds where a driver is slow to wake.

    Args:
        root: where dev, proc and sys are read.
        listing: says what Vulkan shows.
    """
    found = [*_pci(root), *_platforms(root)]
    if any(gpu.vendor == 0x10DE for gpu in found):
        found = _named_by_nvidia(found, nvidia_smi())
    shown = listing()
    if shown.reason:
        log.debug("Vulkan shows nothing: %s", shown.reason)
    found = sorted(_joined(found, shown.adapters), key=lambda gpu: gpu.software)
    return tuple(_device(f"gpu:{number}", gpu, _lacks(gpu, shown)) for number, gpu in enumerate(found))


def facts(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> list[str]:
    """What changes when `discover` would find something else, read in milliseconds: for the key of a cache."""
    seen = [
        f"{gpu.pci} {gpu.vendor:x}:{gpu.device:x} {gpu.driver} {gpu.node}" for gpu in [*_pci(root), *_platforms(root)]
    ]
    seen += [f"{name}={environment[name]}" for name in ENVIRONMENT if environment.get(name)]
    named = (environment.get("VK_DRIVER_FILES") or environment.get("VK_ICD_FILENAMES") or "").split(":")
    manifests = [path for folder in ICD_FOLDERS for path in sorted((root / folder).glob("*.json"))]
    for path in [*manifests, *(Path(name) for name in named if name)]:
        try:
            stat = path.stat()
        except OSError:  # named and not there: the loader will pass over it as well
            continue
        seen.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    return [*seen, _text(root / "proc/driver/nvidia/version")]


def _pci(root: Path) -> Iterator[_Found]:
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor, number = _hex(folder / "vendor"), _hex(folder / "device")
        kind = _text(folder / "class")
        if vendor not in VENDORS or not kind.startswith(_CLASSES) or (kind.startswith("0x1200") and vendor != 0x1002):
            continue
        nodes = sorted(path.name for path in (folder / "drm").glob("renderD*"))
        memory = _text(folder / "mem_info_vram_total")  # amdgpu's
        yield _Found(
            name=f"{VENDORS[vendor]} GPU {vendor:04x}:{number:04x}",
            vendor=vendor,
            device=number,
            pci=folder.name,
            driver=_driver(folder),
            node=f"/dev/dri/{nodes[0]}" if nodes else "",
            memory_bytes=int(memory) if memory.isdigit() else 0,
        )


def _platforms(root: Path) -> Iterator[_Found]:
    for platform in PLATFORMS:
        drivers = {
            path.name: _driver(path / "device")
            for path in sorted((root / "sys/class/drm").glob("renderD*"))
            if _driver(path / "device") in platform.drivers
        }
        nodes = [f"/{node}" for node in platform.nodes if (root / node).exists()]
        if drivers or nodes:
            node, driver = next(iter(drivers.items()), ("", ""))
            model = _text(root / "sys/class/kgsl/kgsl-3d0/gpu_model") if platform.vendor == 0x5143 else ""
            yield _Found(
                name=f"{platform.name} {model}".strip(),
                vendor=platform.vendor,
                driver=driver or nodes[0].rpartition("/")[2],
                node=f"/dev/dri/{node}" if node else nodes[0],
            )


def nvidia_smi(timeout_s: float = 10.0) -> list[dict[str, str]]:
    """What NVIDIA's own tool says of each GPU: index, name, memory (MiB), driver, PCI address and compute capability.

    Empty when the tool is not there, fails or does not answer in time (a GPU that fell off the bus makes it hang).
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    columns = ("index", "name", "memory.total", "driver_version", "pci.bus_id", "compute_cap")
    command = [tool, f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        log.warning("nvidia-smi gave no answer: %s", error)
        return []
    if done.returncode:
        log.warning("nvidia-smi failed with %d: %s", done.returncode, (done.stdout or done.stderr).strip()[:200])
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def _named_by_nvidia(found: Sequence[_Found], rows: Iterable[Mapping[str, str]]) -> list[_Found]:
    """The same GPUs with what nvidia-smi knows of those at the same PCI address."""
    by_address = {_short(row["pci.bus_id"]): row for row in rows}
    return [_named(gpu, by_address[_short(gpu.pci)]) if _short(gpu.pci) in by_address else gpu for gpu in found]


def _named(gpu: _Found, row: Mapping[str, str]) -> _Found:
    memory = row["memory.total"]
    return replace(
        gpu,
        name=row["name"] if "nvidia" in row["name"].lower() else f"NVIDIA {row['name']}",
        driver=f"nvidia {row['driver_version']}",
        memory_bytes=int(memory) << 20 if memory.isdigit() else gpu.memory_bytes,
        attributes={"index": row["index"], "compute_capability": row["compute_cap"]},
    )


def _short(address: str) -> str:
    """'00000000:01:00.0' (nvidia-smi) and '0000:01:00.0' (the kernel) alike."""
    domain, _, rest = address.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _joined(found: Sequence[_Found], shown: Sequence[vulkan.Adapter]) -> list[_Found]:
    """What the bus shows with what Vulkan knows of it, and what Vulkan alone shows."""
    joined = list(found)
    free = list(range(len(joined)))
    for number, adapter in enumerate(shown):
        # A GPU with two drivers appears twice, and fits nothing the second time: it is one device.
        same = [index for index, gpu in enumerate(found) if _is(gpu, adapter)]
        match = next((index for index in same if index in free), None)
        if match is not None:
            free.remove(match)
            joined[match] = _enriched(joined[match], number, adapter)
        elif not same:
            joined.append(_enriched(_Found(adapter.name, adapter.vendor, adapter.device), number, adapter))
    return joined


def _is(gpu: _Found, adapter: vulkan.Adapter) -> bool:
    """Whether both views mean the same GPU; a platform's has no device number on a bus."""
    return adapter.kind != "cpu" and gpu.vendor == adapter.vendor and gpu.device in (0, adapter.device)


def _enriched(gpu: _Found, number: int, adapter: vulkan.Adapter) -> _Found:
    vendor = VENDORS.get(gpu.vendor, "")
    name = adapter.name if vendor.lower() in adapter.name.lower() else f"{vendor} {adapter.name}"
    return replace(
        gpu,
        name=gpu.name if "index" in gpu.attributes else name,
        driver=gpu.driver if "index" in gpu.attributes else adapter.driver or gpu.driver,
        memory_bytes=gpu.memory_bytes or adapter.memory_bytes,
        software=adapter.kind == "cpu",
        attributes={**gpu.attributes, "vulkan": str(number)},
    )


def _device(name: str, gpu: _Found, lacks: str) -> Device:
    own = {"pci": gpu.pci, "node": gpu.node, "vendor": f"{gpu.vendor:#x}", "lacks": lacks}
    return Device(
        id=name,
        kind="gpu",
        name=gpu.name,
        memory_bytes=gpu.memory_bytes,
        driver=gpu.driver,
        software=gpu.software,
        attributes={**{key: text for key, text in own.items() if text}, **gpu.attributes},
    )


def _lacks(gpu: _Found, shown: vulkan.Listing) -> str:
    """Why no library can reach a GPU, with what would help; '' when its driver works."""
    if not gpu.driver:
        return "no kernel driver is bound to it: install its vendor's driver and see dmesg"
    if "vulkan" in gpu.attributes or "index" in gpu.attributes:
        return ""
    why = shown.reason or "no Vulkan driver shows it"
    return f"{why}: apt install libvulkan1 mesa-vulkan-drivers, or its vendor's driver, and join the group 'render'"


def _driver(folder: Path) -> str:
    """Name of the kernel driver bound to a device's folder in /sys."""
    try:
        return os.readlink(folder / "driver").rpartition("/")[2]
    except OSError:  # none bound
        return ""


def _hex(path: Path) -> int:
    try:
        return int(_text(path), 16)
    except ValueError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # this kernel has no such file
        return ""
