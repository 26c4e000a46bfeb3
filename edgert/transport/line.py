"""A client's connection: calls go out, answers come back, and what nobody will answer any more ends in a typed error.

It is known which calls the other end has seen: when the connection breaks, these end in `PeerUnreachable` at once,
since they may or may not have run. Calls that could not be sent wait for the next connection, until their deadline; so
do those that an end which is stopping did not take any more, and all others once it has said so.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from edgert.errors import Closed, DeadlineExceeded, EdgertError, PeerUnreachable, WireError, from_json
from edgert.tensor import Data
from edgert.transport import forked
from edgert.transport.keys import KeyPair
from edgert.transport.messages import STOPPING, Answer, Bye, Call, Descriptor, Speaks
from edgert.transport.sockets import Outbox, mismatch

_log = logging.getLogger(__name__)
_TICK_S = 0.1
"""How often the connection is looked at while somebody waits."""
_TICK_UNSENT_S = 0.02
"""The same while calls wait for a connection."""
_REMEDIES = (
    "Is the daemon running, and may this user use its socket? See `systemctl status edgert` and `ls -l`.",
    "See that it runs there, that the address is right, and that no firewall is between.",
)
"""Where nobody answers: on this box, and on another."""


@dataclass(slots=True)
class _Pending:
    call: Call
    limit_s: float
    future: Future[Answer] = field(default_factory=Future)
    sent: bool = False
    refusal: EdgertError | None = None
    """Why the other end, which was stopping, did not take it."""


_OPEN: weakref.WeakSet[Line] = weakref.WeakSet()
"""Those that nobody has closed yet."""


def _close_all() -> None:
    for line in tuple(_OPEN):
        line.close()


@cache
def _close_at_exit() -> None:
    """Have every `Line` closed when the program ends. The interpreter then takes sockets away from threads that still
    use them (`weakref.finalize`), but what was registered after the first such finalizer comes before all of them.
    """
    atexit.register(forked.mine(_close_all))


class Line:
    """Calls over one `Outbox`. Thread-safe."""

    def __init__(self, endpoint: str, *, keys: KeyPair | None = None, server_key: str = "") -> None:
        """Start connecting; arguments and errors as for `Outbox`."""
        self._outbox = Outbox(endpoint, keys=keys, server_key=server_key)
        self.endpoint = endpoint
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._closed = self._stopping = False
        self._breaks = self._outbox.breaks
        self._thread = threading.Thread(target=self._serve, name=f"edgert client of {endpoint}", daemon=True)
        self._thread.start()
        _OPEN.add(self)
        _close_at_exit()  # after the outbox, which has a finalizer

    def send(self, call: Call, limit_s: float) -> Future[Answer]:
        """Send a call, now or as soon as there is a connection.

        Args:
            call: its `deadline_s` is when the future ends in `DeadlineExceeded`; in `PeerUnreachable` if there never
                was a connection to send it over.
            limit_s: the time that it was given, for messages.

        Raises:
            Closed: after `close`.
            PeerRefused: the other end does not take this end's key, or has another than it should.
            VersionMismatch: out of the future: the other end is of another release, and did not run it.
            Overloaded: it reads nothing any more.
            WireError: the call cannot be written.
        """
        pending = _Pending(call, limit_s)
        with self._lock:
            if self._closed:
                raise self._over()
            waking = not self._pending
            self._pending[call.request] = pending
            try:
                self._try(pending)
            except EdgertError:
                del self._pending[call.request]
                raise
        if waking or not pending.sent:
            self._outbox.wake()
        return pending.future

    def close(self) -> None:
        """End it; what is under way ends in `Closed`. Closing twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _OPEN.discard(self)
        self._outbox.wake()
        if threading.current_thread() is not self._thread:  # a collection of garbage may come here in it
            self._thread.join()

    def _try(self, pending: _Pending) -> None:
        """Send it if there is a connection, to an end that takes it."""
        pending.sent = not self._stopping
        if self._stopping:
            return
        try:
            self._outbox.send(pending.call)
        except PeerUnreachable:
            pending.sent = False

    def _serve(self) -> None:
        try:
            while not self._closed:
                self._drain(self._outbox.receive(time.monotonic() + self._wait_s()))
                self._notice_breaks()
                self._send_waiting()
                self._expire()
            self._outbox.close()
        finally:
            with self._lock:
                left = list(self._pending)
            for request in left:
                self._settle(request, self._over())

    def _drain(self, message: object | None) -> None:
        """Take this message and all others that are there."""
        while message is not None:
            self._take(message)
            message = self._outbox.receive(0.0)

    def _wait_s(self) -> float:
        with self._lock:
            if not self._pending:
                return 3600.0
            first_s = min(each.call.deadline_s or math.inf for each in self._pending.values())
            tick_s = _TICK_S if all(each.sent for each in self._pending.values()) else _TICK_UNSENT_S
        return min(tick_s, max(0.0, first_s - time.monotonic()))

    def _take(self, message: object) -> None:
        if isinstance(message, Bye):
            self._stopping = True
            return
        if isinstance(message, Speaks):
            self._part(message)
            return
        if not isinstance(message, Answer):
            _log.warning("%s sent a %s, which is no answer", self.endpoint, type(message).__name__)
            return
        if message.error is not None:
            error = from_json(message.error)
            if message.facts.get(STOPPING) is True:
                self._put_off(message.request, error)
            else:
                self._settle(message.request, error)
            return
        try:
            self._settle(message.request, Answer(message.request, message.facts, own_all(message.values)))
        except WireError as error:
            self._settle(message.request, error)

    def _part(self, theirs: Speaks) -> None:
        """The other end cannot read what it was sent, so it has not run; it would not read it again either."""
        with self._lock:
            lost = [number for number, each in self._pending.items() if each.sent]
        for number in lost:
            self._settle(number, mismatch(self.endpoint, theirs))

    def _put_off(self, request: int, refusal: EdgertError) -> None:
        """Keep a call, which has not run, for the next connection."""
        with self._lock:
            self._stopping = True
            pending = self._pending.get(request)
            if pending is not None:
                pending.sent, pending.refusal = False, refusal

    def _notice_breaks(self) -> None:
        breaks = self._outbox.breaks
        if breaks == self._breaks:
            return
        self._breaks = breaks
        self._drain(self._outbox.receive(0.0))  # answers that came before the end
        with self._lock:
            self._stopping = False
            lost = [number for number, each in self._pending.items() if each.sent]
        for number in lost:
            self._settle(number, PeerUnreachable(
                f"{self.endpoint} went away while it had the request; whether it ran is not known.",
                "Ask again: the connection comes back when the other end does.", endpoint=self.endpoint,
            ))  # fmt: skip

    def _send_waiting(self) -> None:
        with self._lock:
            waiting = [each for each in self._pending.values() if not each.sent]
            failed = []
            for each in waiting:
                try:
                    self._try(each)
                except EdgertError as error:
                    failed.append((each.call.request, error))
        for number, reason in failed:
            self._settle(number, reason)

    def _expire(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            late = [each for each in self._pending.values() if (each.call.deadline_s or math.inf) <= now_s]
        for each in late:
            self._settle(each.call.request, self._late(each))

    def _late(self, pending: _Pending) -> EdgertError:
        method, limit_s = pending.call.method, pending.limit_s
        if pending.sent:
            return DeadlineExceeded(
                f"{self.endpoint} did not answer {method!r} within {limit_s:g} s.",
                "Give it more time, or look at its status.", deadline_s=limit_s,
            )  # fmt: skip
        if pending.refusal is not None:
            return pending.refusal
        return PeerUnreachable(
            f"nobody answers at {self.endpoint} (waited {limit_s:g} s).",
            _REMEDIES[self.endpoint.startswith("tcp:")],
            endpoint=self.endpoint,
        )

    def _settle(self, request: int, outcome: Answer | EdgertError) -> None:
        with self._lock:
            pending = self._pending.pop(request, None)
        if pending is None:  # it came too late
            return
        with suppress(InvalidStateError):  # cancelled
            if isinstance(outcome, Answer):
                pending.future.set_result(outcome)
            else:
                pending.future.set_exception(outcome)

    def _over(self) -> Closed:
        return Closed(f"the connection to {self.endpoint} was closed.", "Connect again.")


def own_all(values: Mapping[str, Any]) -> dict[str, Data]:
    """Values of a received message as arrays of one's own: aligned and writable.

    Raises:
        WireError: one lies in another process's memory, which clients and daemons do not share.
    """
    return {name: _own(value) for name, value in values.items()}


def _own(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.array(value)
    if isinstance(value, Descriptor):
        raise WireError("a value lies in shared memory.", "Send it with the message.")
    if isinstance(value, Mapping):
        return {key: _own(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_own(item) for item in value]
    return value
