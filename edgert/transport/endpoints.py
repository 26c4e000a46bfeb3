"""Where processes listen: `inproc://name`, `ipc:///path`, `tcp://address:port`, and who else may be there.

An ipc socket is a file. libzmq removes a file that is there already and takes its place in silence, so each holder
keeps a lock beside it, and the folder must belong to the user alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from edgert.errors import EndpointError
from edgert.transport import forked

Scheme = Literal["inproc", "ipc", "tcp"]
_LONGEST_PATH = 107
"""sun_path of unix(7), less its NUL."""
LOCK, SHORT_WAY = ".lock", ".hot"
"""Beside an ipc socket: held by who listens there, and the datagram socket of `direct`."""
_NAMES_BYTES = 60
"""Enough for the names of a process's private folder, of a socket in it, and of that one's lock."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed endpoint."""

    scheme: Scheme
    address: str
    """What follows '://'."""

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """The endpoint that a text names.

        Raises:
            EndpointError: it names none, or one that is not private: an abstract socket (`ipc://@name`).
        """
        scheme, colon, address = text.partition("://")
        if not colon or scheme not in ("inproc", "ipc", "tcp") or not address:
            raise _wrong(text, "is no endpoint", "Write inproc://NAME, ipc:///PATH or tcp://ADDRESS:PORT.")
        if scheme == "ipc" and address != "*":
            if not address.startswith("/"):
                raise _wrong(text, "has no absolute path", "Write ipc:///run/user/1000/edgert.sock, for example.")
            if len(os.fsencode(address)) > _LONGEST_PATH:
                raise _wrong(
                    text, f"is longer than the {_LONGEST_PATH} bytes of a socket's path", "Take a shorter one."
                )
        if scheme == "tcp":
            host, _, port = address.rpartition(":")
            if not host or not (port == "*" or (port.isdecimal() and int(port) < 1 << 16)):
                raise _wrong(text, "has no address and port", "Write tcp://192.168.1.7:5599, for example.")
            if host == "localhost":
                address = f"127.0.0.1:{port}"
        return cls(cast("Scheme", scheme), address)

    @property
    def path(self) -> Path:
        """Of an ipc socket."""
        return Path(self.address)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


@contextlib.contextmanager
def held_path(endpoint: Endpoint, *, group: bool = False) -> Iterator[None]:
    """Hold the path of an ipc endpoint while the context lasts; afterwards the socket and the lock are removed.

    Args:
        endpoint: whose folder is there.
        group: members of the folder's group may come too.

    Raises:
        EndpointError: another process listens there, the folder is missing or not private, or cannot be written.
    """
    import fcntl  # Linux and macOS have it, as they have ipc sockets

    _check_private(endpoint, group)
    lock = endpoint.path.with_name(f"{endpoint.path.name}{LOCK}")
    while True:
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _wrong(
                str(endpoint), f"cannot be made: {error.strerror}", "Mend the folder's permissions."
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise _wrong(str(endpoint), "is in use by another process", "Stop that one, or take another.") from error
        # The holder before removes its lock: a lock on a removed file holds nobody off.
        if _same_file(fd, lock):
            break
        os.close(fd)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            endpoint.path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        os.close(fd)


@functools.cache
def private_folder() -> Path:
    """A folder of this process for its sockets, 0700, removed when it ends; what dead processes left is removed first.

    Raises:
        EndpointError: no folder can be made.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(os.fsencode(base)) > _LONGEST_PATH - _NAMES_BYTES:
        base = Path("/tmp")
    try:
        for left in base.glob("edgert-*.sockets"):
            with contextlib.suppress(FileNotFoundError):  # another process that starts now removes them too
                if left.stat().st_uid == os.getuid() and not _owner_lives(left):
                    shutil.rmtree(left, ignore_errors=True)
        folder = base / f"edgert-{os.getpid()}-{secrets.token_hex(4)}.sockets"
        folder.mkdir(mode=0o700)
    except OSError as error:
        name = "XDG_RUNTIME_DIR" if os.environ.get("XDG_RUNTIME_DIR") else "TMPDIR"
        raise _wrong(f"ipc://{base}/*", f"cannot be made: {error}", f"Set {name} to a folder that is yours.") from error
    import atexit

    atexit.register(forked.mine(lambda: shutil.rmtree(folder, ignore_errors=True)))
    return folder


forked.forget(private_folder.cache_clear)


def fresh_ipc() -> str:
    """An ipc endpoint in the folder of this process, for itself or a child of it: no other process ever has that path.

    Raises:
        EndpointError: no folder can be made.
    """
    return f"ipc://{private_folder() / secrets.token_hex(8)}"


def sweep(endpoint: str) -> None:
    """Remove what a killed process left of the ipc endpoint where it listened; harmless for any other."""
    path = endpoint.removeprefix("ipc://")
    if path != endpoint:
        for left in (path, f"{path}{LOCK}", f"{path}{SHORT_WAY}"):
            with contextlib.suppress(OSError):
                os.unlink(left)


def _owner_lives(folder: Path) -> bool:
    pid = folder.name.split("-")[1]
    return not pid.isdecimal() or os.path.exists(f"/proc/{pid}") or not os.path.exists("/proc/self")


def _check_private(endpoint: Endpoint, group: bool) -> None:
    folder = endpoint.path.parent
    try:
        status = folder.stat()
    except OSError as error:
        raise _wrong(str(endpoint), f"has no folder: {error.strerror}", f"Make it: mkdir -m 700 {folder}") from error
    forbidden = (0o007 | (0o020 if group else 0o070)) & stat.S_IMODE(status.st_mode)
    if status.st_uid not in (os.getuid(), 0) or forbidden:
        # Never advise to shut a folder that others share, such as /tmp.
        shared = status.st_uid != os.getuid() or status.st_mode & stat.S_ISVTX
        raise _wrong(
            str(endpoint),
            f"would not be private: {folder} has mode {stat.S_IMODE(status.st_mode):04o} and user {status.st_uid}",
            "Take a folder of your own, made with mkdir -m 700."
            if shared
            else f"chmod 700 {folder}, or take a folder of your own.",
        )


def _same_file(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except OSError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _wrong(endpoint: str, what: str, remedy: str) -> EndpointError:
    return EndpointError(f"endpoint {endpoint} {what}.", remedy, endpoint=endpoint)
