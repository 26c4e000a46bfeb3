#!/usr/bin/env python3
"""Give this box a software GPU and a software NPU, without installing anything into the system.

The GPU is llvmpipe, Mesa's Vulkan device on the CPU, driven by ONNX Runtime's WebGPU plugin; the NPU is Qualcomm's HTP
library for x86-64, which comes inside ONNX Runtime's QNN plugin. Both compute right numbers at meaningless speed: they
are for tests of placement, transfer, fallback and numerics.

    cross/software_devices.py                     # into ~/.cache/edgert/software-devices
    set -a; . ~/.cache/edgert/software-devices/software_devices.env; set +a
    edgert probe --refresh

Debian's packages are downloaded with an apt state of the script's own and unpacked with `dpkg -x` into a folder named
after their versions. Running it again does nothing when everything is there. Needs apt and dpkg (Debian 12 or later,
or Ubuntu 25.04 or later), not root. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ENV_FILE = "software_devices.env"
WANTED = ("mesa-vulkan-drivers", "libvulkan1")
PLUGINS = {"onnxruntime_ep_webgpu": "onnxruntime-ep-webgpu>=0.4,<1", "onnxruntime_qnn": "onnxruntime-qnn>=2.7,<3"}
"""Module -> what pip installs; the same limits as in pyproject.toml."""
BACKPORTS = frozenset({"bookworm"})
"""Releases whose own Mesa is too old (22.3: 'shaderUniform*ArrayDynamicIndexing required'; 25 works)."""
KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Set both devices up and say where the environment file is.

    Exit codes: 0 done; 1 a step failed (its message is on stderr); 2 wrong arguments.
    """
    options = _options(arguments)
    prefix: Path = options.prefix.expanduser().absolute()
    prefix.mkdir(parents=True, exist_ok=True)
    try:
        install_plugins(options.python)
        values = software_gpu(prefix, options.mirror, refresh=options.refresh)
    except (subprocess.CalledProcessError, OSError, SetupError) as error:
        say(_words(error))
        return 1
    sys.stdout.write(f"{write_env(prefix, values)}\n")
    return 0


class SetupError(Exception):
    """A step cannot be done here; the message says what to do."""


def install_plugins(python: str) -> None:
    """pip-install the execution provider plugins into `python`'s environment, unless they are there."""
    modules = [module for module in PLUGINS if platform.machine() == "x86_64" or "qnn" not in module]
    probe = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m) is None])"
    missing = _run([python, "-c", probe, *modules]).split()
    if missing:
        say(f"pip install {' '.join(PLUGINS[module] for module in missing)}")
        _run([python, "-m", "pip", "install", "-q", *(PLUGINS[module] for module in missing)])


def own_mirror(root: Path = Path("/etc/apt")) -> str:
    """The first archive that this machine's own apt knows; '' when it knows none."""
    lists = [root / "sources.list", *sorted((root / "sources.list.d").glob("*"))]
    text = "\n".join(path.read_text(errors="replace") for path in lists if path.is_file())
    found = re.search(r"^(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s+)?)(\S+)", text, re.MULTILINE)
    return found[1] if found else ""


def software_gpu(prefix: Path, mirror: str, *, refresh: bool = False) -> dict[str, str]:
    """The environment under which Vulkan shows llvmpipe, and nothing else.

    Downloads and unpacks into `prefix` unless an earlier run did; `refresh` asks the mirror again.
    """
    if not refresh and (known := read_env(prefix)):
        say(f"already set up: {prefix / ENV_FILE}")
        return known
    apt = _Apt(prefix / "apt", mirror)
    packages = apt.missing(WANTED)
    driver = _unpack(prefix, apt, packages) if packages else Path("/")
    # What the system has already is not unpacked: then its own manifest serves.
    places = [path for root in (driver, Path("/")) for path in root.glob("usr/share/vulkan/icd.d/lvp_icd*.json")]
    manifest = next(iter(places), None)
    if manifest is None:
        raise SetupError(f"{driver}/usr/share/vulkan/icd.d holds no lvp_icd*.json; try --refresh.")
    folders = sorted({str(path.parent) for path in driver.glob("usr/lib/*/*.so*")}) if packages else []
    values = {"VK_ICD_FILENAMES": str(_edited(manifest, driver, prefix)), "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}
    return {**values, "LD_LIBRARY_PATH": ":".join(folders)} if folders else values


class _Apt:
    """apt with lists, cache and sources of its own, and the system's knowledge of what is installed."""

    def __init__(self, state: Path, mirror: str) -> None:
        if not mirror:
            raise SetupError("apt knows no archive on this machine: pass --mirror URL of a Debian mirror")
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        self._state = state
        self._suite = ""
        sources = "/etc/apt/sources.list"
        parts = "/etc/apt/sources.list.d"
        release = _os_release()
        if release.get("ID") == "debian":
            codename = release.get("VERSION_CODENAME", "")
            self._suite = f"{codename}-backports" if codename in BACKPORTS else ""
            suites = [codename, *([self._suite] if self._suite else [])]
            signed = next((f"[signed-by={path}] " for path in KEYRINGS if Path(path).exists()), "")
            (state / "sources.list").write_text("".join(f"deb {signed}{mirror} {suite} main\n" for suite in suites))
            sources, parts = str(state / "sources.list"), "/dev/null"
        elif "ubuntu" not in release.get("ID", "") and "debian" not in release.get("ID_LIKE", ""):
            raise SetupError(
                f"{release.get('PRETTY_NAME', 'this system')} has no apt. Install Mesa 24.2 or later with its Vulkan "
                f"drivers, and set VK_ICD_FILENAMES to its lvp_icd*.json and ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1."
            )
        self._options = [
            f"-oDir::Etc::sourcelist={sources}", f"-oDir::Etc::sourceparts={parts}",
            f"-oDir::State::lists={state / 'lists'}", f"-oDir::Cache={state / 'cache'}",
            "-oDebug::NoLocking=1",  # the state is ours alone, and the system's lock may be held or not ours
            "-oAPT::Sandbox::User=root",  # the unprivileged download user cannot write below a home folder
            "-oAcquire::Retries=3",
        ]  # fmt: skip
        say(f"apt-get update ({mirror})")
        _run(["apt-get", *self._options, "update", "-q"])

    def missing(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """'name=version' of everything that an installation would bring; empty when all is installed, new enough."""
        suite = ["-t", self._suite] if self._suite else []
        text = _run(["apt-get", *self._options, *suite, "install", "-s", "-y", "--no-install-recommends", *wanted])
        found = re.findall(r"^Inst (\S+) (?:\[[^\]]*\] )?\((\S+) ", text, re.MULTILINE)
        return tuple(sorted(f"{name}={version}" for name, version in found))

    def download(self, packages: Sequence[str], folder: Path) -> None:
        """Leave the packages' .deb files in `folder`; apt checks their signatures and sums."""
        say(f"downloading {len(packages)} packages")
        _run(["apt-get", *self._options, "download", "-q", *packages], folder)


def _unpack(prefix: Path, apt: _Apt, packages: Sequence[str]) -> Path:
    """Folder with the packages' files, named after their versions; complete or not there at all."""
    key = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    mesa = next((name.partition("=")[2] for name in packages if name.startswith("mesa-vulkan-drivers=")), "system")
    driver = prefix / f"mesa-{re.sub(r'[^0-9A-Za-z.+-]', '_', mesa)}-{key}"
    if driver.exists():
        return driver
    with tempfile.TemporaryDirectory(dir=prefix, prefix="unpacking-") as scratch:
        debs, tree = Path(scratch, "debs"), Path(scratch, "tree")
        debs.mkdir()
        tree.mkdir()
        apt.download(packages, debs)
        for deb in sorted(debs.glob("*.deb")):
            _run(["dpkg", "-x", str(deb), str(tree)])
        shutil.rmtree(tree / "usr/share/doc", ignore_errors=True)
        tree.replace(driver)
    return driver


def _edited(manifest: Path, driver: Path, prefix: Path) -> Path:
    """A copy of the driver's manifest that points at where its library really lies."""
    content = json.loads(manifest.read_text(encoding="utf-8"))
    name = Path(content["ICD"]["library_path"]).name
    places = [path for root in (driver, Path("/")) for path in sorted(root.glob(f"usr/lib/*/{name}"))]
    if not places:
        raise SetupError(f"{manifest} names {name}, which is not there; remove {driver} and try again.")
    content["ICD"]["library_path"] = str(places[0])
    edited = prefix / "lvp_icd.json"
    _write(edited, json.dumps(content, indent=1))
    return edited


def write_env(prefix: Path, values: Mapping[str, str]) -> Path:
    """One NAME=VALUE a line, for a shell (`set -a; . FILE`), systemd or make."""
    path = prefix / ENV_FILE
    _write(path, "".join(f"{name}={value}\n" for name, value in values.items()))
    return path


def read_env(prefix: Path) -> dict[str, str]:
    """What an earlier run wrote; empty when there is none or when something that it names is gone."""
    try:
        lines = (prefix / ENV_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    manifest = Path(values.get("VK_ICD_FILENAMES", "-"))
    if not manifest.is_file():
        return {}
    named = [json.loads(manifest.read_text(encoding="utf-8"))["ICD"]["library_path"]]
    named += [folder for folder in values.get("LD_LIBRARY_PATH", "").split(":") if folder]
    return values if all(Path(path).exists() for path in named) else {}


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, cwd=folder, check=True, text=True, capture_output=True)
    return done.stdout


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{' '.join(map(str, error.cmd))} failed with {error.returncode}: {(error.stderr or '').strip()[-2000:]}"
    return str(error)


def say(text: str) -> None:
    """Progress goes to stderr; stdout holds only the environment file's path."""
    sys.stderr.write(f"software devices: {text}\n")
    sys.stderr.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    parser.add_argument("--prefix", type=Path, default=cache / "edgert/software-devices", help="folder to unpack into")
    parser.add_argument("--python", default=sys.executable, help="interpreter whose environment gets the plugins")
    parser.add_argument("--mirror", default=own_mirror(), help="Debian mirror; this machine's own unless given")
    parser.add_argument("--refresh", action="store_true", help="ask the mirror again, even when all is there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
