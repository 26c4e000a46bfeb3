"""A board as data, and the /proc and /sys that its kernel would show.

`cross/boards/*.json` hold what vendors publish. Libraries choose their kernels by what they read there, so a board
is its processor's instructions (QEMU's `-cpu`) and these files together: one without the other proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "boards"
_ARM = "0x41"
"""Arm's own number as implementer of a core; all boards here have its designs."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Cores of one design that run at one speed."""

    first: int
    """Number of the first core; the others follow it."""
    count: int
    design: str
    """What people call it: 'Cortex-A72'."""
    part: str
    """Its part number in the main ID register, as /proc/cpuinfo writes it: '0xd08'."""
    features: str
    """As /proc/cpuinfo writes them."""
    max_khz: int
    capacity: int
    """The kernel's relative speed, 1024 for the fastest core of the board."""

    @property
    def cores(self) -> tuple[int, ...]:
        return tuple(range(self.first, self.first + self.count))


@dataclass(frozen=True, slots=True)
class Board:
    """One kind of board."""

    name: str
    """Short, as in file names: 'pi4'."""
    model: str
    """What its device tree says: 'Raspberry Pi 4 Model B Rev 1.4'."""
    architecture: Literal["arm64", "armhf"]
    """Debian's name for it."""
    emulated_cpu: str
    """QEMU's `-cpu`: the instructions that exist; any other dies of SIGILL."""
    memory_bytes: int
    clusters: tuple[Cluster, ...]
    """Fastest first."""
    source: str
    """Where the figures come from."""

    @property
    def environments(self) -> tuple[str, ...]:
        """The sets of packages that it is tested with: names of requirements/boards/*.txt, the usual one first."""
        return ENVIRONMENTS[self.architecture]

    @property
    def libc(self) -> str:
        """The folder of its libraries: 'aarch64-linux-gnu'."""
        return {"arm64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf"}[self.architecture]


ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "arm64": ("arm64", "arm64-tflite-runtime", "arm64-control"),
    "armhf": ("armhf",),
}


def load(name: str) -> Board:
    """The board of `cross/boards/NAME.json`. Raises `FileNotFoundError` when there is none."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Board(**{**content, "clusters": tuple(Cluster(**cluster) for cluster in content["clusters"])})


def names() -> tuple[str, ...]:
    """All boards that are described."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def overlay(board: Board, available: int | None = None) -> Mapping[str, str]:
    """The files of /proc and /sys by which libraries know a processor: path below the root -> content.

    Args:
        board: whose.
        available: how many of its cores a process may run on, for /proc/self/status; None for all.
    """
    cores = [(number, cluster) for cluster in board.clusters for number in cluster.cores]
    cores.sort(key=lambda core: core[0])
    everyone = _span(len(cores))
    files = {
        "proc/cpuinfo": _cpuinfo(board, cores),
        "proc/meminfo": _meminfo(board.memory_bytes // 1024),
        "proc/device-tree/model": f"{board.model}\0",
        "proc/self/status": f"Name:\tpython3\nCpus_allowed_list:\t{_span(available or len(cores))}\nThreads:\t1\n",
        "sys/firmware/devicetree/base/model": f"{board.model}\0",
        **{f"sys/devices/system/cpu/{name}": f"{everyone}\n" for name in ("possible", "present", "online")},
        "sys/devices/system/cpu/kernel_max": f"{len(cores) - 1}\n",
    }
    for number, cluster in cores:
        files |= _core(number, cluster)
    return files


def write(files: Mapping[str, str], folder: Path) -> None:
    """Lay the files of an overlay out below `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")


def _core(number: int, cluster: Cluster) -> Mapping[str, str]:
    folder = f"sys/devices/system/cpu/cpu{number}"
    span = _span(cluster.count, cluster.first)
    return {
        f"{folder}/online": "1\n",
        f"{folder}/cpu_capacity": f"{cluster.capacity}\n",
        f"{folder}/cpufreq/cpuinfo_max_freq": f"{cluster.max_khz}\n",
        f"{folder}/cpufreq/cpuinfo_min_freq": "600000\n",
        f"{folder}/cpufreq/scaling_cur_freq": f"{cluster.max_khz}\n",
        f"{folder}/cpufreq/related_cpus": f"{span.replace('-', ' ')}\n",
        f"{folder}/topology/core_id": f"{number}\n",
        f"{folder}/topology/physical_package_id": "0\n",
        f"{folder}/topology/thread_siblings_list": f"{number}\n",
        f"{folder}/topology/core_siblings_list": f"{span}\n",
        f"{folder}/topology/package_cpus_list": f"{span}\n",
        f"{folder}/topology/cluster_cpus_list": f"{span}\n",
        # What ONNX Runtime's and XNNPACK's cpuinfo library reads to tell big cores from little ones.
        f"{folder}/regs/identification/midr_el1": f"{_midr(cluster):#018x}\n",
    }


def _midr(cluster: Cluster) -> int:
    """The main ID register: implementer, architecture 0xf (see the features), part; Arm's manuals, MIDR_EL1."""
    return int(_ARM, 16) << 24 | 0xF << 16 | int(cluster.part, 16) << 4 | 1


def _cpuinfo(board: Board, cores: list[tuple[int, Cluster]]) -> str:
    architecture = "7" if board.architecture == "armhf" else "8"
    paragraphs = "".join(
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {cluster.features}\nCPU implementer\t: {_ARM}\n"
        f"CPU architecture: {architecture}\nCPU variant\t: 0x0\nCPU part\t: {cluster.part}\nCPU revision\t: 1\n\n"
        for number, cluster in cores
    )
    return f"{paragraphs}Revision\t: 000000\nSerial\t\t: 0000000000000001\nModel\t\t: {board.model}\n"


def _meminfo(total_kib: int) -> str:
    """As on a board where four fifths are free."""
    free_kib = total_kib * 4 // 5
    return (
        f"MemTotal:       {total_kib} kB\nMemFree:        {free_kib} kB\nMemAvailable:   {free_kib} kB\n"
        "Buffers:               0 kB\nCached:                0 kB\n"
        "SwapTotal:             0 kB\nSwapFree:              0 kB\n"
    )


def _span(count: int, first: int = 0) -> str:
    return f"{first}-{first + count - 1}" if count > 1 else str(first)
