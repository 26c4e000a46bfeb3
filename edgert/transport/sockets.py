"""Sockets for `messages`: an `Inbox` where a process listens, an `Outbox` to somebody else's. The endpoint alone
decides over what: `inproc://` within the process, `ipc://` on the system, `tcp://` between hosts.

    inbox = Inbox("ipc://*")                       outbox = Outbox(endpoint_of_the_other)
    got = inbox.receive(deadline_s)                outbox.ready(deadline_s)
    inbox.answer(got.peer, Welcome(...))           outbox.send(Hello(...)); outbox.receive(deadline_s)

Both may be used from any thread; `receive` from one at a time. Nothing here waits but `receive` and `ready`, which have
a deadline and can be woken. What is no message is counted and dropped. A message is delivered once or not at all: one
that was on its way to a peer that died is lost, and never reaches that peer's successor.

TCP is encrypted, and both ends must know each other's key (`keys`): there is no way to listen on TCP without.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import select
import threading
import time
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import zmq

from edgert.errors import (
    Closed,
    EdgertError,
    EndpointError,
    OptionError,
    Overloaded,
    PeerRefused,
    PeerUnreachable,
    WireError,
)
from edgert.transport import frames, zap
from edgert.transport.endpoints import Endpoint, held_path, private_folder
from edgert.transport.keys import KeyPair, Keyring, checked
from edgert.transport.messages import Message
from edgert.transport.watch import State, Watch

_log = logging.getLogger(__name__)
MAX_MESSAGE_BYTES = 1 << 30
"""One array (each travels as a frame) may be so large where it does not go through shared memory."""
QUEUE = 1000
"""Messages that wait in a socket before more are refused."""
_WAKE, _LOOK = b"w", b"l"
_MOST_LOGGED = 100
"""Malformed messages that are logged; they are counted beyond that."""
_BIND_REMEDIES = {
    errno.EADDRINUSE: "Another process listens there: stop it, or take another.",
    errno.EADDRNOTAVAIL: "This machine has no such address: see `ip address`.",
    errno.ENODEV: "This machine has no such address: see `ip address`.",
    errno.EACCES: "Take a port above 1023, or a folder that is yours.",
}
_HEARTBEAT_MS = 1000
"""Between hosts: how often a connection is tried; it counts as broken after three times that without an answer."""


class Received(NamedTuple):
    """A message and who sent it."""

    message: Message
    peer: bytes
    """For `Inbox.answer`; means nothing after the sender's connection is gone."""
    key: str
    """The sender's public key, proven; '' where the transport has none (inproc, ipc)."""


class _Bell:
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


class _Port:
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
        self._bell = _Bell()
        self._poll = select.poll()
        self._poll.register(self._socket.get(zmq.FD), select.POLLIN)
        self._poll.register(self._bell.fd, select.POLLIN)
        self._closed = self._receives = False
        self.dropped = 0
        """Messages that were malformed, and thrown away."""
        start.callback(self._bell.close)
        start.callback(self._socket.close)

    def wake(self) -> None:
        """Have `receive` return None now (or the next one, when none waits). From any thread or signal handler."""
        self._bell.ring(_WAKE)

    def close(self) -> None:
        """End it; who waits gets `Closed`. Harmless twice."""
        self._closed = True
        self._bell.ring(_WAKE)
        with self._receiving, self._lock:
            self._dropped()

    def linger(self, limit_s: float) -> None:
        """What was sent before `close` may still leave for so long after it; `flush` waits for that."""
        with self._lock:
            self._check_open()
            self._socket.linger = round(1e3 * limit_s)

    def _keep(self, start: ExitStack) -> None:
        """What was started lasts until `close`, or until nobody holds this any more."""
        self._dropped = weakref.finalize(self, start.pop_all().close)

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
            finally:
                # Sending takes note of what arrived meanwhile, and then the descriptor does not wake the receiver.
                if self._receives and int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                    self._bell.ring(_LOOK)

    def _receive(self, deadline_s: float | None) -> list[zmq.Frame] | None:
        """The frames of the next message; None when it is late or woken."""
        with self._receiving:
            self._receives = True
            while True:
                with self._lock:
                    self._check_open()
                    try:
                        return self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
                    except zmq.Again:
                        pass
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                ready = self._poll.poll(None if left_s is None else left_s * 1e3)
                if any(fd == self._bell.fd for fd, _ in ready) and _WAKE in self._bell.heard():
                    self._check_open()
                    return None

    def _unpacked(self, parts: list[zmq.Frame]) -> Message | None:
        """The message; None, counted, when it is none."""
        try:
            return frames.unpack([parts[0].bytes, *(part.buffer for part in parts[1:])])
        except (EdgertError, IndexError) as error:
            self.dropped += 1
            if self.dropped <= _MOST_LOGGED:
                _log.warning("dropped what is no message: %s", error)
            return None

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the socket was closed.")


class Inbox(_Port):
    """Where this process listens."""

    def __init__(
        self, endpoint: str, *, keyring: Keyring | None = None, group: bool = False,
        queue: int = QUEUE, max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:  # fmt: skip
        """Listen.

        Args:
            endpoint: `ipc://*` takes a path of its own in a private folder, `tcp://ADDRESS:0` a free port.
            keyring: this machine's key and those that may connect; needed for tcp.
            group: an ipc socket that the folder's group may use too.
            queue: messages of one peer that may wait.
            max_message_bytes: a peer that sends more is disconnected.

        Raises:
            EndpointError: it is malformed, in use, not private, or this machine has no such address.
            OptionError: tcp without a key pair.
        """
        wanted = Endpoint.parse(endpoint)
        if wanted.scheme == "ipc" and wanted.address == "*":
            wanted = Endpoint("ipc", str(private_folder() / secrets.token_hex(8)))
        self._gate: zap.Gate | None = None
        with ExitStack() as start:
            context = _context()
            if wanted.scheme == "tcp":
                pair = _required(keyring, endpoint).own()
                context = zmq.Context()  # of its own: the gate holds for a whole context
                start.callback(context.term)
                self._gate = zap.Gate(context, _required(keyring, endpoint))
                start.callback(self._gate.close)
            elif wanted.scheme == "ipc":
                start.enter_context(held_path(wanted, group=group))
            super().__init__(context, zmq.ROUTER, (queue, max_message_bytes), start)
            self._socket.router_mandatory = True
            if wanted.scheme == "tcp":
                _secure(self._socket, pair)
                self._socket.ipv6 = "[" in wanted.address
                self._socket.curve_server = True
                self._socket.zap_domain = b"edgert"
            self._bind(wanted, group)
            if wanted.scheme == "inproc":
                _bound.add(str(wanted))
                start.callback(_bound.discard, str(wanted))
            self._keep(start)
        self.endpoint = _bound_to(self._socket) if wanted.scheme == "tcp" else str(wanted)
        """Where it listens, with the path or port that it got."""

    @property
    def refused(self) -> int:
        """Connections that were turned away for their key."""
        return self._gate.refused if self._gate is not None else 0

    def receive(self, deadline_s: float | None = None) -> Received | None:
        """The next message; None when `time.monotonic()` passed the deadline, or at a `wake`.

        Raises:
            Closed: the inbox was closed, also while this waits.
        """
        while True:
            parts = self._receive(deadline_s)
            if parts is None:
                return None
            message = self._unpacked(parts[1:])
            if message is not None:
                return Received(message, parts[0].bytes, _key(parts[1]) if self._gate is not None else "")

    def answer(self, peer: bytes, message: Message, *, lend: bool = False) -> None:
        """Send to one who sent.

        Args:
            peer: `Received.peer`.
            message: any.
            lend: its arrays stay as they are until they are sent, so they need not be copied.

        Raises:
            PeerUnreachable: its connection is gone.
            Overloaded: it does not read; its queue is full.
            WireError: the message cannot be written, or is too large.
        """
        try:
            self._send([peer, *frames.pack(message)], lend)
        except zmq.Again as error:
            raise _full(self.endpoint) from error
        except zmq.ZMQError as error:
            raise PeerUnreachable(
                f"a peer of {self.endpoint} is gone.", "It connects again by itself.", endpoint=self.endpoint
            ) from error

    def _bind(self, endpoint: Endpoint, group: bool) -> None:
        before = os.umask(0o117 if group else 0o177) if endpoint.scheme == "ipc" else None
        try:
            self._socket.bind(str(endpoint))
        except zmq.ZMQError as error:
            raise EndpointError(
                f"endpoint {endpoint} cannot be listened on: {error.strerror}.",
                _BIND_REMEDIES.get(error.errno or 0, "Take another."), endpoint=str(endpoint),
            ) from error  # fmt: skip
        finally:
            if before is not None:
                os.umask(before)


class Outbox(_Port):
    """A connection to somebody's inbox, made and kept up in the background."""

    def __init__(
        self, endpoint: str, *, keys: KeyPair | None = None, server_key: str = "",
        queue: int = QUEUE, max_message_bytes: int = MAX_MESSAGE_BYTES, patient: bool = False,
    ) -> None:  # fmt: skip
        """Start to connect; returns at once.

        Args:
            endpoint: of the inbox.
            keys: this machine's, for tcp.
            server_key: public key of the other machine, for tcp.
            queue: messages that may wait.
            max_message_bytes: as of `Inbox`.
            patient: keep what is sent before the connection is there, instead of refusing it. Only for an endpoint
                where nobody else will ever listen, since a successor would get it.

        Raises:
            EndpointError: it is malformed.
            OptionError: tcp without keys.
        """
        where = Endpoint.parse(endpoint)
        self.endpoint = str(where)
        with ExitStack() as start:
            super().__init__(_context(), zmq.DEALER, (queue, max_message_bytes), start)
            self._socket.immediate = not patient  # what is queued for a dead peer must not reach its successor
            self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = 20, 1000
            if where.scheme == "tcp":
                if keys is None:
                    raise _keyless(endpoint)
                _secure(self._socket, keys)
                self._socket.ipv6 = "[" in where.address
                self._socket.curve_serverkey = checked(server_key).encode()
            self._watch = None if where.scheme == "inproc" else Watch(self._socket)
            self._socket.connect(str(where))
            self._keep(start)

    @property
    def state(self) -> State:
        """How the connection is now."""
        if self._watch is not None:
            return self._watch.look()
        return "connected" if self.endpoint in _bound else "lost"

    @property
    def breaks(self) -> int:
        """How often the connection broke since the start; also one that is back already."""
        return 0 if self._watch is None else self._watch.breaks()

    def ready(self, deadline_s: float) -> None:
        """Wait for the connection.

        Raises:
            PeerRefused: the other end does not know this key, or does not have the key that was named.
            PeerUnreachable: nobody answered in time.
        """
        self._judge(self._watch.settled(deadline_s) if self._watch is not None else self.state)

    def send(self, message: Message, *, lend: bool = False) -> None:
        """Send, without waiting.

        Args:
            message: any.
            lend: as in `Inbox.answer`.

        Raises:
            PeerRefused, PeerUnreachable: there is no connection (now: it is tried again and again).
            Overloaded: the other end does not read; its queue is full.
            WireError: the message cannot be written, or is too large.
        """
        parts = frames.pack(message)
        try:
            self._send(parts, lend)
        except zmq.Again:
            self._judge(self.state)
        else:
            return
        # There is a connection now, but perhaps not yet when this was sent: only one that is there can be full.
        try:
            self._send(parts, lend, anew=True)
        except zmq.Again as error:
            self._judge(self.state)
            raise _full(self.endpoint) from error

    def receive(self, deadline_s: float | None = None) -> Message | None:
        """The next message that came back over this connection; else as `Inbox.receive`."""
        while True:
            parts = self._receive(deadline_s)
            if parts is None:
                return None
            message = self._unpacked(parts)
            if message is not None:
                return message

    def close(self) -> None:
        """As `_Port.close`."""
        if self._watch is not None and not self._closed:
            self._watch.close()
        super().close()

    def _judge(self, state: State) -> None:
        if state == "refused":
            raise PeerRefused(
                f"{self.endpoint} refused this machine's key, or does not have the key that it is known by here.",
                "On each of both machines compare `edgert keys list`, and `edgert keys allow NAME KEY` the other's.",
                endpoint=self.endpoint,
            )
        if state != "connected":
            raise PeerUnreachable(
                f"nobody answers at {self.endpoint}.", "See that it runs, and that no firewall is between.",
                endpoint=self.endpoint,
            )  # fmt: skip


_shared: zmq.Context[Any] | None = None
_making = threading.Lock()
_bound: set[str] = set()  # inproc endpoints that are listened on; libzmq reports nothing of those


def _context() -> zmq.Context[Any]:
    """One for the process, since inproc endpoints are known within a context."""
    global _shared  # noqa: PLW0603 - made when first needed: importing starts no thread
    with _making:
        if _shared is None:
            _shared = zmq.Context()
        return _shared


def flush(limit_s: float) -> bool:
    """Wait for what closed inproc and ipc sockets still have to send; for the end of a process, which makes none after.

    Returns:
        Whether all left, or there was nothing; False when the limit passed, or a socket is still open.
    """
    global _shared
    with _making:
        context, _shared = _shared, None
    if context is None:
        return True
    # Ending a context waits for all its sockets, without a limit of its own.
    ending = threading.Thread(target=context.term, name="edgert flush", daemon=True)
    ending.start()
    ending.join(limit_s)
    return not ending.is_alive()


def _secure(socket: zmq.Socket[bytes], pair: KeyPair) -> None:
    socket.curve_publickey, socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
    socket.heartbeat_ivl, socket.heartbeat_timeout = _HEARTBEAT_MS, 3 * _HEARTBEAT_MS
    socket.handshake_ivl = 10_000


def _bound_to(socket: zmq.Socket[bytes]) -> str:
    return cast("bytes", socket.get(zmq.LAST_ENDPOINT)).decode().rstrip("\0")


def _key(frame: zmq.Frame) -> str:
    return str(frame.get("User-Id"))


def _required(keyring: Keyring | None, endpoint: str) -> Keyring:
    if keyring is None:
        raise _keyless(endpoint)
    return keyring


def _keyless(endpoint: str) -> OptionError:
    return OptionError(f"{endpoint} is not used without keys.", "Make a key pair on each machine: edgert keys make")


def _full(endpoint: str) -> Overloaded:
    return Overloaded(f"the peer at {endpoint} does not read: its queue is full.", "Send fewer requests at a time.")


def host_id() -> str:
    """Names the running system, its process numbers and the user: two processes with the same can share memory."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        numbers = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return f"unknown {secrets.token_hex(8)}"
    return f"{boot} {numbers} {os.getuid()}"
