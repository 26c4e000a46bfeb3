"""Many small requests: memory, file descriptors and shared memory stay as they are.

    python -m bench.soak [--requests 1000000]

One executor; the model is one Add. After a tenth of the requests, and at the end, what every process holds is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from bench.executors import answer, pipeline_of, resident_bytes, write_chain

_IN_FLIGHT = 64


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = pipeline_of(write_chain(Path(folder) / "chain.onnx", 1, 1024), [1e-9], Path(folder) / "parts")
        pids = [os.getpid(), *(each.pid for each in pipeline.members())]
        try:
            tenth = options.requests // 10
            send(pipeline, tenth)
            before = [held(pid) for pid in pids]
            sys.stdout.write(f"after {tenth}: {before}\n")
            started_s = time.perf_counter()
            send(pipeline, options.requests - tenth)
            took_s = time.perf_counter() - started_s
            after = [held(pid) for pid in pids]
            sys.stdout.write(f"after {options.requests}: {after}\n")
            rate = (options.requests - tenth) / took_s
            growth = [f"{end['resident'] / start['resident']:.3f}" for start, end in zip(before, after, strict=True)]
            sys.stdout.write(f"{rate:.0f} requests a second; resident memory x {', '.join(growth)}\n")
        finally:
            pipeline.close()


def send(pipeline: Any, count: int) -> None:
    """So many requests, each answer checked."""
    inputs = np.ones((1, 1024), np.float32)  # 4 kB: through shared memory
    expected = answer(inputs, 1)
    flying: deque[Any] = deque()
    for _ in range(count):
        if len(flying) == _IN_FLIGHT:
            made = flying.popleft().result(60)
            assert made.outputs["y"][0, 0] == expected[0, 0], made
        flying.append(pipeline.submit({"x": inputs}, lambda made: made))
    for future in flying:
        assert np.array_equal(future.result(60).outputs["y"], expected)


def held(pid: int) -> dict[str, int]:
    """Resident bytes, file descriptors, and bytes of shared memory that a process maps."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    spans = [line.split()[0].split("-") for line in maps if "memfd:" in line]
    shared = sum(int(end, 16) - int(start, 16) for start, end in spans)
    return {"resident": resident_bytes(pid), "fds": len(os.listdir(f"/proc/{pid}/fd")), "shared": shared}


if __name__ == "__main__":
    main()
