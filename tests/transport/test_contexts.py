"""The threads of libzmq begin only where they can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("left", [0, 2, 3, 4, 5, 8, 15, 40])
def test_a_process_short_of_files_is_told_and_lives(tmp_path, left):
    """libzmq ends it where its threads find no descriptor."""
    tmp_path.chmod(0o700)
    command = [sys.executable, "-m", "tests.transport.short_of_files", str(tmp_path), str(left)]
    done = subprocess.run(command, check=False, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout == "made") == (left == 40)
    assert left == 40 or "Too many open files" in done.stdout
