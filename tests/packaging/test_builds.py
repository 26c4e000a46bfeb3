"""Wheel, source archive and editable install each carry the whole of edgert, once. Built without network."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
LEAVINGS = (".git", ".venv*", "*.egg-info", "build", "dist", ".*_cache", ".hypothesis", "__pycache__", "out")


def run(command: Sequence[str | Path], cwd: Path, **env: str) -> str:
    """The standard output of a command that must succeed; with what it said in the failure otherwise."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LC_ALL": "C.UTF-8", "PIP_ROOT_USER_ACTION": "ignore", **env}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def pip(cwd: Path, *arguments: str | Path) -> str:
    """This environment's pip, without network: setuptools is the one that is installed."""
    return run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], cwd)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with nothing built in it, links kept."""
    folder = tmp_path_factory.mktemp("tree") / "edgert"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*LEAVINGS))
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source archive built from the checkout."""
    pytest.importorskip("build", reason="this environment has no `build`")
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, tree], folder)
    return next(folder.glob("*.tar.gz"))


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of a folder or source archive."""
    pip(folder, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


def package_files(tree: Path) -> set[str]:
    """Every file that an installed edgert has, as 'edgert/devices/cpu.py': all modules, and the data beside them."""
    homes = {"edgert": tree / "edgert", "edgert/devices": tree / "devices", "edgert/partitioner": tree / "partitioner"}
    found = set()
    for prefix, home in homes.items():
        for file in home.rglob("*"):  # does not go through links
            if file.is_file() and "__pycache__" not in file.parts:
                found.add(f"{prefix}/{file.relative_to(home).as_posix()}")
    return found


def wheel_files(wheel: Path) -> list[str]:
    """What a wheel would install, its metadata aside."""
    return [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]


LOOK = """
import importlib, json, pathlib, sys
homes = {}
for name in sys.argv[1:]:
    homes[name] = str(pathlib.Path(importlib.import_module(name).__file__).resolve())
import edgert.data
homes["data"] = edgert.data.path("digits_f32.onnx").stat().st_size
print(json.dumps(homes))
"""
"""Imports the packages that it is told, and says where each came from."""


def packages(tree: Path) -> list[str]:
    with (tree / "pyproject.toml").open("rb") as file:
        return list(tomllib.load(file)["tool"]["setuptools"]["packages"])


def test_no_package_folder_is_forgotten_in_pyproject(tree: Path) -> None:
    found = {str(Path(name).parent).replace("/", ".") for name in package_files(tree) if name.endswith("/__init__.py")}
    assert set(packages(tree)) == found


def test_wheel_holds_every_module_and_data_file_once(tree: Path, wheel: Path) -> None:
    assert sorted(wheel_files(wheel)) == sorted(package_files(tree))


def test_wheel_is_pure_and_carries_the_licence(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert any(name.endswith("/licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_wheel_from_the_source_archive_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    assert sorted(wheel_files(build_wheel(sdist, tmp_path))) == sorted(wheel_files(wheel))


def test_source_archive_holds_no_link_and_nothing_twice(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert [item.name for item in members if not (item.isfile() or item.isdir())] == []
    assert [item.name for item in members if "/edgert/devices" in item.name or "/edgert/partitioner" in item.name] == []


def test_wheel_works_in_an_empty_folder(tree: Path, wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip(tmp_path, "install", "--no-deps", "--no-index", "--target", target, wheel)
    homes = json.loads(run([sys.executable, "-c", LOOK, *packages(tree)], tmp_path, PYTHONPATH=str(target)))
    assert homes.pop("data") > 0
    assert [name for name, home in homes.items() if not home.startswith(str(target))] == []


def test_editable_install_runs_from_the_checkout(tree: Path, tmp_path: Path) -> None:
    python = empty_environment(tmp_path / "venv")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed")
    run([python, "-m", "pip", "install", *offline, "--editable", tree], tmp_path)
    homes = json.loads(run([python, "-c", LOOK, *packages(tree)], tmp_path))
    assert homes.pop("data") > 0
    assert [name for name, home in homes.items() if not home.startswith(str(tree.resolve()))] == []
    assert "Usage" in run([python.with_name("edgert"), "--help"], tmp_path)


def empty_environment(folder: Path) -> Path:
    """The Python of a new environment that sees this one's packages, pip among them, but not this one's edgert."""
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    # A plain path: the .pth files in it, which may lead to this environment's own edgert, are not read.
    (site / "packages.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    return python


def test_installed_version_is_the_one_that_the_package_says() -> None:
    import edgert

    assert importlib.metadata.version("edgert") == edgert.__version__
