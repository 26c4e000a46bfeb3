"""A program that ends without closing its models: nothing is printed, nothing hangs, nothing stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, sys, threading
from pathlib import Path
import numpy as np

made = []
if "registered before" in sys.argv[2]:  # runs after the executors were ended
    atexit.register(lambda: made[0].close())

from bench.executors import pipeline_of, write_chain

folder = Path(sys.argv[1])
made.append(pipeline_of(write_chain(folder / "chain.onnx", 2), [0.01, 0.01], folder))
x = np.zeros((1, 64), np.float32)
made[0].run({"x": x})
print(*(member.pid for member in made[0].members()), flush=True)
if "under way" in sys.argv[2]:
    for _ in range(20):
        made[0].submit({"x": x}, lambda answer: answer)
if "thread" in sys.argv[2]:
    threading.Thread(target=lambda: [made[0].run({"x": x}) for _ in range(10)]).start()
"""


@pytest.fixture
def short_folder():
    """Sockets have short paths: in a folder with a long name none are made."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield folder


@pytest.mark.parametrize(
    "how", ["idle", "under way", "thread", "closed by a handler that was registered before, under way"]
)
def test_a_program_that_closes_nothing_ends_in_silence(tmp_path, short_folder, how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": short_folder, "XDG_RUNTIME_DIR": ""}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), how],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    pids = ended.stdout.split()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not list(Path(short_folder).glob("edgert-*"))
