"""Mutates model files at the readers: `python -m tests.fuzz --seconds 600 [--seed N]`.

Each mutant must open, or raise an error of edgert's tree, within a few seconds; a worker process does the opening, so
that even a crash is caught. A mutant that breaks this is kept, and the exit status is 1 (2: no worker ran).
"""

# ruff: noqa: T201 - a program that reports to its user
from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgert.errors import EdgertError
from edgert.formats import digest, open_model
from tests.fuzz.mutate import mutants

_OPEN_LIMIT_S = 20
_BATCH_S = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "edgert-fuzz")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.worker:
        return work(options.worker, options.seed, options.seconds)
    return supervise(options.seconds, options.seed, options.keep)


def supervise(seconds: float, seed: int, keep: Path) -> int:
    """Run worker after worker, each with a seed of its own; keep what kills one."""
    end = time.monotonic() + seconds
    found: set[str] = set()
    while (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tests.fuzz", "--worker", folder, "--seed", str(seed)]
            command += ["--seconds", str(min(left, _BATCH_S))]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            print(f"seed {seed}: {result.stdout.strip() or 'cut short'}", flush=True)
            if result.returncode and not report(result, Path(folder) / "mutant", keep / f"seed{seed}.bin", found):
                return 2
        seed += 1
    print(f"{len(found)} findings")
    return 1 if found else 0


def report(result: subprocess.CompletedProcess[str], mutant: Path, kept: Path, found: set[str]) -> bool:
    """Show and keep what ended a worker, once for each cause; False when it never came to a mutant."""
    if not mutant.exists():
        print(f"the worker did not start:\n{result.stderr}")
        return False
    died = signal.Signals(-result.returncode).name if result.returncode < 0 else f"exit {result.returncode}"
    cause = f"{died}: {(result.stderr.strip().splitlines() or [''])[-1]}"
    if cause not in found:
        kept.write_bytes(mutant.read_bytes())
        print(f"FOUND {kept}\n{result.stderr[-3000:]}\n{cause}", flush=True)
    found.add(cause)
    return True


def work(folder: Path, seed: int, seconds: float) -> int:
    """Open mutants until the time is up; dies (and leaves the mutant) on the first that breaks the promise."""
    end = time.monotonic() + seconds
    rng = random.Random(seed)
    count = opened = 0
    mutant = folder / "mutant"
    for content in mutants(rng):
        if time.monotonic() > end:
            break
        mutant.write_bytes(content)
        faulthandler.dump_traceback_later(_OPEN_LIMIT_S, exit=True)
        opened += exercise(mutant, folder / "part", rng)
        faulthandler.cancel_dump_traceback_later()
        count += 1
    print(f"{count} mutants, {opened} still models")
    return 0


def exercise(path: Path, part: Path, rng: random.Random) -> bool:
    """Everything that a reader offers, on one file; True when it opened."""
    with contextlib.suppress(EdgertError):
        digest(path)
    try:
        model = open_model(path)
    except EdgertError:
        return False
    assert model.precision
    for constant in list(model.graph.constants.values())[:20]:
        with contextlib.suppress(EdgertError):
            constant.read()
    nodes = [node.name for node in model.graph.nodes]
    start = rng.randrange(len(nodes) + 1)
    with contextlib.suppress(EdgertError):
        model.write(nodes[start : start + rng.randrange(1, len(nodes) + 2)], part)
    return True


if __name__ == "__main__":
    os.environ.setdefault("PYTHONFAULTHANDLER", "1")
    sys.exit(main())
