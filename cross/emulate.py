"""Runs Python on an emulated board: `Emulated(load("pi4"), "arm64", folder).check("probe")`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cross import sysroot
from cross.board import Board, overlay, write

GUEST = sysroot.HERE / "guest"
TIMEOUT_S = 1500.0
"""For one command; emulation is ten to twenty times slower than the machine that it runs on."""


class GuestFailed(AssertionError):
    """A program on a board ended with an error; carries what it wrote."""


@dataclass(frozen=True)
class Emulated:
    """A board with one set of packages, and folders of its own."""

    board: Board
    environment: str
    """Name of its packages: one of `Board.environments`."""
    folder: Path
    """Of this board alone: its overlay, its cache, what it writes."""
    binds: Mapping[Path, str] = field(default_factory=dict)
    """Folders of this machine that it sees: where -> path on the board, one of those that `sysroot` made."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of its environment."""
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Small file systems on it: path -> size as mount(8) takes it."""

    def run(self, *arguments: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run the board's python3 with `arguments`; never raises for its exit status."""
        for name in ("cache", "out"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not (self.folder / "overlay/proc/cpuinfo").exists():
            write(overlay(self.board), self.folder / "overlay")
        mounts = {GUEST: "/srv/checks", sysroot.product(): "/srv/product", self.folder / "out": "/srv/out"}
        if "/srv/cache" not in self.tmpfs:
            mounts[self.folder / "cache"] = "/srv/cache"
        command: list[str] = [
            *sysroot.unshare(), str(sysroot.HERE / "enter.sh"), str(sysroot.sysroot(self.board.architecture)),
            str(self.folder / "overlay"), str(sysroot.launcher(self.board)), str(sysroot.packages(self.environment)),
        ]  # fmt: skip
        for source, target in {**mounts, **self.binds}.items():
            command += ["bind", str(source), target]
        for target, size in self.tmpfs.items():
            command += ["tmpfs", target, size]
        for name, value in self.variables.items():
            command += ["set", name, value]
        return subprocess.run(
            [*command, "--", *arguments], check=False, capture_output=True, text=True, timeout=timeout_s,
            stdin=subprocess.DEVNULL, env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
        )  # fmt: skip

    def check(self, name: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> Any:
        """What `guest/checks.py NAME ARGUMENTS` answers: the last line that it writes, as JSON.

        Raises:
            GuestFailed: it ended with an error.
        """
        done = self.run("/srv/checks/checks.py", name, *arguments, timeout_s=timeout_s)
        if done.returncode:
            raise GuestFailed(
                f"{name} on {self.board.name} with {self.environment}: exit status {done.returncode}\n"
                f"{_tail(done.stdout)}\n{_tail(done.stderr)}"
            )
        return json.loads(done.stdout.splitlines()[-1])

    def visit(self, works: Sequence[Sequence[str]], timeout_s: float = TIMEOUT_S) -> dict[tuple[str, ...], Any]:
        """Several checks in one process: (name, *arguments) -> what it answers, or the GuestFailed that it ended with.

        One that the process died of, and those after it, are not in it.
        """
        done = self.run("/srv/checks/checks.py", "all", json.dumps([list(work) for work in works]), timeout_s=timeout_s)
        told: dict[tuple[str, ...], Any] = {}
        for line in done.stdout.splitlines():
            if line.startswith('{"work": '):
                entry = json.loads(line)
                failed = entry.get("failed")
                told[tuple(entry["work"])] = entry["answer"] if failed is None else self._failed(entry["work"], failed)
        return told

    def _failed(self, work: Sequence[str], words: str) -> GuestFailed:
        return GuestFailed(f"{' '.join(work)} on {self.board.name} with {self.environment}:\n{_tail(words)}")


def _tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.splitlines()[-lines:])
