"""An application that has used up its files: served by what needs none, and by its devices again once it may."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the model is written with onnx")
pytest.importorskip("onnxruntime", reason="what answers meanwhile")
ROOT = Path(__file__).parents[2]


def test_without_files_requests_are_answered_and_devices_come_back(tmp_path):
    command = [sys.executable, "-m", "tests.execution.short_of_files", str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "Too many open files" in said["short"]
    assert "cannot be started: Too many open files" in said["unready"]
    assert "a fault in edgert" not in done.stderr, done.stderr
