"""`edgert.connect()`: models that a daemon on this box has loaded, as if they were here.

    with edgert.connect() as daemon:
        result = daemon.run("mobilenet", {"input": array})
        result["output"], result.receipt

A client owns one connection and one thread; any number of threads may use it. When the daemon goes away, requests that
were with it end in `PeerUnreachable` at once; the connection comes back by itself when the daemon does.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgert import options
from edgert.errors import EdgertError, EndpointError, InputError, OptionError, WireError
from edgert.execution.fair import checked_priority
from edgert.feed import Feeder
from edgert.graph import Value
from edgert.plan import Receipt, value_from_json
from edgert.result import Inputs, Result
from edgert.tensor import Data
from edgert.transport.keys import Keyring
from edgert.transport.line import Line
from edgert.transport.messages import Answer, Call

__all__ = ["Client", "ServedModel", "connect", "default_endpoint"]

SYSTEM_ENDPOINT = "ipc:///run/edgert/edgert.sock"
"""Of the daemon that systemd starts."""


def default_endpoint() -> str:
    """EDGERT_ENDPOINT; else the system's daemon where there is one; else that of this user.

    Raises:
        EndpointError: this user's would be in a folder of somebody else's, who may listen there in its place.
    """
    chosen = os.environ.get("EDGERT_ENDPOINT")
    if chosen:
        return chosen
    if Path(SYSTEM_ENDPOINT.removeprefix("ipc://")).exists():
        return SYSTEM_ENDPOINT
    runtime = os.environ.get("XDG_RUNTIME_DIR") or _own_folder(f"/tmp/edgert-{os.getuid()}")
    return f"ipc://{runtime}/edgert/edgert.sock"


def _own_folder(path: str) -> str:
    """The path of a folder that is this user's alone. It is made if it is not there, so that nobody else can."""
    with suppress(OSError):  # it is there, or there is no place for it and nobody to be found
        os.mkdir(path, 0o700)
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise EndpointError(
                f"{path} is not a folder of this user alone: user {found.st_uid}, mode {stat.filemode(found.st_mode)}.",
                "Have it removed, or choose an endpoint: set EDGERT_ENDPOINT or XDG_RUNTIME_DIR.",
                endpoint=f"ipc://{path}/edgert/edgert.sock",
            )
    return path


def connect(endpoint: str | None = None, *, timeout_s: float = 10.0, key: str | None = None) -> Client:
    """A daemon's models.

    Args:
        endpoint: where it listens, such as 'ipc:///run/edgert/edgert.sock'; else `default_endpoint`.
        timeout_s: how long to wait for it, and for every answer that is asked for without a limit of its own.
        key: of the daemon's machine where the endpoint is tcp: the name that `edgert keys allow` gave it here, or the
            key itself; else EDGERT_ENDPOINT_KEY.

    Raises:
        PeerUnreachable: nobody answers there within `timeout_s`.
        PeerRefused: it does not know this end's key.
        VersionMismatch: it is of another release of edgert; says which of the two is to be upgraded.
        OptionError: that is no endpoint, or there are no keys for it.
    """
    client = Client(endpoint or default_endpoint(), timeout_s=timeout_s, key=key)
    try:
        client.status()
    except BaseException:
        client.close()
        raise
    return client


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives."""

    version: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    optional_inputs: tuple[str, ...]
    """Those that may be left out."""


class Client:
    """A connection to a daemon. Thread-safe; a context manager. Made by `connect`."""

    def __init__(
        self, endpoint: str, *, timeout_s: float = 10.0, key: str | None = None, keyring: Keyring | None = None
    ) -> None:
        """Start connecting; returns at once. Arguments as for `connect`; the keyring is else the user's own."""
        self.endpoint = endpoint
        self._timeout_s = _checked_s(timeout_s)
        self._line = _line(endpoint, key, keyring)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Signature, Feeder]] = {}
        self._dropped = weakref.finalize(self, Line.close, self._line)

    def models(self) -> tuple[str, ...]:
        """Names of the models that answer."""
        return tuple(name for name, state in self.status()["models"].items() if state["version"] is not None)

    def status(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """How the daemon is: 'state', 'healthy', 'models' by name with the reason of each that does not answer, counts.

        Raises:
            PeerUnreachable, DeadlineExceeded: it does not answer.
        """
        return dict(self._ask("status", {}, timeout_s).facts)

    def model(self, name: str) -> ServedModel:
        """One of its models.

        Raises:
            ModelNotServed: it has none of that name that answers; says why.
        """
        self._signature(name)
        return ServedModel(self, name)

    def signature(self, name: str) -> Signature:
        """What the version of a model that answers now takes and gives. Raises as `model`."""
        self._forget(name)
        return self._signature(name)[0]

    def run(self, name: str, inputs: Inputs, *, timeout_s: float | None = None, priority: int = 0) -> Result:
        """One inference.

        Args:
            name: of the model.
            inputs: as for `edgert.Model.run`.
            timeout_s: how long to wait for the answer; the daemon does not begin what nobody waits for any more.
            priority: -100 to 100: higher goes first, before other models' and clients' requests too. Lower ones that
                wait get a tenth.

        Returns:
            Outputs by name, and `.receipt`. The arrays are the caller's.

        Raises:
            InputError: a name, shape or element type does not fit.
            ModelNotServed: there is no such model, or it does not load.
            Overloaded: too many requests wait; this one did not run.
            DeadlineExceeded: no answer in time.
            PeerUnreachable: the daemon is not there, or went away while it had this request.
            Closed: the daemon is stopping, or this client was closed.
            TargetError: every target refused these inputs.
        """
        seen = self._signature(name)
        try:
            return self.submit(name, inputs, timeout_s=timeout_s, priority=priority).result()
        except InputError:
            # A new version may take something else than the one that the inputs were prepared for.
            if self.signature(name) == seen[0]:
                raise
            return self.submit(name, inputs, timeout_s=timeout_s, priority=priority).result()

    def submit(self, name: str, inputs: Inputs, *, timeout_s: float | None = None, priority: int = 0) -> Future[Result]:
        """As `run`, without waiting for the answer.

        Raises:
            OptionError, InputError, ModelNotServed, Closed: at once; whatever else `run` raises comes out of the
                future.
        """
        limit_s = self._limit_s(timeout_s)
        facts = {"model": name, "priority": checked_priority(priority)}
        feed = self._signature(name)[1](inputs)
        call = Call(next(self._numbers), "run", facts, feed, time.monotonic() + limit_s)
        answered = self._line.send(call, limit_s)
        result: Future[Result] = Future()
        result.set_running_or_notify_cancel()
        answered.add_done_callback(lambda future: _settle(result, future))
        return result

    def close(self) -> None:
        """End the connection; what is under way ends in `Closed`. Closing twice is harmless."""
        self._dropped()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<edgert.Client {self.endpoint}{'' if self._dropped.alive else ': closed'}>"

    def _ask(self, method: str, facts: Mapping[str, Any], timeout_s: float | None = None) -> Answer:
        limit_s = self._limit_s(timeout_s)
        call = Call(next(self._numbers), method, facts, {}, time.monotonic() + limit_s)
        return self._line.send(call, limit_s).result()

    def _limit_s(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else _checked_s(timeout_s)

    def _signature(self, name: str) -> tuple[Signature, Feeder]:
        with self._lock:
            known = self._known.get(name)
        if known is None:
            known = _signature(self._ask("signature", {"model": name}))
            with self._lock:
                self._known[name] = known
        return known

    def _forget(self, name: str) -> None:
        with self._lock:
            self._known.pop(name, None)


class ServedModel:
    """One model of a daemon: `edgert.Model`'s way to run, over a `Client`."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self.name = client, name

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Names, element types and shapes of what `run` takes."""
        return self._client._signature(self.name)[0].inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Names, element types and shapes of what `run` gives."""
        return self._client._signature(self.name)[0].outputs

    def run(self, inputs: Inputs, *, timeout_s: float | None = None, priority: int = 0) -> Result:
        """As `Client.run`."""
        return self._client.run(self.name, inputs, timeout_s=timeout_s, priority=priority)

    def submit(self, inputs: Inputs, *, timeout_s: float | None = None, priority: int = 0) -> Future[Result]:
        """As `Client.submit`."""
        return self._client.submit(self.name, inputs, timeout_s=timeout_s, priority=priority)

    def __repr__(self) -> str:
        return f"<edgert.ServedModel {self.name} at {self._client.endpoint}>"


def _checked_s(timeout_s: float) -> float:
    return options.number("timeout_s", timeout_s, "Pass seconds, 0 or more.")


def _line(endpoint: str, key: str | None, keyring: Keyring | None) -> Line:
    """A connection to a daemon.

    Raises:
        EndpointError, OptionError: that is no endpoint, or there are no keys for it.
    """
    if not endpoint.startswith("tcp:"):
        return Line(endpoint)
    ring = keyring or Keyring()
    peer = key or os.environ.get("EDGERT_ENDPOINT_KEY")
    if not peer:
        raise OptionError(
            f"{endpoint} is not used without keys, and none was named for the daemon there.",
            "edgert keys allow NAME KEY, then edgert.connect(..., key=NAME), or set EDGERT_ENDPOINT_KEY=NAME.",
        )
    return Line(endpoint, keys=ring.own(), server_key=ring.key_of(peer))


def _settle(result: Future[Result], answered: Future[Answer]) -> None:
    """Turn the daemon's answer into a result, in the connection's thread."""
    error = answered.exception()
    if error is not None:
        result.set_exception(error)
        return
    answer = answered.result()
    try:
        receipt = Receipt.from_json(answer.facts["receipt"])
        outputs: dict[str, Data] = dict(answer.values)  # type: ignore[arg-type]  # `Line` lets no Descriptor through
    except (KeyError, TypeError, ValueError, EdgertError) as reason:
        result.set_exception(WireError(f"the daemon's answer is malformed: {reason!r}.", "Use the same edgert."))
        return
    result.set_result(Result(outputs, receipt))


def _signature(answer: Answer) -> tuple[Signature, Feeder]:
    try:
        facts = answer.facts
        inputs, outputs = (tuple(value_from_json(item) for item in facts[side]) for side in ("inputs", "outputs"))
        signature = Signature(int(facts["version"]), inputs, outputs, tuple(facts["optional_inputs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"the daemon's answer is malformed: {error!r}.", "Use the same edgert on both ends.") from error
    return signature, Feeder(signature.inputs, signature.optional_inputs)
