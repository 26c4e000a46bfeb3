"""A Debian 12 with systemd in a container: `python cross/systemd/container.py CACHE` makes it, `Container` boots it.

The files are made once (mmdebstrap) and never written to: each boot has a layer of its own in memory over them.
Needs root, systemd-nspawn, nsenter and mmdebstrap.
"""

from __future__ import annotations

import hashlib
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


class Container:
    """A booted container. A context manager; what was changed in it is gone afterwards."""

    def __init__(self, root: Path, *, share: Path) -> None:
        """Boot; returns when systemd says that it is up.

        Args:
            root: from `make_root`.
            share: a folder that it sees as /share.

        Raises:
            RuntimeError: it does not come up; with what it said.
        """
        self.log = share / "boot.log"
        name = f"edgert-{os.getpid()}-{int(time.monotonic() * 1000) % 100000}"
        with open(self.log, "wb") as log:
            self._nspawn = subprocess.Popen(
                [
                    "systemd-nspawn", "-q", "--register=no", "--keep-unit", "--private-network", "--volatile=overlay",
                    "-b", "-D", str(root), "-M", name, f"--bind={share}:/share",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            self._leader = self._find_leader()
            self._wait_up()
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
