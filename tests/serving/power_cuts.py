"""Ends a process in the middle of everything that it does to the disk: power_cuts.py FOLDER.

Version 1 of a model is active; taking and activating version 2 is killed at its first step on the disk, then in another
process at its second, and so on, until it comes through. After each, the repository is opened as by the next start.
Prints one JSON list [active version, its content, leftovers] for each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from edgert.serving.repository import Repository

CONTENT = {1: b"one" * 100_000, 2: b"two" * 100_000}


def renew(root: Path, file: Path) -> None:
    repository = Repository(root)
    repository.make_active(repository.take("m", file))


def killed(step: int, root: Path, file: Path) -> bool:
    """Whether the process that renews was killed at this step."""
    pid = os.fork()
    if pid == 0:
        steps = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            if event.startswith(("open", "os.", "shutil.", "tempfile.")) and str(root) in str(arguments):
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        renew(root, file)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def main(folder: Path) -> None:
    root, file = folder / "store", folder / "m.onnx"
    step = 0
    while True:
        step += 1
        shutil.rmtree(root, ignore_errors=True)
        file.write_bytes(CONTENT[1])
        renew(root, file)
        file.write_bytes(CONTENT[2])
        cut = killed(step, root, file)
        repository = Repository(root)
        active = repository.active("m")
        content = active.path.read_bytes() if active else b""
        number = next((number for number, known in CONTENT.items() if known == content), 0)
        left = [path.name for path in root.rglob(".part-*")]
        sys.stdout.write(json.dumps([active.number if active else None, number, left]) + "\n")
        if not cut:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
