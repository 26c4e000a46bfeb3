"""Builds the Debian packages.

    python cross/deb/build.py --out dist/deb [--architecture arm64]...

A package holds edgert and what Debian 12 does not have of what it needs, as a plain folder of Python modules in
/usr/lib/edgert, where Debian's own Python finds them after everything else; the units; man pages and completions made
from the command line's help. Equal sources make equal bytes.
Needs dpkg-deb, and an index or folder of wheels that pip is set up for; nothing is run for the other architecture.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = "3.11"
WHEELS = HERE / "wheels.txt"
LEFT_OUT = (
    "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
    "ai_edge_litert/tools",
    "ai_edge_litert/aot",
    "ai_edge_litert/vendors",
)
"""Of the wheels, what the CPU needs not: on arm64 more than 17 of LiteRT's 41 MB."""
COMMAND = (
    "annotated_doc", "markdown_it_py", "mdurl", "pygments", "rich", "shellingham", "typer",
)  # fmt: skip
"""Wheels that the command line alone needs: in a folder of their own, so that other programs do not find them."""
COPYRIGHT = HERE / "copyright"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What Debian and Python call one kind of processor."""

    debian: str
    machine: str
    """`platform.machine()`, and the end of the wheels' platform tags."""
    glibc: tuple[int, ...]
    """Minor versions of glibc 2 that the wheels may ask for; Debian 12 has 2.36."""


ARCHITECTURES: Mapping[str, Architecture] = {
    each.debian: each
    for each in (
        Architecture("amd64", "x86_64", (17, 27, 28, 31, 34, 35, 36)),
        Architecture("arm64", "aarch64", (17, 27, 28, 31, 34, 35, 36)),
        Architecture("armhf", "armv7l", (17, 27, 28, 31, 34, 35, 36)),
    )
}

DEPENDS = (
    "python3 (>= 3.11)", "python3 (<< 3.12)",  # the wheels' own
    "python3-numpy (>= 1:1.24)", "python3-numpy (<< 1:2)",  # tflite-runtime was built for numpy 1
    "python3-zmq (>= 24)", "libc6 (>= 2.35)", "libgcc-s1", "libstdc++6 (>= 12)",
    "systemd | systemd-standalone-sysusers | systemd-sysusers",
)  # fmt: skip
CONTROL = """\
Package: edgert
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size_kib}
Depends: {depends}
Section: science
Priority: optional
Description: run each model the fastest correct way that this machine has
 edgert takes a trained model (TFLite here; ONNX with a backend that runs it),
 finds every way that this machine has of running it, checks each one's
 numbers, times those that are right, and runs the fastest. When a device
 fails, another one answers.
 .
 This package has the command line, a daemon that serves the models of a
 folder (edgert.service), executors for single devices
 (edgert-executor@.service), and LiteRT or tflite-runtime as the backend.
"""


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.architecture or ARCHITECTURES:
        made = build(ARCHITECTURES[name], arguments)
        sys.stdout.write(f"{made}: {made.stat().st_size / 1e6:.1f} MB, sha256 {_sha256(made.read_bytes())[:16]}\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keeps the wheels; else a temporary folder")
    parser.add_argument("--architecture", action="append", choices=list(ARCHITECTURES), help="else all")
    parser.add_argument("--version", help="else that of edgert")
    parser.add_argument("--maintainer", default=os.environ.get("DEBEMAIL", "edgert <edgert@packages.invalid>"))
    return parser.parse_args()


def build(architecture: Architecture, arguments: argparse.Namespace) -> Path:
    """One package; its path."""
    with tempfile.TemporaryDirectory(prefix="edgert-deb-") as scratch:
        work = Path(scratch)
        tree = work / "tree"
        library = tree / "usr/lib/edgert"
        library.mkdir(parents=True)
        wheels = fetch(architecture, arguments.cache or work / "wheels")
        for wheel in (own_wheel(work), *wheels):
            unpack(wheel, library / "command" if wheel.name.split("-")[0] in COMMAND else library)
        for name in LEFT_OUT:
            _remove(library / name)
        version = arguments.version or _version(library)
        lay_out(tree, work)
        changelog(tree / "usr/share/doc/edgert", version, arguments.maintainer)
        lintian_overrides(tree / "usr/share/lintian/overrides", architecture)
        _write(tree / "DEBIAN/control", CONTROL.format(depends=", ".join(DEPENDS),
            version=version, architecture=architecture.debian, maintainer=arguments.maintainer,
            size_kib=sum(file.lstat().st_size for file in tree.rglob("*") if file.is_file()) // 1024 + 1,
        ))  # fmt: skip
        scripts(tree / "DEBIAN")
        checksums(tree)
        settle(tree)
        made = arguments.out / f"edgert_{version}_{architecture.debian}.deb"
        _run("dpkg-deb", "--root-owner-group", "-Zxz", "-z9", "--build", str(tree), str(made))
        return made


# ---- wheels


def fetch(architecture: Architecture, cache: Path) -> list[Path]:
    """The locked wheels of an architecture, each with the checksum that the lock has."""
    folder = cache / f"{architecture.debian}-{_sha256(WHEELS.read_bytes())[:12]}"
    stamp = folder / ".complete"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        lock = folder / "lock.txt"
        lock.write_text("".join(locked(architecture)))
        tags = [f"manylinux2014_{architecture.machine}"]
        tags += [f"manylinux_2_{minor}_{architecture.machine}" for minor in architecture.glibc]
        choice = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON]
        choice += [word for abi in ("cp311", "abi3", "none") for word in ("--abi", abi)]
        choice += [word for tag in tags for word in ("--platform", tag)]
        quiet = ["-q", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--require-hashes"]
        _run(*pip, *choice, "-d", str(folder), "-r", str(lock))
        stamp.touch()
    return sorted(folder.glob("*.whl"))


def locked(architecture: Architecture) -> Iterator[str]:
    """The lines of the lock that count on an architecture, without their markers, which pip would judge by this one."""
    environment = {"platform_machine": architecture.machine, "python_version": PYTHON}
    wanted = True
    for line in WHEELS.read_text().splitlines(keepends=True):
        text = line
        if line[:1].isalnum():
            pin, _, marker = line.rstrip("\\\n").partition(" ; ")
            wanted = not marker or Marker(marker.strip()).evaluate(environment)
            text = f"{pin.strip()} \\\n"
        if wanted:
            yield text


def own_wheel(work: Path) -> Path:
    """The wheel of edgert itself, built from what git knows of this checkout."""
    source = work / "source"
    names = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, names):
        file = ROOT / name
        if file.is_file() and not file.is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, source / name)
    _run(
        sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation",
        "--no-index", "--wheel-dir", str(work / "own"), str(source),
    )  # fmt: skip
    return next((work / "own").glob("edgert-*.whl"))


def unpack(wheel: Path, library: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(library)


def _version(library: Path) -> str:
    return next(library.glob("edgert-*.dist-info")).name.removeprefix("edgert-").removesuffix(".dist-info")


# ---- the tree


def lay_out(tree: Path, work: Path) -> None:
    """Everything but Python modules."""
    _write(tree / "usr/bin/edgert", (HERE / "launcher.py").read_text(), 0o755)
    for unit in sorted((HERE.parent / "systemd").glob("*.service")):
        _write(tree / "lib/systemd/system" / unit.name, unit.read_text())
    _write(tree / "usr/lib/python3/dist-packages/edgert.pth", "/usr/lib/edgert\n")
    _write(tree / "usr/lib/edgert/backoff", (HERE.parent / "systemd/backoff").read_text(), 0o755)
    _write(tree / "usr/lib/sysusers.d/edgert.conf", (HERE / "edgert.sysusers").read_text())
    _write(tree / "etc/default/edgert", (HERE / "edgert.default").read_text())
    _write(tree / "DEBIAN/conffiles", "/etc/default/edgert\n")
    _write(tree / "usr/share/doc/edgert/copyright", COPYRIGHT.read_text())
    (tree / "var/lib/edgert/models").mkdir(parents=True)
    made = work / "manual"
    _run(sys.executable, str(HERE / "manual.py"), str(made))
    for page in sorted((made / "man").iterdir()):
        _write_gz(tree / "usr/share/man/man1" / f"{page.name}.gz", page.read_text())
    for shell, place in (
        ("bash", "bash-completion/completions/edgert"), ("zsh", "zsh/vendor-completions/_edgert"),
        ("fish", "fish/vendor_completions.d/edgert.fish"),
    ):  # fmt: skip
        _write(tree / "usr/share" / place, (made / shell).read_text())


def changelog(folder: Path, version: str, maintainer: str) -> None:
    """Debian's form of it; what changed is in CHANGELOG.md, which comes with it."""
    date = subprocess.run(["date", "-R", "-u", "-d", f"@{_epoch()}"], check=True, capture_output=True, text=True).stdout
    text = (
        f"edgert ({version}) stable; urgency=medium\n\n  * See CHANGELOG.md.gz.\n\n -- {maintainer}  {date.strip()}\n"
    )
    _write_gz(folder / "changelog.gz", text)
    _write_gz(folder / "CHANGELOG.md.gz", (ROOT / "CHANGELOG.md").read_text())


def lintian_overrides(folder: Path, architecture: Architecture) -> None:
    """Each with its reason, as the file in the source has it."""
    text = (HERE / "edgert.lintian-overrides").read_text()
    _write(folder / "edgert", text.replace("@ARCHITECTURE@", architecture.debian))


def scripts(folder: Path) -> None:
    for name in ("postinst", "prerm", "postrm"):
        _write(folder / name, (HERE / f"edgert.{name}").read_text(), 0o755)


def checksums(tree: Path) -> None:
    files = sorted(file for file in tree.rglob("*") if file.is_file() and "DEBIAN" not in file.parts)
    lines = [f"{hashlib.md5(file.read_bytes()).hexdigest()}  {file.relative_to(tree)}\n" for file in files]
    _write(tree / "DEBIAN/md5sums", "".join(lines))


def settle(tree: Path) -> None:
    """Modes and times that do not depend on who builds, and when; no leavings of wheels."""
    epoch = _epoch()
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch)
    for path in sorted(tree.rglob("*"), reverse=True):
        mode = stat.S_IMODE(path.stat().st_mode)
        script = mode & 0o100 and (path.name == "backoff" or "bin" in path.parts or "DEBIAN" in path.parts)
        path.chmod(0o755 if path.is_dir() or script else 0o644)
        os.utime(path, (epoch, epoch))
    tree.chmod(0o755)
    os.utime(tree, (epoch, epoch))


def _epoch() -> int:
    """Seconds of the last commit, unless SOURCE_DATE_EPOCH says otherwise (reproducible-builds.org)."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    command = ["git", "-c", f"safe.directory={ROOT}", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


# ---- files


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _write_gz(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    main()
