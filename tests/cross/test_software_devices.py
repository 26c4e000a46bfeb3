"""The set-up script of the software devices, without a network: a package of ours stands for Mesa's."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cross/software_devices.py"
PACKAGES = ("mesa-vulkan-drivers=25.0.7-2~bpo12+1",)
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg: the script is for Debian")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("software_devices", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Mirror:
    """Stands for the script's apt: its packages are built here."""

    def __init__(self, *_arguments: object) -> None:
        self.downloads = 0

    def missing(self, _wanted: object) -> tuple[str, ...]:
        return PACKAGES

    def download(self, _packages: object, folder: Path) -> None:
        self.downloads += 1
        tree = folder.parent / "made"
        for path, text in {
            "DEBIAN/control": "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n",
            "usr/share/vulkan/icd.d/lvp_icd.x86_64.json": json.dumps(
                {"ICD": {"api_version": "1.4", "library_path": "/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so"}}
            ),
            "usr/lib/x86_64-linux-gnu/libvulkan_lvp.so": "library",
            "usr/share/doc/x/copyright": "words",
        }.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        subprocess.run(["dpkg-deb", "-b", str(tree), str(folder / "x.deb")], check=True, capture_output=True)


@pytest.fixture
def mirror(script, monkeypatch):
    made = Mirror()
    monkeypatch.setattr(script, "_Apt", lambda *_: made)
    return made


@needs_dpkg
def test_the_driver_is_unpacked_and_its_manifest_points_at_it(script, mirror, tmp_path):
    values = script.software_gpu(tmp_path, "http://nowhere")
    manifest = json.loads(Path(values["VK_ICD_FILENAMES"]).read_text())
    library = Path(manifest["ICD"]["library_path"])
    assert library.read_text() == "library"
    assert library.is_relative_to(tmp_path)
    assert values["LD_LIBRARY_PATH"] == str(library.parent)
    assert values["ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"] == "1"
    assert [path for path in tmp_path.iterdir() if path.name.startswith("unpacking")] == []


@needs_dpkg
def test_a_second_run_downloads_nothing(script, mirror, tmp_path):
    values = script.software_gpu(tmp_path, "http://nowhere")
    script.write_env(tmp_path, values)
    assert script.software_gpu(tmp_path, "http://nowhere") == values
    assert mirror.downloads == 1


@needs_dpkg
def test_what_was_removed_is_unpacked_again(script, mirror, tmp_path):
    values = script.software_gpu(tmp_path, "http://nowhere")
    script.write_env(tmp_path, values)
    shutil.rmtree(values["LD_LIBRARY_PATH"].partition("/usr/lib")[0])
    assert script.software_gpu(tmp_path, "http://nowhere") == values
    assert mirror.downloads == 2


@needs_dpkg
def test_the_environment_file_is_one_that_a_shell_reads(script, mirror, tmp_path):
    values = script.software_gpu(tmp_path, "http://nowhere")
    path = script.write_env(tmp_path, values)
    command = f"set -a; . '{path}'; '{sys.executable}' -c 'import os; print(os.environ[\"VK_ICD_FILENAMES\"])'"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == values["VK_ICD_FILENAMES"]


def test_a_step_that_fails_is_told_with_its_command_and_exit_code_1(tmp_path):
    satisfied = tmp_path / "python"  # an interpreter that misses no plugin: nothing is installed here
    satisfied.write_text("#!/bin/sh\n")
    satisfied.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--prefix", str(tmp_path), "--python", str(satisfied)],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert "software devices:" in done.stderr
    assert "Traceback" not in done.stderr
