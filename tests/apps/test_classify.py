"""The example application, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgert.data import path

SCRIPT = Path(__file__).resolve().parents[2] / "apps" / "digits" / "classify.py"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def classify(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGERT_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("model", ["digits_f32.onnx", "digits_i8.tflite"])
def test_it_reads_the_bundled_digits_and_says_what_ran(model: str, cache: Path) -> None:
    done = classify(cache, "--model", model)
    assert done.returncode == 0, done.stderr
    share = float(done.stdout.split("%")[0])
    assert share >= 97
    assert "@cpu:0/" in done.stdout


@pytest.mark.parametrize("dark_on_light", [True, False])
def test_it_reads_a_picture(dark_on_light: bool, cache: Path, tmp_path: Path) -> None:
    bundled = np.load(path("digits.npz"))
    picture = (bundled["images"][0] * 15).astype(np.uint8)
    picture = 255 - picture if dark_on_light else picture
    Image.fromarray(picture).resize((80, 80), Image.Resampling.NEAREST).save(tmp_path / "digit.png")
    done = classify(cache, str(tmp_path / "digit.png"))
    assert done.returncode == 0, done.stderr
    assert f"digit.png: {bundled['labels'][0]}" in done.stdout


def test_a_missing_picture_is_named(cache: Path) -> None:
    done = classify(cache, "nowhere.png")
    assert done.returncode == 2
    assert "nowhere.png" in done.stderr


def test_what_is_no_picture_or_no_model_is_named_without_a_traceback(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.png").write_bytes(b"noise")
    for arguments in ([str(tmp_path / "noise.png")], ["--model", "nowhere.onnx"]):
        done = classify(cache, *arguments)
        assert done.returncode == 1
        assert Path(arguments[-1]).name in done.stderr
        assert "Traceback" not in done.stderr
