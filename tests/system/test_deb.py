"""The Debian packages, as files, and what emulated boards make of them: `make test-systemd` builds and tries them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("amd64", "arm64", "armhf")
DEBS = os.environ.get("EDGERT_DEBS", "")
pytestmark = pytest.mark.skipif(not DEBS, reason="EDGERT_DEBS is not set: run by `make test-systemd`")
BOARDS = {"arm64": "pi4", "armhf": "pi2"}


def package(architecture: str) -> Path:
    return next(Path(DEBS).glob(f"edgert_*_{architecture}.deb"))


def said(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lintian_has_nothing_to_say_but_what_is_overridden_with_its_reason(architecture: str) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    assert said("lintian", "--fail-on", "error,warning", "--allow-root", package(architecture)) == ""
    overrides = (ROOT / "cross/deb/edgert.lintian-overrides").read_text().splitlines()
    for before, line in zip(["", *overrides], overrides, strict=False):
        assert line.startswith("#") or before.startswith("#"), f"{line}: no reason"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_small(architecture: str) -> None:
    file = package(architecture)
    unpacked_kib = int(said("dpkg-deb", "-f", file, "Installed-Size"))
    sys.stdout.write(
        f"figure: {architecture}: {file.stat().st_size / 1e6:.1f} MB, {unpacked_kib / 1024:.1f} MiB unpacked\n"
    )
    assert file.stat().st_size <= 15e6
    assert unpacked_kib <= 80 * 1024


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_its_binaries_are_for_its_architecture(architecture: str, tmp_path: Path) -> None:
    machine = {"amd64": 62, "arm64": 183, "armhf": 40}[architecture]  # e_machine of elf(5)
    said("dpkg-deb", "-x", package(architecture), tmp_path)
    libraries = [file for file in tmp_path.rglob("*.so*") if file.is_file()]
    assert libraries
    found = {int.from_bytes(file.read_bytes()[18:20], "little") for file in libraries}
    assert found == {machine}


def test_equal_sources_make_equal_packages(tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = [sys.executable, ROOT / "cross/deb/build.py", "--architecture", "armhf", "--out", made]
    said(*command, "--cache", Path(DEBS).parent / "deb")
    again = next(made.glob("*.deb"))
    assert again.read_bytes() == package("armhf").read_bytes()


@pytest.mark.parametrize("architecture", sorted(BOARDS))
def test_a_board_runs_a_model_with_the_package_alone(architecture: str, tmp_path: Path) -> None:
    """Extracted beside Debian's own Python, numpy and pyzmq, and run under emulation."""
    if os.environ.get("EDGERT_SYSTEMD") != "1":
        pytest.skip("run by `make test-systemd`")
    from tests.system.emulated_package import answer

    assert answer(package(architecture), BOARDS[architecture], tmp_path).startswith("litert@cpu:0/i8")
