"""The daemon's ZeroMQ front end: `Call`s come in, `Answer`s go out.

Methods are `run`, `signature`, `status`. One thread reads; whoever has an answer sends it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from edgert import errors
from edgert.errors import (
    Closed,
    EdgertError,
    EndpointError,
    ModelNotServed,
    OptionError,
    RunFailed,
    TransportError,
    WireError,
)
from edgert.execution.fair import checked_priority
from edgert.result import Result
from edgert.serving.service import Service, stopping
from edgert.transport.endpoints import Endpoint
from edgert.transport.keys import Keyring
from edgert.transport.line import own_all
from edgert.transport.messages import STOPPING, Answer, Bye, Call
from edgert.transport.sockets import Inbox

_log = logging.getLogger(__name__)
Status: TypeAlias = Callable[[], Mapping[str, Any]]
FLUSH_S = 2.0
"""How long the last answers may take to leave."""
_GRACE_S = 0.2
"""For what clients sent before they heard that this stops: it is still read, and put off."""
_MOST_HELD = 256
_MOST_LOGGED = 100
"""Messages that are no calls; they are counted beyond that, since who sends them may send many."""
_MOST_PEERS = 4096
"""Clients that are told when this stops: those that asked last."""
_QUEUE = 64
"""Messages of one client that wait to be read; more wait with the client."""


class Front:
    """Listens at one endpoint for a service."""

    def __init__(
        self, endpoint: str, service: Service, status: Status, *, group: bool = False, keyring: Keyring | None = None
    ) -> None:
        """Listen; `start` begins to read.

        Args:
            endpoint: such as 'ipc:///run/edgert/edgert.sock'; its folder is made, for this user alone, if it is not
                there.
            service: who answers.
            status: what `status` tells.
            group: members of the folder's group may connect too.
            keyring: for tcp: this machine's key, and those that may connect.

        Raises:
            EndpointError: it is malformed, in use, not private, or cannot be made.
            OptionError: tcp without keys.
        """
        _make_folder(endpoint)
        self._service, self._status = service, status
        self._inbox = Inbox(endpoint, keyring=keyring, group=group, queue=_QUEUE)
        self.endpoint = self._inbox.endpoint
        self._thread = threading.Thread(target=self._serve, name=f"edgert at {endpoint}", daemon=True)
        self._held: list[tuple[bytes, Call]] | None = []
        """Calls for models that are not loaded yet, while the daemon starts; None afterwards."""
        self._lock = threading.Lock()
        self._peers: dict[bytes, None] = {}
        """Who asked, longest ago first."""
        self._leaving = False
        self._strange = 0
        """Messages that were none of a client's."""

    def start(self) -> None:
        """Read. What asks for a model that is not there waits for `release`, so that a restart is a pause."""
        self._thread.start()

    def release(self) -> None:
        """The models are loaded: what waited for them goes on; what asks for others is told so from now on."""
        with self._lock:
            held, self._held = self._held or [], None
        for who, call in held:
            self._take(who, call)

    def farewell(self) -> None:
        """Tell all clients that this stops: they keep what they have for the next one. What waits here is put off."""
        with self._lock:
            self._leaving = True
            held, self._held = self._held or [], None
            peers = list(self._peers)
        for who in peers:
            self._send(who, Bye("daemon", 0, "stopping"))
        for who, call in held:
            self._send(who, _failed(call, stopping()))

    def close(self) -> None:
        """Listen no more. Answers that were given leave within `FLUSH_S`, if the process lives (`contexts.flush`)."""
        if self._peers and self._thread.is_alive():
            time.sleep(_GRACE_S)
        with suppress(Closed):
            self._inbox.linger(FLUSH_S)
        self._inbox.close()
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                got = self._inbox.receive()
            except Closed:
                return
            if got is not None:
                self._remember(got.peer)
                self._take(got.peer, got.message)

    def _remember(self, who: bytes) -> None:
        with self._lock:
            self._peers.pop(who, None)
            self._peers[who] = None
            if len(self._peers) > _MOST_PEERS:
                del self._peers[next(iter(self._peers))]

    def _take(self, who: bytes, message: object) -> None:
        if not isinstance(message, Call):
            self._strange += 1
            if self._strange <= _MOST_LOGGED:
                _log.warning("a %s came, which is no call", type(message).__name__)
            return
        try:
            handle = _METHODS.get(message.method)
            if handle is None:
                raise OptionError(f"the daemon knows no {message.method!r}.", "Use the same edgert on both ends.")
            handle(self, who, message)
        except ModelNotServed as error:
            if self._leaving:  # it may just not have come to loading that model
                self._send(who, _failed(message, stopping()))
            elif not self._hold(who, message):
                self._send(who, _failed(message, error))
        except EdgertError as error:
            self._send(who, _failed(message, error))
        except Exception as error:  # noqa: BLE001 - a fault of ours must reach the caller, and must not end this thread
            _log.exception("an unexpected error in %r", message.method)
            failure = RunFailed(f"the daemon failed in {message.method!r}: {type(error).__name__}: {error}.")
            self._send(who, _failed(message, failure))

    def _hold(self, who: bytes, call: Call) -> bool:
        """Let a call wait for the end of the start; False when that is past, or too many wait."""
        with self._lock:
            if self._held is None or len(self._held) >= _MOST_HELD:
                return False
            self._held.append((who, call))
            return True

    def _run(self, who: bytes, call: Call) -> None:
        def done(outcome: Result | EdgertError) -> None:
            if isinstance(outcome, EdgertError):
                self._send(who, _failed(call, outcome))
            else:
                self._send(who, Answer(call.request, {"receipt": outcome.receipt.to_json()}, dict(outcome)))

        priority = checked_priority(call.facts.get("priority", 0))
        self._service.submit(_model(call), own_all(call.values), call.deadline_s, done, priority=priority)

    def _signature(self, who: bytes, call: Call) -> None:
        with self._service.roster.lend(_model(call)) as loaded:
            model = loaded.model
            facts = {
                "version": loaded.version.number,
                "inputs": [asdict(value) for value in model.inputs],
                "outputs": [asdict(value) for value in model.outputs],
                "optional_inputs": list(model.plan.optional_inputs),
            }
        self._send(who, Answer(call.request, facts))

    def _tell(self, who: bytes, call: Call) -> None:
        dropped = {"malformed": self._inbox.dropped + self._strange, "keys_refused": self._inbox.refused}
        self._send(who, Answer(call.request, {**self._status(), **dropped}))

    def _send(self, who: bytes, message: Answer | Bye) -> None:
        try:
            self._inbox.answer(who, message)
        except WireError as error:
            if isinstance(message, Answer):
                self._send(who, Answer(message.request, error=errors.to_json(error)))
        except (TransportError, errors.Overloaded, Closed) as error:  # its own deadline, or the break, tells the client
            _log.info("an answer was not taken: %s", error.message)


_METHODS: Mapping[str, Callable[[Front, bytes, Call], None]] = {
    "run": Front._run,
    "signature": Front._signature,
    "status": Front._tell,
}


def _model(call: Call) -> str:
    name = call.facts.get("model")
    if not isinstance(name, str):
        raise WireError(f"a {call.method!r} names no model.")
    return name


def _failed(call: Call, error: EdgertError) -> Answer:
    return Answer(call.request, {STOPPING: True} if isinstance(error, Closed) else {}, error=errors.to_json(error))


def _make_folder(endpoint: str) -> None:
    where = Endpoint.parse(endpoint)
    if where.scheme != "ipc" or where.address == "*":
        return
    folder: Path = where.path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EndpointError(
            f"endpoint {endpoint} cannot be made: {error.strerror or error}.", "Choose another with --endpoint.",
            endpoint=endpoint,
        ) from error  # fmt: skip
