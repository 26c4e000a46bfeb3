"""Sysroots, sets of packages and launchers of the emulated boards, made once and kept in the cache.

    sysroot(architecture)  Debian's python3 and the libraries that wheels expect, without running a line of ARM code
    packages(name)         the wheels of requirements/boards/NAME.txt, by hash, installed
    index(architecture)    the same wheels as files, those of all sets, with edgert's own and pip: to install from
    product()              edgert itself, from a wheel built here
    launcher(board)        the board's python3, see launch.c

Each lies in `$EDGERT_CI_CACHE/boards` (else ~/.cache/edgert-ci/boards) under a hash of what it is made from, and is
put in place by a rename: what is there is whole.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from cross.board import Board

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
LOCKS = CHECKOUT / "requirements" / "boards"
RELEASE = "bookworm"
"""Raspberry Pi OS's, with Python 3.11: the last that tflite-runtime has wheels for."""
DEBIAN = {
    "arm64": ("python3", "libstdc++6", "libgcc-s1", "libgomp1", "libatomic1", "libfaketime"),
    # No index has wheels of numpy and pyzmq for 32-bit ARM at Python 3.11.
    "armhf": (
        "python3", "libstdc++6", "libgcc-s1", "libgomp1", "libatomic1", "libfaketime", "python3-numpy", "python3-zmq",
    ),
}  # fmt: skip
BARE = "bare"
"""A set without any package."""
QEMU = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}
_MACHINE = {"arm64": "aarch64", "armhf": "armv7l"}
_GLIBC_MINORS = range(17, 37)
"""Debian 12 has glibc 2.36; pip wants every tag that a wheel may carry."""
_MOUNTS = ("proc", "sys", "dev", "tmp", "opt/edgert/lib/python3.11/site-packages", "srv/board", "srv/product",
           "srv/checks", "srv/models", "srv/known", "srv/out", "srv/cache", "srv/plugin")  # fmt: skip
_held: dict[Path, IO[str]] = {}
"""Folders that this process uses -> the file by whose lock others know."""
_PATH_FILE = "/srv/product\n"
_VENV = "home = /usr/bin\ninclude-system-site-packages = {system}\nversion = 3.11\n"


class CannotEmulate(Exception):
    """Boards cannot be run on this machine; says what is missing."""


def cache() -> Path:
    """Where everything is kept."""
    base = os.environ.get("EDGERT_CI_CACHE")
    if base:
        return Path(base) / "boards"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgert-ci" / "boards"


def require(architectures: Iterable[str]) -> None:
    """Raise `CannotEmulate` when a tool is missing here, or mount namespaces are not allowed."""
    tools = {"mmdebstrap": "mmdebstrap", "gcc": "gcc libc6-dev", "unshare": "util-linux"}
    tools |= {QEMU[architecture]: "qemu-user" for architecture in architectures}
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if missing:
        raise CannotEmulate(f"missing here: {', '.join(missing)}. As root: apt-get install {' '.join(missing)}")
    tried = subprocess.run([*unshare(), "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        raise CannotEmulate(f"this kernel gives no mount namespace ({tried.stderr.strip()}). Run it as root.")


def unshare() -> tuple[str, ...]:
    """The command that gives what follows a mount namespace of its own."""
    return ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--mount")


def sysroot(architecture: str) -> Path:
    """Debian's python3 of that architecture, with this machine's QEMU in it, ready to be entered."""
    qemu = Path(shutil.which(QEMU[architecture]) or QEMU[architecture]).resolve()
    recipe = [architecture, RELEASE, *DEBIAN[architecture], *_MOUNTS, _VENV, _digest(qemu), "5"]

    def make(folder: Path) -> None:
        _run(
            ["mmdebstrap", f"--architectures={architecture}", "--variant=extract", "--aptopt=Acquire::Retries \"5\"",
             f"--include={','.join(DEBIAN[architecture])}", RELEASE, str(folder), *_mirror()],
            "sysroot",
        )  # fmt: skip
        for name in (*_MOUNTS, "opt/edgert/bin"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        _link_alternatives(folder)
        _install_qemu(qemu, folder)
        # Debian's packages of numpy and pyzmq are outside of what a virtual environment sees by itself.
        (folder / "opt/edgert/pyvenv.cfg").write_text(
            _VENV.format(system="true" if architecture == "armhf" else "false"), encoding="ascii"
        )
        (folder / "opt/edgert/bin/python3").touch()
        _compile(folder / "usr/lib/python3.11", folder / "usr/lib/python3")

    return _made(f"root-{architecture}", recipe, make)


def packages(name: str) -> Path:
    """A folder of site-packages with what requirements/boards/NAME.txt pins."""
    if name == BARE:
        return _made(f"packages-{name}", [], lambda folder: None)
    lock = LOCKS / f"{name}.txt"
    tags = _tags("armhf" if name == "armhf" else "arm64")

    def make(folder: Path) -> None:
        _run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:",
             "--no-compile", "--disable-pip-version-check", *tags, "--target", str(folder), "-r", str(lock)],
            name,
        )  # fmt: skip
        # edgert itself is mounted beside these, and found like an editable install.
        (folder / "edgert.pth").write_text(_PATH_FILE, encoding="ascii")
        _compile(folder)

    return _made(f"packages-{name}", [lock.read_text(encoding="utf-8"), *tags, _PATH_FILE], make)


def index(architecture: str) -> Path:
    """A folder of wheels to install from on a board, more than edgert asks for, and pip itself to do it with."""
    locks = [lock for lock in sorted(LOCKS.glob("*.txt")) if (lock.stem == "armhf") == (architecture == "armhf")]
    tags = _tags(architecture)
    own = wheel()

    def make(folder: Path) -> None:
        import pip

        for lock in locks:
            _run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:",
                 "--disable-pip-version-check", *tags, "-d", str(folder), "-r", str(lock)],
                lock.stem,
            )  # fmt: skip
        shutil.copy(own, folder)
        shutil.copytree(Path(pip.__file__).parent, folder / "pip")

    return _made(f"index-{architecture}", [*(lock.read_text(encoding="utf-8") for lock in locks), str(own)], make)


def _tags(architecture: str) -> list[str]:
    """What tells pip to choose for a board's Python and not for this one."""
    machine = _MACHINE[architecture]
    platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS)]
    return ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none",
            *(f"--platform={platform}" for platform in platforms)]  # fmt: skip


@functools.cache
def wheel() -> Path:
    """A wheel of this checkout; looked at once, whatever is edited while boards run."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate",
         "edgert", "devices", "partitioner", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in"],
        cwd=CHECKOUT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    files = sorted(name for name in tracked if name and (CHECKOUT / name).is_file())
    recipe = [f"{name} {_digest(CHECKOUT / name)}" for name in files]

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            for name in files:
                target = Path(scratch, "source", name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CHECKOUT / name, target, follow_symlinks=False)
            for name in ("devices", "partitioner"):
                link = Path(scratch, "source", "edgert", name)
                if not link.is_symlink():
                    link.symlink_to(f"../{name}")
            _run(
                [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index",
                 "-w", str(folder), f"{scratch}/source"],
                "wheel",
            )  # fmt: skip

    (found,) = _made("wheel", recipe, make, keep=4).glob("edgert-*.whl")
    return found


def product() -> Path:
    """What `wheel` installs."""
    own = wheel()

    def make(folder: Path) -> None:
        _run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile",
             "--disable-pip-version-check", "--target", str(folder), str(own)],
            "wheel",
        )  # fmt: skip
        _compile(folder)

    return _made("product", [own.parent.name], make, keep=4)


def launcher(board: Board) -> Path:
    """The board's python3."""
    source = HERE / "launch.c"

    def make(folder: Path) -> None:
        define = f'-DEMULATED_CPU="{board.emulated_cpu}"'
        _run(["gcc", "-O2", "-Wall", "-Werror", "-static", define, "-o", str(folder / "python3"), str(source)], "gcc")

    return _made(f"launcher-{board.emulated_cpu}", [_digest(source)], make) / "python3"


def plugin() -> Path:
    """The instruction counter, as a plugin of this machine's QEMU."""
    source = HERE / "icount.c"

    def make(folder: Path) -> None:
        _run(
            ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(folder / "icount.so"), str(source)], "gcc"
        )

    return _made("plugin", [_digest(source)], make) / "icount.so"


def _made(name: str, recipe: Sequence[str], make: Callable[[Path], None], keep: int = 1) -> Path:
    """The folder NAME-HASH in the cache: found, or made aside and renamed. Older ones of the name go, but `keep`."""
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:12]
    home = cache()
    home.mkdir(parents=True, exist_ok=True)
    target = home / f"{name}-{digest}"
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            sys.stderr.write(f"== boards: making {target.name} (kept in {home})\n")
            draft = Path(tempfile.mkdtemp(prefix=f"{name}-draft-", dir=home))
            try:
                make(draft)
                draft.chmod(0o755)
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        os.utime(target)  # last use
        _hold(target)
        pattern = re.compile(re.escape(name) + r"-[0-9a-f]{12}")
        old = sorted((path for path in home.iterdir() if pattern.fullmatch(path.name)), key=lambda p: p.stat().st_mtime)
        for path in old[: -1 - keep]:
            _remove(path)
    return target


def _hold(folder: Path) -> None:
    """Keep others from removing a folder for as long as this process lives: its boards have it mounted."""
    if folder not in _held:
        _held[folder] = folder.with_name(f"{folder.name}.used").open("w")
        fcntl.flock(_held[folder], fcntl.LOCK_SH)


def _remove(folder: Path) -> None:
    """Remove what no process uses."""
    used = folder.with_name(f"{folder.name}.used")
    with used.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder, ignore_errors=True)
        used.unlink(missing_ok=True)


def _mirror() -> list[str]:
    """The archive that this machine uses; without security updates, whose index moves under one's hands."""
    texts = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in texts:
        if path.is_file():
            found = re.search(r"https?://\S+/debian/?(?=\s)", path.read_text(encoding="utf-8", errors="replace"))
            if found:
                return [f"deb {found[0]} {RELEASE} main"]
    return []


def _link_alternatives(folder: Path) -> None:
    """What Debian's update-alternatives would have linked when the packages were configured."""
    for library in folder.glob("usr/lib/*/*/lib*.so.3"):
        if library.parent.name in ("blas", "lapack"):
            (library.parents[1] / library.name).symlink_to(f"{library.parent.name}/{library.name}")


def _install_qemu(qemu: Path, folder: Path) -> None:
    """QEMU with its own libraries, which lie beside the guest's: another architecture, other folders."""
    shutil.copy(qemu, folder / "usr/bin/qemu")
    listed = subprocess.run(["ldd", str(qemu)], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"/\S+\.so\S*", listed):
        target = folder / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target, follow_symlinks=True)


def _compile(*folders: Path) -> None:
    """Byte code ahead of time, by a Python of this machine of the same version: under emulation it takes minutes."""
    own = sys.executable if sysconfig.get_python_version() == "3.11" else shutil.which("python3.11")
    if own is None:
        sys.stderr.write("== boards: there is no python3.11 to compile with; each start on a board takes longer\n")
        return
    paths = [str(path) for path in folders if path.is_dir()]
    command = [own, "-m", "compileall", "-q", "-q", "--invalidation-mode", "unchecked-hash", *paths]
    subprocess.run(command, check=False, capture_output=True)  # files that are no Python 3.11 stay as they are


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise RuntimeError(f"boards: making {what} failed: {' '.join(command[:3])} ...\n{tail}")
