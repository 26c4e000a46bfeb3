"""Devices of other hosts: `edgert executor --listen tcp://...` there, named in the hosts file here.

    {"hosts": {"boxb": {"endpoints": ["tcp://192.168.7.2:5599"], "key": "boxb"}}}

The file is `EDGERT_HOSTS`, else `hosts.json` in the user's configuration folder of edgert; a key is the name of a peer
in the keyring, or the key itself. The device `npu:0` of the host `boxb` is `boxb.npu:0` here. What is prepared, checked
and timed in a child process for a device of this box goes to the executor there for one of those: `FarChild` stands in
the place of the child.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgert import formats
from edgert.errors import ChildDied, ChildTimeout, Closed, DeadlineExceeded, EdgertError, OptionError, TransportError
from edgert.machine import Device, Machine, Reach, device_from_json
from edgert.profile import Target
from edgert.tensor import Data
from edgert.transport.keys import Keyring
from edgert.transport.line import Line
from edgert.transport.messages import Call
from edgert.transport.wire import Message

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z][a-z0-9-]*")
ASK_S = 2.0
"""For a host that was named to say what it has; one that is off costs so long when somebody probes."""
_CALL_S = 3600.0
"""For a call without a limit of its own."""


@dataclass(frozen=True, slots=True)
class Far:
    """An executor on another host."""

    endpoint: str
    key: str
    """Its public key, or the name of a peer in the keyring; '' where the endpoint is not tcp."""

    @classmethod
    def of(cls, device: Device) -> Far | None:
        """Where a device is, if it is not of this box."""
        endpoint = device.attributes.get("executor", "")
        return cls(endpoint, device.attributes.get("executor_key", "")) if endpoint else None

    def line(self) -> Line:
        """A connection to it.

        Raises:
            OptionError: there are no keys for it.
        """
        if not self.endpoint.startswith("tcp:"):
            return Line(self.endpoint)
        ring = Keyring()
        return Line(self.endpoint, keys=ring.own(), server_key=ring.key_of(self.key))


class FarChild:
    """What `Remote` asks of a child, asked of an executor on another host, which has a child of its own for it."""

    pid = 0
    """There is no process of that kind here."""

    def __init__(self, far: Far, name: str) -> None:
        """Start to connect.

        Raises:
            OptionError: there are no keys for it.
        """
        self.name = f"{name} at {far.endpoint}"
        self.alive = True
        self._line = far.line()
        self._guest = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    def call(
        self,
        method: str,
        body: Mapping[str, Any] | None = None,
        data: Mapping[str, Data] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Message:
        """As `Child.call`.

        Raises:
            ChildTimeout: no answer in time.
            ChildDied: the host, its executor or the child there is gone.
            EdgertError: whatever came of it there.
        """
        limit_s = _CALL_S if timeout_s is None else timeout_s
        values = dict(data or {})
        facts: dict[str, Any] = {"guest": self._guest, "method": method, "body": dict(body or {})}
        if method == "prepare":
            files = _files(Path(facts["body"]["source"]["path"]))
            facts["files"] = {f"file {name}": name for name in files}
            values |= {f"file {name}": content for name, content in files.items()}
        try:
            request = Call(next(self._numbers), "host", facts, values, time.monotonic() + limit_s)
            answer = self._line.send(request, limit_s).result()
        except DeadlineExceeded as error:
            self.alive = False
            raise ChildTimeout(f"{self.name}: {error.message}", timeout_s=limit_s) from error
        except (TransportError, Closed) as error:
            self.alive = False
            raise ChildDied(f"{self.name}: {error.message}", error.remedy, signal=None, exit_code=None) from error
        return _ours(dict(answer.facts), body), dict(answer.values)  # type: ignore[arg-type]

    def close(self) -> None:
        """Let the executor there end the child. Harmless when it is gone."""
        with suppress(EdgertError):
            limit_s = ASK_S
            self._line.send(
                Call(next(self._numbers), "host", {"guest": self._guest, "method": "end", "body": {}}, {},
                     time.monotonic() + limit_s), limit_s,
            ).result()  # fmt: skip
        self.alive = False
        self._line.close()


def _files(model: Path) -> dict[str, Data]:
    """A model file and what it refers to, by their names in one folder."""
    files = {model.name: model, **dict(formats.companions(model))}
    return {name: np.fromfile(path, np.uint8) for name, path in files.items()}


def _ours(answer: dict[str, Any], asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was prepared there ran on a device that has another name here."""
    if asked and "ran_on" in answer:
        ours = Target.parse(str(asked["target"])).device
        answer["ran_on"] = {ours if name == answer["device"] else name: n for name, n in answer["ran_on"].items()}
    return answer


def named(path: Path | None = None) -> dict[str, tuple[Far, ...]]:
    """Host -> its executors, from the hosts file; empty without one.

    Raises:
        OptionError: the file is not what the module's page says.
    """
    path = path or _default_path()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {
            host: tuple(Far(str(endpoint), str(facts.get("key", ""))) for endpoint in facts["endpoints"])
            for host, facts in content["hosts"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"the hosts file {path} cannot be read: {error!r}.",
            'Write {"hosts": {"boxb": {"endpoints": ["tcp://192.168.7.2:5599"], "key": "boxb"}}}.',
        ) from error
    for host in found:
        if not _NAME.fullmatch(host):
            raise OptionError(f"{host!r} in {path} is no name of a host.", "Use small letters, digits and '-'.")
    return found


def joined(machine: Machine, hosts: Mapping[str, tuple[Far, ...]]) -> Machine:
    """The machine with the devices of other hosts; a host that does not answer, or does not let us in, is a reach that
    failed, with the reason. Takes up to `ASK_S` when one is off.
    """
    asked = [(host, far) for host, executors in hosts.items() for far in executors]
    if not asked:
        return machine
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: _ask(*one), asked))
    devices = list(machine.devices)
    reaches = list(machine.reaches)
    for device, ways in answers:
        devices += [device] if device is not None else []
        reaches += ways
    return replace(machine, devices=tuple(devices), reaches=tuple(reaches))


def _ask(host: str, far: Far) -> tuple[Device | None, list[Reach]]:
    try:
        line = far.line()
        try:
            call = Call(1, "about", {}, {}, time.monotonic() + ASK_S)
            facts = line.send(call, ASK_S).result().facts
        finally:
            line.close()
        own = device_from_json(facts["device"])
        key = Keyring().key_of(far.key) if far.key else ""
        attributes = {**own.attributes, "executor": far.endpoint, "executor_key": key}
        device = replace(own, id=f"{host}.{own.id}", name=f"{own.name}, on {host}", attributes=attributes)
        ways = [replace(Reach(**way), device=device.id) for way in facts["reaches"]]
    except EdgertError as error:
        _log.warning("host %s is left out: %s", host, error)
        return None, [Reach("none", host, "", "failed", str(error))]
    except (KeyError, TypeError, ValueError) as error:
        _log.warning("host %s at %s answers what makes no sense: %r", host, far.endpoint, error)
        return None, [Reach("none", host, "", "failed", f"{far.endpoint} answers what makes no sense: {error!r}")]
    return device, ways


def _default_path() -> Path:
    chosen = os.environ.get("EDGERT_HOSTS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgert" / "hosts.json"
