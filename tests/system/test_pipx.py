"""`pipx install edgert[pi]`, the developer's way: a wheel of this checkout in a fresh home, with what it asks for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cross.deb import build
from edgert.data import path as data

pytestmark = pytest.mark.skipif(os.environ.get("EDGERT_SYSTEMD") != "1", reason="run by `make test-systemd`")


def test_pipx_installs_a_command_that_runs_a_model(tmp_path: Path) -> None:
    if shutil.which("pipx") is None:
        pytest.skip("pipx is not installed")
    wheel = build.own_wheel(tmp_path)
    homes = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    environment = os.environ | homes | {"EDGERT_CACHE": str(tmp_path / "cache")}

    def said(*command: str | Path) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    said("pipx", "install", "--python", sys.executable, f"edgert[pi] @ {wheel.as_uri()}")
    edgert = tmp_path / "bin/edgert"
    assert "litert" in said(edgert, "version")
    assert "litert@cpu:0/i8" in said(edgert, "run", data("digits_i8.tflite"), "--input", "random", "--budget", "0")
    installed = said("pipx", "runpip", "edgert", "list", "--format", "freeze")
    absent = ("onnx==", "onnx-ir==", "onnxruntime==", "openvino==", "ortools==")
    assert [name for name in absent if name in installed] == []
