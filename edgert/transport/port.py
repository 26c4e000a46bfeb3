"""A ZeroMQ socket that several threads may use, and the one wait for all that may come: what `sockets` is made of."""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias

import zmq

from edgert.errors import Closed, EdgertError, WireError
from edgert.transport import direct, forked, frames
from edgert.transport.direct import LOOK, WAKE, Bell
from edgert.transport.messages import Message

_log = logging.getLogger(__name__)
_MOST_SHORTLY = 64
"""Messages in a row that come the short way before those that came the long way are looked for."""
_SELECTABLE = 1024
"""FD_SETSIZE: descriptors that select(2) knows are below."""
_WANTED_S = 300e-6
"""A look that took so long was interrupted by somebody who wanted the core."""
_WAKING_S = 150e-6
"""To be awake at some moment: a sleep ends late, and a thread that slept is slow at first."""
_MOST_LOGGED = 100
"""Malformed messages that are logged; they are counted beyond that."""


class Lookout(NamedTuple):
    """A time in which to look again and again instead of sleeping, on `time.monotonic()`, while nobody else wants the
    core.
    """

    begin_s: float
    """Until shortly before, it sleeps, and anything that comes wakes it."""
    end_s: float
    first: Callable[[], None]
    """Called when it begins."""
    seen: Callable[[], bool]
    """Whether there is something to do that no message tells of; ends the wait."""


Came: TypeAlias = "list[zmq.Frame] | bytes | Message"
"""The frames of a message, or over the short way: a datagram, or itself."""


class Port:
    """A socket that several threads may use: each operation under a lock, waiting without it."""

    def __init__(self, context: zmq.Context[Any], kind: int, limits: tuple[int, int], start: ExitStack) -> None:
        queue, max_message_bytes = limits
        self._lock = threading.Lock()
        self._receiving = threading.Lock()
        self._socket: zmq.Socket[bytes] = context.socket(kind)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = queue
        self._socket.maxmsgsize = max_message_bytes
        self._max_message_bytes = max_message_bytes
        self._bell = Bell()
        self._poll = select.poll()
        self._watched_fds: list[int] = []
        for fd in (int(self._socket.get(zmq.FD)), self._bell.fd):
            self._heed(fd)
        self._short: direct.Receiver | direct.Queue | None = None
        self._closed = self._receives = False
        self._shortly = 0
        self.dropped = 0
        """Messages that were malformed, and thrown away."""
        start.callback(self._bell.close)
        start.callback(self._socket.close)

    def wake(self) -> None:
        """Have `receive` return None now (or the next one, when none waits). From any thread or signal handler."""
        self._bell.ring(WAKE)

    def close(self) -> None:
        """End it; who waits gets `Closed`. Harmless twice."""
        self._closed = True
        self._bell.ring(WAKE)
        with self._receiving, self._lock:
            self._dropped()

    def _heed(self, fd: int) -> None:
        """Wait for this one too."""
        self._poll.register(fd, select.POLLIN)
        self._watched_fds.append(fd)

    def linger(self, limit_s: float) -> None:
        """What was sent before `close` may still leave for so long after it; `flush` waits for that."""
        with self._lock:
            self._check_open()
            self._socket.linger = round(1e3 * limit_s)

    def _keep(self, start: ExitStack) -> None:
        """What was started lasts until `close`, or until nobody holds this any more."""
        self._dropped = weakref.finalize(self, forked.mine(start.pop_all().close))

    def _send(self, parts: frames.Frames, lend: bool, *, anew: bool = False) -> None:
        """Args:
        parts: of the message.
        lend: as in `Inbox.answer`.
        anew: take note of connections that have come first, which libzmq does not do at every send.
        """
        largest = len(parts[0]) if len(parts) == 1 else max(map(len, parts))
        if largest > self._max_message_bytes:
            raise WireError(
                f"a message of {largest} bytes is larger than the {self._max_message_bytes} that are allowed.",
                "Use shared memory, or a larger max_message_bytes on both ends.",
            )
        with self._lock:
            self._check_open()
            if anew:
                self._socket.get(zmq.EVENTS)
            try:
                if len(parts) == 1:
                    self._socket.send(parts[0], zmq.DONTWAIT)
                else:
                    self._socket.send_multipart(parts, zmq.DONTWAIT, copy=not lend)
            except zmq.ZMQError as error:
                if error.errno == errno.ENOMEM:
                    raise MemoryError(f"no memory is left for a message of {largest} bytes.") from error
                raise
            finally:
                # Sending takes note of what arrived meanwhile, and then the descriptor does not wake the receiver.
                if self._receives and int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                    self._bell.ring(LOOK)

    def _receive(self, deadline_s: float | None, lookout: Lookout | None = None) -> Came | None:
        """What comes next; None when it is late or woken."""
        with self._receiving:
            self._receives = True
            while True:
                self._check_open()
                came = self._next_short()
                if came is not None:
                    return came
                parts = self._next_long()
                if parts is not None:
                    return parts
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                if self._wait(None if left_s is None else left_s * 1e3, lookout):
                    self._check_open()
                    return None

    def _next_short(self) -> bytes | Message | None:
        if self._short is None or self._shortly > _MOST_SHORTLY:
            self._shortly = 0  # those that came the long way have their turn
            return None
        came = self._short.next()
        self._shortly = 0 if came is None else self._shortly + 1
        return came

    def _next_long(self) -> list[zmq.Frame] | None:
        with self._lock:
            self._check_open()
            try:
                return self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return None

    def _wait(self, limit_ms: float | None, lookout: Lookout | None) -> bool:
        """Until there may be something; whether it was a `wake`, or what the lookout saw."""
        queue = self._short if isinstance(self._short, direct.Queue) else None
        if queue is not None and not queue.awaits():
            return False
        ready = self._watched(lookout) if lookout is not None and queue is None else []
        if ready is None:
            return True
        if not ready:
            ready = self._poll.poll(limit_ms)
        if queue is not None:
            queue.awaited = False
        return any(fd == self._bell.fd for fd, _ in ready) and WAKE in self._bell.heard()

    def _watched(self, lookout: Lookout) -> list[tuple[int, int]] | None:
        """What is ready, found out without sleeping in that time; nothing when there is nothing; None when the lookout
        saw something.
        """
        before_s = lookout.begin_s - time.monotonic() - _WAKING_S
        if before_s > _WAKING_S and (ready := self._slept(before_s)):
            return ready
        lookout.first()
        now_s = time.monotonic()
        while now_s < lookout.end_s:
            if lookout.seen():
                return None
            if ready := self._poll.poll(0):
                return ready
            os.sched_yield()  # whoever has something to do on this core goes first
            before_s, now_s = now_s, time.monotonic()
            if now_s - before_s > _WANTED_S:
                break  # somebody had: there are no cores to spare
        return []

    def _slept(self, seconds: float) -> list[tuple[int, int]]:
        """What is ready within a time that may be shorter than `poll` can be told, where the system lets us."""
        if max(self._watched_fds) >= _SELECTABLE:
            return self._poll.poll(int(1e3 * seconds)) if seconds >= 1e-3 else []
        return [(fd, select.POLLIN) for fd in select.select(self._watched_fds, (), (), seconds)[0]]

    def _unpacked(self, came: Came) -> Message | None:
        """The message; None, counted, when it is none."""
        try:
            if isinstance(came, bytes):
                return frames.unpack(direct.frames_of(came))
            if isinstance(came, list):
                return frames.unpack([came[0].bytes, *(part.buffer for part in came[1:])])
            return came
        except (EdgertError, IndexError) as error:
            self._drop(f"what is no message: {error}")
            return None
        except MemoryError as error:
            self._drop(f"a message that there is no memory for: {error}")
            return None

    def _drop(self, what: str) -> None:
        self.dropped += 1
        if self.dropped <= _MOST_LOGGED:
            _log.warning("dropped %s", what)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the socket was closed.")
