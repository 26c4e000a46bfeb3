"""How a connection is, from what libzmq reports while it makes it and keeps it up in the background."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from typing import Any, Literal, TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

_log = logging.getLogger(__name__)
State: TypeAlias = Literal["connecting", "connected", "refused", "lost"]
_SLICE_S = 0.05
_SURE = 3
"""A handshake that just breaks off may be a peer that died in it; after so many in a row it is the keys, or what takes
connections for a peer (a proxy, a tunnel, a forwarded port) while there is none behind it.
"""
_GREETING = b"\xff"
"""What every peer says first, whatever it hears (ZMTP 3.1, rfc.zeromq.org/spec/37)."""


class _Knock:
    """Whether it is a peer that takes connections at an address; asked without waiting."""

    def __init__(self, endpoint: str) -> None:
        """Connect.

        Args:
            endpoint: 'tcp://ADDRESS:PORT', the address in numbers.
        """
        address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._socket.setblocking(False)
        self._socket.connect_ex((address.strip("[]"), int(port)))  # how it ends is told by `answer`

    def answer(self) -> bool | None:
        """None while that is not known."""
        try:
            return self._socket.recv(1) == _GREETING
        except BlockingIOError:
            return None
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()


class Watch:
    """Follows one socket's connection. Thread-safe."""

    def __init__(self, watched: zmq.Socket[bytes]) -> None:
        """Call before the socket connects."""
        self._socket = watched
        self._events: zmq.Socket[Any] = watched.get_monitor_socket()
        self._events.linger = 0
        self._lock = threading.Lock()
        self._state: State = "connecting"
        self._broken_off = 0
        self._knock: _Knock | None = None
        self._breaks = 0
        self._closed = False

    def look(self) -> State:
        """How it is now."""
        with self._lock:
            return self._drained(0.0)

    def breaks(self) -> int:
        """How often a connection that was there broke: what was sent over it and not answered will not be."""
        with self._lock:
            self._drained(0.0)
            return self._breaks

    def settled(self, deadline_s: float) -> State:
        """How it is once it is connected or refused, or when `time.monotonic()` passes the deadline."""
        while True:
            left_s = deadline_s - time.monotonic()
            with self._lock:
                state = self._drained(max(0.0, min(_SLICE_S, left_s)))
            if state in ("connected", "refused") or left_s <= 0:
                return state

    def close(self) -> None:
        """Follow it no more."""
        with self._lock:
            self._closed = True
            self._forget()
            self._socket.disable_monitor()
            self._events.close()

    def _drained(self, wait_s: float) -> State:
        if self._closed:
            return "lost"
        while self._events.poll(round(wait_s * 1e3)):
            told = parse_monitor_message(self._events.recv_multipart())
            self._take(told["event"], told["value"], told["endpoint"].decode())
            wait_s = 0.0
        self._hear()
        return self._state

    def _take(self, event: int, value: int, endpoint: str) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._state, self._broken_off = "connected", 0
            self._forget()
        elif event in (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
            self._state = "refused"
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value != errno.ECONNRESET:  # a reset is the network's
            self._broken_off += 1
            if self._broken_off >= _SURE and endpoint.startswith("tcp:"):  # there are no keys elsewhere
                self._broken_off = 0
                self._forget()
                try:
                    self._knock = _Knock(endpoint)
                except OSError as error:  # this process may open no more files: the next break is asked about
                    _log.debug("nothing is known of who takes connections at %s: %s", endpoint, error)
        elif event == zmq.EVENT_DISCONNECTED and self._state == "connected":
            self._state, self._breaks = "lost", self._breaks + 1

    def _hear(self) -> None:
        """Whether it was the keys: a peer is there. Else nobody answers."""
        greeted = None if self._knock is None else self._knock.answer()
        if greeted is not None:
            self._state = "refused" if greeted else "connecting"
            self._forget()

    def _forget(self) -> None:
        if self._knock is not None:
            self._knock.close()
            self._knock = None
