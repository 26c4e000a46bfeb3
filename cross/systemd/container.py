"""A Debian 12 with systemd in a container: `python cross/systemd/container.py CACHE` makes it, `Container` boots it.

The files are made once (mmdebstrap) and never written to: each boot has a layer of its own in memory over them.
Needs root, systemd-nspawn, nsenter and mmdebstrap.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "bash-completion",
    "python3", "python3-numpy", "python3-zmq", "libstdc++6", "libgcc-s1",  # what edgert's own package depends on
)  # fmt: skip
_SOURCE = re.compile(r"^URIs: *(\S+)|^deb (?:\[[^]]*\] )?(\S+)", re.MULTILINE)
_BOOT_S = 60.0
_numbers = itertools.count()


def missing() -> str:
    """Why no container can be booted here; '' when one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    lacking = [tool for tool in ("systemd-nspawn", "nsenter", "mmdebstrap") if shutil.which(tool) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (apt-get install systemd-container util-linux mmdebstrap)"
    return ""


def make_root(cache: Path) -> Path:
    """The container's files, made if they are not there.

    Raises:
        RuntimeError: mmdebstrap failed; says how.
    """
    key = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    root = cache / f"systemd-{key}"
    stamp = cache / f"systemd-{key}.complete"
    if not stamp.exists():
        cache.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(root, ignore_errors=True)
        command = [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            SUITE,
            str(root),
        ]
        mirror = _mirror()
        done = subprocess.run([*command, *([mirror] if mirror else [])], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"mmdebstrap failed: {done.stderr[-3000:]}")
        stamp.touch()
    return root


def _mirror() -> str:
    """Debian's archive as this machine uses it; '' for mmdebstrap's default."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for place in places:
        for match in _SOURCE.finditer(place.read_text(encoding="utf-8")) if place.is_file() else ():
            found = (match[1] or match[2] or "").rstrip("/")
            if found.endswith("/debian"):
                return found
    return ""


def memory_group() -> str:
    """Why no container can be given a limited memory of its own here; '' when it can.

    That takes the memory controller of cgroup v1, which a container may be lent: while any group uses it there, as the
    box itself may, the unified hierarchy does not have it.
    """
    try:
        MemoryGroup(1 << 30).remove()
    except OSError as error:
        return f"needs the memory controller of cgroup v1, writable: {error}"
    return ""


class MemoryGroup:
    """A v1 control group for memory, below this process's own."""

    def __init__(self, limit_bytes: int) -> None:
        """Make it. Raises OSError: the controller is not there, or not ours."""
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next((line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory"), "/")
        self.folder = Path(f"/sys/fs/cgroup/memory{own}/edgert-{os.getpid()}-{next(_numbers)}")
        self.folder.mkdir()
        (self.folder / "memory.limit_in_bytes").write_text(str(limit_bytes))

    def enter(self) -> list[str]:
        """The words before a command that shall run in it."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.folder / "cgroup.procs")]

    def killed(self, group: str = "") -> int:
        """Processes that the kernel killed for want of memory, in it or in a group below."""
        text = (self.folder / group / "memory.oom_control").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")))

    def remove(self) -> None:
        """With the groups below, which are empty when their container is off."""
        for folder in sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        self.folder.rmdir()


class Container:
    """A booted container. A context manager; what was changed in it is gone afterwards."""

    def __init__(self, root: Path, *, share: Path, memory_bytes: int | None = None) -> None:
        """Boot; returns when systemd says that it is up.

        Args:
            root: from `make_root`.
            share: a folder that it sees as /share.
            memory_bytes: the container's memory; its systemd then limits units below that. Needs `memory_group`.

        Raises:
            RuntimeError: it does not come up; with what it said.
        """
        self.log = share / "boot.log"
        self.group = None if memory_bytes is None else MemoryGroup(memory_bytes)
        name = f"edgert-{os.getpid()}-{int(time.monotonic() * 1000) % 100000}"
        with open(self.log, "wb") as log:
            self._nspawn = subprocess.Popen(
                [
                    *(self.group.enter() if self.group else ()),
                    "systemd-nspawn", "-q", "--register=no", "--keep-unit", "--private-network", "--volatile=overlay",
                    "-b", "-D", str(root), "-M", name, f"--bind={share}:/share",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            self._leader = self._find_leader()
            self._wait_up()
            if self.group is not None:
                self._hand_over_memory()
        except BaseException:
            self.close()
            raise

    def run(self, *command: str, check: bool = True, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """A command inside, as root.

        Raises:
            AssertionError: it failed, unless `check` is off; with what it said.
        """
        done = subprocess.run(
            [*self._enter(), *command], capture_output=True, text=True, check=False, timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command inside that goes on; its output is piped."""
        return subprocess.Popen(
            [*self._enter(), *command], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.run("systemctl", "show", "-p", ",".join(properties), unit).stdout
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def close(self) -> None:
        """Power off."""
        if self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)  # an orderly end
            try:
                self._nspawn.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        if self.group is not None:
            self.group.remove()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(self) -> list[str]:
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
        return ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "--wd=/", "--", *clean]

    def _find_leader(self) -> int:
        """The container's systemd, which is a child of nspawn; so is, for a moment, what sets the container up."""
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")

        def look() -> str:
            pids = children.read_text().split()
            return next((pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"), "")

        return int(self._until(look))

    def _wait_up(self) -> None:
        def up() -> str:
            done = self.run("systemctl", "is-system-running", check=False)
            state = done.stdout.strip()
            return state if state in ("running", "degraded") else ""

        self._until(up)

    def _hand_over_memory(self) -> None:
        """Of cgroup v1, nspawn mounts the controllers read-only; this one is the container's own, and systemd uses what
        it finds writable when it starts.
        """
        self.run("mount", "-o", "remount,bind,rw", "/sys/fs/cgroup/memory")
        self.run("systemctl", "daemon-reexec")
        self._wait_up()

    def _until(self, look: Callable[[], str]) -> str:
        limit_s = time.monotonic() + _BOOT_S
        while time.monotonic() < limit_s and self._nspawn.poll() is None:
            try:
                if found := look():
                    return found
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"the container does not come up: {self.log.read_text(errors='replace')[-2000:]}")


if __name__ == "__main__":
    sys.stdout.write(f"{make_root(Path(sys.argv[1]))}\n")
