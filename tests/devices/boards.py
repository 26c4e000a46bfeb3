"""Folders that look like the /proc and /sys of real boards, as their kernels write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PI4 = ("0x41", "0xd08", "fp asimd evtstrm crc32 cpuid")
PI5 = (
    "0x41", "0xd0b",
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
)  # fmt: skip
A55 = ("0x41", "0xd05", PI5[2])
V1 = ("0x41", "0xd40", f"{PI5[2]} sve bf16 i8mm svei8mm svebf16")
X86 = "fpu sse4_1 sse4_2 fma avx f16c avx2"


@dataclass
class Board:
    """Writes the files; every method adds to what is there."""

    root: Path

    def write(self, path: str, text: str) -> Board:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    def link(self, path: str, target: str) -> Board:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(target)
        return self

    def memory(self, kib: int) -> Board:
        return self.write("proc/meminfo", f"MemTotal:       {kib} kB\nMemFree:  1 kB\n")

    def allow(self, cpus: str, online: str) -> Board:
        self.write("proc/self/status", f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\nThreads:\t1\n")
        return self.write("sys/devices/system/cpu/online", f"{online}\n")

    def cpu(self, number: int, *, siblings: str = "", clock_khz: int = 0, capacity: int = 0, package: int = 0) -> Board:
        folder = f"sys/devices/system/cpu/cpu{number}"
        self.write(f"{folder}/topology/thread_siblings_list", f"{siblings or number}\n")
        self.write(f"{folder}/topology/physical_package_id", f"{package}\n")
        if clock_khz:
            self.write(f"{folder}/cpufreq/cpuinfo_max_freq", f"{clock_khz}\n")
        if capacity:
            self.write(f"{folder}/cpu_capacity", f"{capacity}\n")
        return self

    def arm_info(self, cores: Sequence[tuple[str, str, str]], model: str) -> Board:
        text = "".join(
            f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: {implementer}\n"
            f"CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
            for number, (implementer, part, features) in enumerate(cores)
        )
        self.write("proc/cpuinfo", f"{text}Revision\t: d04170\nSerial\t\t: 1\nModel\t\t: {model}\n")
        return self.write("proc/device-tree/model", f"{model}\0")

    def x86_info(self, count: int, name: str, flags: str = X86) -> Board:
        return self.write(
            "proc/cpuinfo",
            "".join(
                f"processor\t: {number}\nvendor_id\t: Some\nmodel\t\t: 17\nmodel name\t: {name}\nflags\t\t: {flags}\n"
                "power management:\n\n"
                for number in range(count)
            ),
        )

    def server(self, count: int = 8) -> Board:
        """An x86 server without SMT."""
        for number in range(count):
            self.cpu(number)
        everything = f"0-{count - 1}"
        return self.x86_info(count, "AMD EPYC 7B13").allow(everything, everything).memory(64 << 20)


def pi(root: Path, core: tuple[str, str, str], model: str, clock_khz: int) -> Board:
    board = Board(root).arm_info([core] * 4, model).allow("0-3", "0-3").memory(8 << 20)
    for number in range(4):
        board.cpu(number, clock_khz=clock_khz)
    return board
