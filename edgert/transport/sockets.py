"""Sockets for `messages`: an `Inbox` where a process listens, an `Outbox` to somebody else's. The endpoint alone
decides over what: `inproc://` within the process, `ipc://` on the system, `tcp://` between hosts.

    inbox = Inbox("ipc://*")                       outbox = Outbox(endpoint_of_the_other)
    got = inbox.receive(deadline_s)                outbox.ready(deadline_s)
    inbox.answer(got.peer, Welcome(...))           outbox.send(Hello(...)); outbox.receive(deadline_s)

Messages of the kinds that are sent at every request (`direct.DIRECT`) take a shorter way on one system, past ZeroMQ,
and may overtake others.

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
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, cast

import zmq

from edgert.errors import (
    EndpointError,
    OptionError,
    Overloaded,
    PeerRefused,
    PeerUnreachable,
    TransportError,
    VersionMismatch,
)
from edgert.transport import contexts, direct, forked, frames, zap
from edgert.transport.endpoints import Endpoint, fresh_ipc, held_path
from edgert.transport.keys import KeyPair, Keyring, checked
from edgert.transport.memory import SHORTAGES
from edgert.transport.messages import Message, Speaks, Work
from edgert.transport.port import Lookout, Port
from edgert.transport.watch import State, Watch

_log = logging.getLogger(__name__)
MAX_MESSAGE_BYTES = 1 << 30
"""One array (each travels as a frame) may be so large where it does not go through shared memory."""
QUEUE = 1000
"""Messages that wait in a socket before more are refused."""
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
    """For `Inbox.answer`; means nothing after the sender's connection is gone. b'' for what took the short way, which
    needs no answer."""
    key: str
    """The sender's public key, proven; '' where the transport has none (inproc, ipc)."""


class Draft:
    """A `Work` that was written before it is to be sent."""

    __slots__ = ("_datagram", "_sender", "message")

    def __init__(self, sender: direct.Sender, message: Work, datagram: bytearray) -> None:
        self._sender, self.message, self._datagram = sender, message, datagram

    def sent(self) -> bool:
        """Send it. False: it must go as any other message."""
        if self.message.deadline_s is not None:
            left_s = self.message.deadline_s - time.monotonic()
            frames.TIME_LEFT.pack_into(self._datagram, direct.FIRST_AT + frames.TIME_LEFT_AT, left_s)
        return self._sender.send(self._datagram)

    def announce(self) -> None:
        """Send it as `Ahead`, or not at all; what is lost is not missed."""
        ahead = self._datagram.copy()
        frames.KIND.pack_into(ahead, direct.FIRST_AT + frames.KIND_AT, frames.AHEAD)
        self._sender.send(ahead)


class Inbox(Port):
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
            wanted = Endpoint.parse(fresh_ipc())
        self._gate: zap.Gate | None = None
        with _told(str(wanted)), ExitStack() as start:
            context = contexts.shared()
            if wanted.scheme == "tcp":
                pair = _required(keyring, endpoint).own()
                context = contexts.begun()  # of its own: the gate holds for a whole context
                start.callback(context.term)
                self._gate = zap.Gate(context, _required(keyring, endpoint), pair.public)
                start.callback(self._gate.close)
            elif wanted.scheme == "ipc":
                start.enter_context(held_path(wanted, group=group))
            super().__init__(context, zmq.ROUTER, (queue, max_message_bytes), start)
            self._short = self._shorten(wanted, start, group=group, queue=queue)
            self._socket.router_mandatory = True
            if wanted.scheme == "tcp":
                _secure(self._socket, pair)
                self._socket.ipv6 = "[" in wanted.address
                self._socket.curve_server = True
                self._socket.zap_domain = b"edgert"
            self._bind(wanted, group)
            if isinstance(self._short, direct.Queue):
                _bound[str(wanted)] = self._short
                start.callback(_bound.pop, str(wanted), None)
            self._keep(start)
        self.endpoint = _bound_to(self._socket) if wanted.scheme == "tcp" else str(wanted)
        """Where it listens, with the path or port that it got."""

    @property
    def refused(self) -> int:
        """Connections that were turned away for their key."""
        return self._gate.refused if self._gate is not None else 0

    def receive(self, deadline_s: float | None = None, *, lookout: Lookout | None = None) -> Received | None:
        """The next message; None when `time.monotonic()` passed the deadline, or at a `wake`.

        Args:
            deadline_s: on `time.monotonic()`.
            lookout: when not to sleep (ipc alone).

        Raises:
            Closed: the inbox was closed, also while this waits.
        """
        while True:
            came = self._receive(deadline_s, lookout)
            if came is None:
                return None
            if not isinstance(came, list):
                message, peer, key = self._unpacked(came), b"", ""
            else:
                message, peer = self._unpacked(came[1:]), came[0].bytes
                key = _key(came[1]) if self._gate is not None and message is not None else ""
            if isinstance(message, Speaks):
                self._differ(message, peer)
            elif message is not None:
                return Received(message, peer, key)

    def _differ(self, message: Speaks, peer: bytes) -> None:
        """A peer of another version came: tell it ours, unless that is what it does."""
        self._drop(f"a peer speaks version {message.version} of the messages, this edgert {frames.VERSION}")
        if peer and not message.release:
            with contextlib.suppress(TransportError, Overloaded):  # it is gone, or does not read
                self.answer(peer, frames.own_version())

    def rehearse(self, message: Message) -> None:
        """Write and read a message as if it came."""
        datagram = direct.datagram_of(frames.pack(message))
        if datagram is not None:
            frames.unpack(direct.frames_of(datagram))

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

    def _shorten(
        self, endpoint: Endpoint, start: ExitStack, *, group: bool, queue: int
    ) -> direct.Receiver | direct.Queue | None:
        """The short way into this inbox, where there is one."""
        if endpoint.scheme == "tcp":
            return None
        short: direct.Receiver | direct.Queue
        if endpoint.scheme == "inproc":
            short = direct.Queue(self._bell, queue)
        else:
            try:
                short = direct.Receiver(endpoint.address, _mask(group))
            except OSError as error:
                _log.info("%s is reached over ZeroMQ alone, which is slower: %s", endpoint, error)
                return None
            self._heed(short.fd)
        start.callback(short.close)
        return short

    def _bind(self, endpoint: Endpoint, group: bool) -> None:
        before = os.umask(_mask(group)) if endpoint.scheme == "ipc" else None
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


class Outbox(Port):
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
        with _told(self.endpoint), ExitStack() as start:
            super().__init__(contexts.shared(), zmq.DEALER, (queue, max_message_bytes), start)
            self._socket.immediate = not patient  # what is queued for a dead peer must not reach its successor
            self._socket.reconnect_ivl, self._socket.reconnect_ivl_max = 20, 1000
            if where.scheme == "tcp":
                if keys is None:
                    raise _keyless(endpoint)
                _secure(self._socket, keys)
                self._socket.ipv6 = "[" in where.address
                self._socket.curve_serverkey = checked(server_key).encode()
            self._watch = None if where.scheme == "inproc" else Watch(self._socket)
            self._queue: direct.Queue | None = None
            self._sender = direct.Sender(where.address) if where.scheme == "ipc" else None
            if self._sender is not None:
                start.callback(self._sender.close)
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
        short = type(message) in direct.DIRECT and not self._closed
        if short and self._queued(message):
            return
        parts = frames.pack(message)
        if short and self._sender is not None and self._sender.send(direct.datagram_of(parts)):
            return
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

    def hint(self, message: Message) -> None:
        """Send the short way or not at all; what is lost is not missed. Within a process it is not sent: a thread that
        was awake sooner was seen to start no sooner, since it still needs the interpreter's lock.
        """
        if self._sender is not None and not self._closed:
            self._sender.send(direct.datagram_of(frames.pack(message)))

    def draft(self, message: Work) -> Draft | None:
        """The message as it will be sent but for the time left, where that saves something: the short way over ipc."""
        if self._sender is None:
            return None
        datagram = direct.datagram_of(frames.pack(message))
        return None if datagram is None else Draft(self._sender, message, bytearray(datagram))

    def _queued(self, message: Message) -> bool:
        """Whether it was handed to an inbox of this process."""
        if self._watch is not None:
            return False
        if self._queue is None:
            # Kept once found, as a connection is: what listens there later is somebody else.
            self._queue = _bound.get(self.endpoint)
        return self._queue is not None and self._queue.send(message)

    def receive(self, deadline_s: float | None = None) -> Message | None:
        """The next message that came back over this connection, a `Speaks` where the other end is of another version;
        else as `Inbox.receive`.
        """
        while True:
            came = self._receive(deadline_s)
            if came is None:
                return None
            message = self._unpacked(came)
            if message is not None:
                return message

    def close(self) -> None:
        """As `Port.close`."""
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


def mismatch(endpoint: str, theirs: Speaks) -> VersionMismatch:
    """What it means for a caller that the other end speaks another version."""
    ours = frames.own_version()
    release = f" (edgert {theirs.release})" if theirs.release else ""
    older = f"the edgert at {endpoint}" if theirs.version < ours.version else "the edgert here"
    return VersionMismatch(
        f"{endpoint} speaks version {theirs.version} of edgert's messages{release}, this end version {ours.version} "
        f"(edgert {ours.release}).", f"Upgrade {older}: both ends need the same release.",
        endpoint=endpoint, ours=ours.version, theirs=theirs.version,
    )  # fmt: skip


@contextlib.contextmanager
def _told(endpoint: str) -> Iterator[None]:
    """That the system gives no more sockets, as an error of ours."""
    try:
        yield
    except (zmq.ZMQError, OSError) as error:
        raise EndpointError(
            f"endpoint {endpoint}: no socket can be made: {error.strerror}.",
            "Raise the limit of open files (ulimit -n), or close what is open.", endpoint=endpoint,
        ) from error  # fmt: skip


_bound: dict[str, direct.Queue] = {}  # inproc endpoints that are listened on; libzmq reports nothing of those
forked.forget(_bound.clear)


def _secure(socket: zmq.Socket[bytes], pair: KeyPair) -> None:
    socket.curve_publickey, socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
    socket.heartbeat_ivl, socket.heartbeat_timeout = _HEARTBEAT_MS, 3 * _HEARTBEAT_MS
    socket.handshake_ivl = 10_000


def _mask(group: bool) -> int:
    return 0o117 if group else 0o177


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
    """Names the running system, its process numbers and the user: two processes with the same can share memory.

    Raises:
        EndpointError: this process may open no more files.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        numbers = os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        if error.errno in SHORTAGES:
            raise EndpointError(
                f"this host cannot be named: {error.strerror}.",
                "Raise the limit of open files (ulimit -n).",
                endpoint="",
            ) from error
        return f"unknown {secrets.token_hex(8)}"
    return f"{boot} {numbers} {os.getuid()}"
