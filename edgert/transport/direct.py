"""The short way for small messages on one system: past ZeroMQ's I/O threads, straight to the thread that waits.

Over ipc a ZeroMQ message passes through two I/O threads, so three threads are woken one after another, each with its
own code to fetch back into the caches that the producer's run has just swept. A descriptor is 200 bytes: a datagram
to a Unix socket beside the inbox's own wakes the reader and nobody else. Within a process a queue does (`Queue`).

It carries what needs no answer over the connection and makes sense in any order (`DIRECT`): such a message may
overtake others of the same sender. Delivery is as over ZeroMQ: once or not at all, and a connected datagram socket
never reaches a successor at the same path. What does not fit, finds a full queue (the kernel keeps
net.unix.max_dgram_qlen datagrams for a reader that is busy, to which latency means nothing) or no short way at the
other end goes over ZeroMQ.

A datagram is

    frames u16 | length of each u16 | the frames

little-endian; what the frames say is told in `frames`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgert.errors import Closed, WireError
from edgert.transport.endpoints import SHORT_WAY
from edgert.transport.messages import Carried, Descriptor, Done, Free, Message, Soon, Work

_log = logging.getLogger(__name__)
DIRECT = frozenset({Work, Done, Free, Soon})
"""Kinds of messages that may take the short way."""
MOST_BYTES = 8192
"""Of a datagram; a `Work` with one value has about 200."""
FIRST_AT = 4
"""Where the frame begins in a datagram with one."""
_TRY_AGAIN_S = 1.0
"""Between attempts to find the other end's short way."""
WAKE, LOOK = b"w", b"l"


class Bell:
    """A pipe that wakes a poll. May be rung from any thread or signal handler, also after its end.

    Whoever rings late must not write into what another part of the process has opened under the same number since.
    """

    def __init__(self) -> None:
        # Reentrant: a signal handler may ring while its own thread does.
        self._lock = threading.RLock()
        self._open = True
        self.fd, self._write = os.pipe()
        """To poll."""
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write, False)

    def ring(self, how: bytes) -> None:
        """Write a byte; harmless when it is full of them, or closed."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._open:
                os.write(self._write, how)

    def heard(self) -> bytes:
        """What was rung since the last time.

        Raises:
            Closed: it is, as by the interpreter at its end.
        """
        with self._lock:
            if not self._open:
                raise Closed("the socket was closed.")
            try:
                return os.read(self.fd, 4096)
            except BlockingIOError:
                return b""

    def close(self) -> None:
        """End it. Harmless twice."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            os.close(self.fd)
            os.close(self._write)


class Queue:
    """The short way into an inbox of this process: messages as they are, since nobody changes one, but for arrays."""

    def __init__(self, bell: Bell, most: int) -> None:
        """Args:
        bell: wakes the inbox.
        most: messages that may wait.
        """
        self._bell, self._most = bell, most
        self._messages: deque[Message] = deque()
        self._closed = False
        self.awaited = False
        """Whether the inbox waits, and must be woken."""

    def send(self, message: Message) -> bool:
        """From any thread. False: it must go another way."""
        if self._closed or len(self._messages) >= self._most:
            return False
        if isinstance(message, Work | Done):
            values = _own(message.values)
            if values is None:
                return False
            message = replace(message, values=values)
        self._messages.append(message)
        if self.awaited:
            self._bell.ring(LOOK)
        return True

    def awaits(self) -> bool:
        """The inbox is about to wait; False when it need not. Said before the last look, so nothing is overlooked."""
        self.awaited = True
        if not self._messages:
            return True
        self.awaited = False
        return False

    def next(self) -> Message | None:
        """The next one, if there is one."""
        return self._messages.popleft() if self._messages else None

    def close(self) -> None:
        """Take no more. Harmless twice."""
        self._closed = True


class Receiver:
    """The short way into an inbox over ipc, from other processes of this user."""

    def __init__(self, path: str, mask: int) -> None:
        """Listen beside an inbox.

        Args:
            path: of the inbox's socket, which the caller holds, so that what lies here is left over from the dead.
            mask: umask of the socket: who may write to it.

        Raises:
            OSError: nothing can listen there, as when the path is too long.
        """
        self._path = Path(f"{path}{SHORT_WAY}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        before = os.umask(mask)
        try:
            self._path.unlink(missing_ok=True)
            self._socket.bind(str(self._path))
        except OSError:
            self._socket.close()
            raise
        finally:
            os.umask(before)
        self.fd = self._socket.fileno()
        """To poll."""

    def next(self) -> bytes | None:
        """The next datagram, if there is one."""
        try:
            return self._socket.recv(MOST_BYTES + 1)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """End it. Harmless twice."""
        self._socket.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


class Sender:
    """The short way to another process's inbox. Thread-safe."""

    def __init__(self, path: str) -> None:
        """Args:
        path: of the inbox's socket.
        """
        self._path = f"{path}{SHORT_WAY}"
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._next_try_s = 0.0
        self._closed = False

    def send(self, datagram: bytes | bytearray | None) -> bool:
        """What `datagram_of` gave, without waiting. False: it must go another way."""
        if datagram is None:
            return False
        with self._lock:
            there = self._socket or self._connected()
            if there is None:
                return False
            try:
                there.send(datagram)
            except BlockingIOError:
                return False
            except OSError as error:
                # The reader is gone. Its successor, if one comes, is found by the next attempt.
                _log.debug("the short way to %s is gone: %s", self._path, error)
                self._let_go()
                return False
            return True

    def close(self) -> None:
        """End it. Harmless twice."""
        with self._lock:
            self._closed = True
            self._let_go()

    def _connected(self) -> socket.socket | None:
        now_s = time.monotonic()
        if self._closed or now_s < self._next_try_s:
            return None
        try:
            self._socket = _connected_to(self._path)
        except OSError as error:  # nobody is there, or this process may open no more files
            _log.debug("there is no short way to %s: %s", self._path, error)
            self._next_try_s = now_s + _TRY_AGAIN_S
        return self._socket

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connected_to(path: str) -> socket.socket:
    """Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


def datagram_of(frames: Sequence[bytes | memoryview]) -> bytes | None:
    """The frames of a message as one datagram; None where they are too long for one."""
    lengths = [len(frame) for frame in frames]
    if sum(lengths) + 2 * len(lengths) + 2 > MOST_BYTES:
        return None
    return b"".join((struct.pack(f"<{len(lengths) + 1}H", len(lengths), *lengths), *frames))


def frames_of(datagram: bytes) -> list[bytes | memoryview]:
    """The frames, several as views of the datagram.

    Raises:
        WireError: it was not made by `datagram_of`, or is longer than may be.
    """
    try:
        (count,) = struct.unpack_from("<H", datagram)
        lengths = struct.unpack_from(f"<{count}H", datagram, 2)
    except struct.error as error:
        raise WireError(f"datagram of {len(datagram)} bytes is malformed: {error}.") from error
    start = 2 + 2 * count
    if not count or start + sum(lengths) != len(datagram) or len(datagram) > MOST_BYTES:
        raise WireError(f"datagram of {len(datagram)} bytes announces {count} frames of {sum(lengths)} bytes.")
    if count == 1:
        return [datagram[start:]]
    whole, frames = memoryview(datagram), list[bytes | memoryview]()
    for length in lengths:
        frames.append(whole[start : start + length])
        start += length
    return frames


def _own(values: Mapping[str, Carried]) -> dict[str, Carried] | None:
    """The values with copies of their arrays, which the sender may change; None where they are not simple enough."""
    own: dict[str, Carried] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype != object:
            own[name] = value.copy()
        elif isinstance(value, Descriptor):
            own[name] = value
        else:
            return None
    return own
