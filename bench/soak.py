"""Many small requests: memory, file descriptors, threads and shared memory stay as they are.

    python -m bench.soak [--requests 1000000] [--checkpoints 10] [--transport ipc]

One executor; the model is one Add. Each request has numbers of its own, so an answer to another one is seen. At every
checkpoint a line says what this process and the executor hold; the last line says how that grew since the first
checkpoint (until then memory is allocated that is kept), and the command fails if it grew by more than it may.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.executors import answer, pipeline_of, resident_bytes, write_chain
from edgert.tensor import Array

_IN_FLIGHT = 64
_WIDTH = 1024  # 4 kB: through shared memory
_MOST_GROWTH = 1.05
_MIB = 1 << 20
_PATIENCE_S = 900.0
"""For one answer; others may have the machine for themselves meanwhile."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    resident_bytes: int
    """Memory in use, shared memory included."""
    files: int
    """Open file descriptors."""
    threads: int
    """Threads of the operating system."""
    shared_bytes: int
    """Shared memory that it maps."""

    @classmethod
    def by(cls, pid: int) -> Held:
        """As the kernel says."""
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        spans = [line.split()[0].split("-") for line in maps if "memfd:" in line]
        shared = sum(int(end, 16) - int(start, 16) for start, end in spans)
        files, threads = (len(os.listdir(f"/proc/{pid}/{kind}")) for kind in ("fd", "task"))
        return cls(resident_bytes(pid), files, threads, shared)

    def __str__(self) -> str:
        resident, shared = self.resident_bytes / _MIB, self.shared_bytes / _MIB
        return f"{resident:.2f} MiB, {self.files} files, {self.threads} threads, {shared:.2f} MiB shared"

    def grown_from(self, before: Held) -> str:
        """What grew beyond what it may since `before`; empty if nothing."""
        kept = self.files <= before.files and self.threads <= before.threads
        kept = kept and self.shared_bytes <= before.shared_bytes
        return "" if kept and self.resident_bytes <= _MOST_GROWTH * before.resident_bytes else f"{before} -> {self}"


def main() -> int:
    """Run and report; 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--transport", default="ipc", choices=("ipc", "inproc"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_chain(Path(folder) / "chain.onnx", 1, _WIDTH)
        pipeline = pipeline_of(model, [1e-9], Path(folder) / "parts", transport=options.transport)
        try:
            seen = soak(pipeline, options.requests, options.checkpoints)
        finally:
            pipeline.close()
    first, last = seen[0], seen[-1]
    growth = ", ".join(f"{last[name].resident_bytes / first[name].resident_bytes:.3f}" for name in first)
    grown = {name: last[name].grown_from(first[name]) for name in first if last[name].grown_from(first[name])}
    sys.stdout.write(f"resident memory x {growth} since the first checkpoint; {f'GREW: {grown}' if grown else 'ok'}\n")
    return 1 if grown else 0


def soak(pipeline: Any, requests: int, checkpoints: int) -> list[dict[str, Held]]:
    """Send them all; what each process held at every checkpoint."""
    seen = []
    for number in range(checkpoints):
        started_s = time.perf_counter()
        degraded = send(pipeline, requests // checkpoints)
        rate = requests // checkpoints / (time.perf_counter() - started_s)
        pids = {"caller": os.getpid(), **{each.place.device: each.pid for each in pipeline.members() if each.pid}}
        seen.append({name: Held.by(pid) for name, pid in pids.items()})
        text = "; ".join(f"{name} {held}" for name, held in seen[-1].items())
        left = len(os.listdir("/dev/shm"))
        sys.stdout.write(
            f"{(number + 1) * (requests // checkpoints):9} requests, {rate:5.0f}/s, {degraded} by a fallback: {text}; "
            f"{left} in /dev/shm\n"
        )
        sys.stdout.flush()
    return seen


def send(pipeline: Any, count: int) -> int:
    """So many requests, each answer checked; how many a fallback answered."""
    asked = [np.full((1, _WIDTH), number, np.float32) for number in range(2 * _IN_FLIGHT + 1)]
    expected = [answer(inputs, 1) for inputs in asked]
    flying: deque[tuple[int, Any]] = deque()
    degraded = 0
    for number in range(count):
        if len(flying) == _IN_FLIGHT:
            degraded += land(*flying.popleft(), expected)
        which = number % len(asked)
        flying.append((which, pipeline.submit({"x": asked[which]}, lambda made: made)))
    return degraded + sum(land(*each, expected) for each in flying)


def land(which: int, future: Any, expected: list[Array]) -> bool:
    """One answer, whose numbers must be right; whether a fallback gave it."""
    made = future.result(_PATIENCE_S)
    if not np.array_equal(made.outputs["y"], expected[which]):
        raise SystemExit(f"wrong numbers: {made}")
    return bool(made.reason)


if __name__ == "__main__":
    raise SystemExit(main())
