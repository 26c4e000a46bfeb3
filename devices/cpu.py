"""The CPU: clusters of cores that run at one speed, what they compute with, and what of them is ours.

Everything is read from /proc and /sys below a root folder, so that any board's description can be given.
Elsewhere than on Linux one device is made of what the standard library knows.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgert.devices import cgroup
from edgert.machine import Device

FEATURES: tuple[str, ...] = (  # as Linux names them, in the order of appearance in processors
    # x86-64
    "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx_vnni", "avx_vnni_int8", "avx_ne_convert", "avx10", "amx_tile", "amx_int8", "amx_bf16",
    "amx_fp16",
    # ARM: neon and vfpv4 on 32 bits; asimdhp is float16 arithmetic, asimddp the int8 dot product
    "neon", "vfpv4", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2",
)  # fmt: skip

PARTS: Mapping[tuple[int, int], str] = {  # (implementer, part) of the main ID register; Arm's own manuals
    (0x41, 0xB76): "ARM1176", (0x41, 0xC07): "Cortex-A7", (0x41, 0xC08): "Cortex-A8", (0x41, 0xC09): "Cortex-A9",
    (0x41, 0xC0D): "Cortex-A17", (0x41, 0xC0E): "Cortex-A17", (0x41, 0xC0F): "Cortex-A15",
    (0x41, 0xD01): "Cortex-A32", (0x41, 0xD02): "Cortex-A34", (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55", (0x41, 0xD06): "Cortex-A65", (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73", (0x41, 0xD0A): "Cortex-A75", (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1", (0x41, 0xD0D): "Cortex-A77", (0x41, 0xD0E): "Cortex-A76AE",
    (0x41, 0xD40): "Neoverse-V1", (0x41, 0xD41): "Cortex-A78", (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1", (0x41, 0xD46): "Cortex-A510", (0x41, 0xD47): "Cortex-A710", (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2", (0x41, 0xD4A): "Neoverse-E1", (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4D): "Cortex-A715", (0x41, 0xD4E): "Cortex-X3", (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520", (0x41, 0xD81): "Cortex-A720", (0x41, 0xD82): "Cortex-X4",
    (0x41, 0xD84): "Neoverse-V3", (0x41, 0xD85): "Cortex-X925", (0x41, 0xD87): "Cortex-A725",
    (0x41, 0xD8E): "Neoverse-N3",
    (0x48, 0xD01): "Kunpeng-920", (0x4E, 0x003): "Denver 2", (0x4E, 0x004): "Carmel",
    (0x51, 0x001): "Oryon", (0x51, 0x800): "Kryo 2xx Gold", (0x51, 0x801): "Kryo 2xx Silver",
    (0x51, 0x802): "Kryo 3xx Gold", (0x51, 0x803): "Kryo 3xx Silver", (0x51, 0x804): "Kryo 4xx Gold",
    (0x51, 0x805): "Kryo 4xx Silver", (0xC0, 0xAC3): "Ampere-1",
}  # fmt: skip

HYBRID: tuple[tuple[str, str], ...] = (  # folder in /sys/devices, for people; fastest first
    ("cpu_core", "performance cores"),
    ("cpu_atom", "efficiency cores"),
    ("cpu_lowpower", "low-power cores"),
)

_SAME_SPEED = 0.85
"""Cores of one kind down to this fraction of the fastest share its cluster. Preferred cores of one die differ by up
to a tenth and are no cluster of their own; big and little ones, and dense ones (Zen 5c), by a quarter or more."""


@dataclass(frozen=True, slots=True)
class _Core:
    """One logical CPU."""

    number: int
    kind: str
    """What its cluster is called: 'Cortex-A76', 'performance cores', '' where all are alike."""
    rank: int
    """Place of its kind in `HYBRID`, 0 elsewhere."""
    model: str
    """The processor's own name for itself, '' where it has none."""
    capacity: int
    """The kernel's figure, 1024 for the fastest core; 0 when unknown."""
    clock_khz: int
    """Highest; 0 when unknown."""
    package: int
    arm: bool
    """Whether `kind` is an ARM design rather than one kind of a hybrid chip's cores."""
    first_sibling: bool
    """False for the second thread of a physical core."""
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What all clusters share."""

    board: str
    """Name of the board, where the firmware tells; '' elsewhere."""
    memory_bytes: int
    quota: float | None
    """Processors' worth of time that control groups leave; None when they do not limit it."""


def discover(root: Path = Path("/")) -> tuple[Device, ...]:
    """The CPU's clusters as devices, `cpu:0` the fastest. At least one.

    Only processors that are online and that affinity and cpusets allow count; a quota of control groups
    keeps the first so many of them, fastest first (never less than one): more threads than the quota are throttled.
    """
    cores, facts = _cores(root), _facts(root)
    if not cores:
        return (_elsewhere(facts.memory_bytes),)
    left = len(cores) if facts.quota is None else max(1, int(facts.quota))
    devices: list[Device] = []
    for cluster in _clusters(cores):
        ours, left = cluster[:left], left - len(cluster[:left])
        if ours:
            devices.append(_device(f"cpu:{len(devices)}", cluster, ours, facts))
    return tuple(devices)


def _cores(root: Path) -> tuple[_Core, ...]:
    allowed = _allowed(root)
    infos = _cpuinfo(root)
    if not allowed or not infos:
        return ()
    hybrid = [(name, _cpu_list(_text(root / "sys/devices" / folder / "cpus"))) for folder, name in HYBRID]
    shared = infos.get(-1, {})
    return tuple(_core(root, number, {**shared, **infos.get(number, {})}, hybrid, allowed) for number in allowed)


def _core(
    root: Path, number: int, info: Mapping[str, str], hybrid: Sequence[tuple[str, list[int]]], allowed: Sequence[int]
) -> _Core:
    folder = root / f"sys/devices/system/cpu/cpu{number}"
    siblings = _cpu_list(_text(folder / "topology/thread_siblings_list")) or [number]
    rank = next((rank for rank, (_, cpus) in enumerate(hybrid) if number in cpus), 0)
    own = next((name for name, cpus in hybrid if number in cpus), "")
    arm = _arm_name(info)
    flags = set((info.get("flags") or info.get("features") or "").split())
    return _Core(
        number=number,
        kind=arm or own,
        rank=rank,
        model=" ".join((info.get("model name") or info.get("hardware") or "").split()),
        capacity=_number(folder / "cpu_capacity"),
        clock_khz=_number(folder / "cpufreq/cpuinfo_max_freq"),
        package=max(0, _number(folder / "topology/physical_package_id")),
        arm=bool(arm),
        first_sibling=number == min(cpu for cpu in siblings if cpu in allowed or cpu == number),
        features=tuple(name for name in FEATURES if name in flags),
    )


def _clusters(cores: Iterable[_Core]) -> list[list[_Core]]:
    """Cores of one kind and about one speed together: fastest cluster first; in each, one thread a core first."""
    clusters: list[list[_Core]] = []
    for core in sorted(cores, key=lambda core: (core.rank, -core.capacity, -core.clock_khz, core.number)):
        home = next((cluster for cluster in clusters if _alike(core, cluster[0])), None)
        if home is None:
            clusters.append([core])
        else:
            home.append(core)
    # Within a cluster the number decides, not the last tenth of clock: neighbours share a cache.
    return [sorted(cluster, key=lambda core: (not core.first_sibling, core.number)) for cluster in clusters]


def _alike(core: _Core, fastest: _Core) -> bool:
    """Whether a core belongs to the cluster of one that is as fast or faster.

    Capacity and clock both count: x86 kernels give every core the same capacity.
    """
    return (
        (core.rank, core.kind) == (fastest.rank, fastest.kind)
        and core.capacity >= _SAME_SPEED * fastest.capacity
        and core.clock_khz >= _SAME_SPEED * fastest.clock_khz
    )


def _device(name: str, cluster: Sequence[_Core], ours: Sequence[_Core], facts: _Facts) -> Device:
    attributes = {
        "physical_cores": str(max(1, sum(core.first_sibling for core in ours))),
        "packages": str(len({core.package for core in cluster})),
    }
    if clock_khz := max(core.clock_khz for core in cluster):
        attributes["clock_mhz"] = str(clock_khz // 1000)
    if facts.quota is not None:
        attributes["quota"] = f"{facts.quota:g}"
    common = set.intersection(*(set(core.features) for core in ours))
    return Device(
        id=name,
        kind="cpu",
        name=_name(facts.board, cluster[0]),
        memory_bytes=facts.memory_bytes,
        cores=tuple(core.number for core in ours),
        features=tuple(feature for feature in FEATURES if feature in common),
        attributes=attributes,
    )


def _name(board: str, core: _Core) -> str:
    """'Cortex-A76, Raspberry Pi 5 Model B Rev 1.0', or the processor's own name and which of its kinds of core."""
    if core.arm:
        return f"{core.kind}, {board}" if board else core.kind
    own = core.model or board or platform.machine()
    return f"{own} ({core.kind})" if core.kind else own


def _arm_name(info: Mapping[str, str]) -> str:
    """Of the core, from the implementer and part numbers in /proc/cpuinfo; '' where it has none."""
    try:
        key = int(info["cpu implementer"], 16), int(info["cpu part"], 16)
    except (KeyError, ValueError):
        return ""
    return PARTS.get(key, f"ARM core {key[0]:#x}:{key[1]:#x}")


def _cpuinfo(root: Path) -> dict[int, dict[str, str]]:
    """/proc/cpuinfo: processor number -> key in lower case -> text; -1 for what stands for all (old 32-bit kernels)."""
    infos: dict[int, dict[str, str]] = {}
    current = -1
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            current = -1  # an empty line ends a processor's paragraph
        elif key == "processor" and value.isdigit():
            current = int(value)
            infos[current] = {}
        else:
            infos.setdefault(current, {})[key] = value
    return infos


def _allowed(root: Path) -> list[int]:
    """Logical CPUs that are online and that this process may run on."""
    online = _cpu_list(_text(root / "sys/devices/system/cpu/online"))
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            allowed = _cpu_list(line.partition(":")[2])
            return [cpu for cpu in allowed if cpu in online] if online else allowed
    return online


def _cpu_list(text: str) -> list[int]:
    """'0-3,8,10-11' as numbers; what is malformed counts for nothing."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit() and (not last or last.strip().isdigit()):
            found.extend(range(int(first), int(last or first) + 1))
    return found


def _facts(root: Path) -> _Facts:
    limits = cgroup.limits(root)
    board = _text(root / "proc/device-tree/model") or _text(root / "sys/firmware/devicetree/base/model")
    lines = _text(root / "proc/meminfo").splitlines()
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]
    if limits.memory_bytes is not None:
        sizes.append(limits.memory_bytes)
    return _Facts(board.strip("\0 \n"), min(sizes, default=0), limits.cpus)


def _elsewhere(memory: int) -> Device:
    """One device from what the standard library knows, where there is no /proc to read."""
    count = os.cpu_count() or 1
    if not memory and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = platform.processor() or platform.machine() or "CPU"
    return Device("cpu:0", "cpu", name, memory, tuple(range(count)), attributes={"physical_cores": str(count)})


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # this kernel or this container has no such file
        return ""
