"""Devices of other hosts, which the hosts file names (`hosts`): what they are, and how models are tried on them.

What is prepared, checked and timed in a child process for a device of this box goes to the executor there for one of
those: `FarChild` stands in the place of the child.
"""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgert import formats
from edgert.devices.hosts import Far
from edgert.errors import ChildDied, ChildTimeout, Closed, DeadlineExceeded, EdgertError, TransportError
from edgert.machine import Device, Link, Machine, Reach, device_from_json
from edgert.profile import Target
from edgert.tensor import Data
from edgert.transport.keys import Keyring
from edgert.transport.line import Line
from edgert.transport.messages import Call
from edgert.transport.wire import Message

_log = logging.getLogger(__name__)
ASK_S = 2.0
"""For a host that was named to say what it has; one that is off costs so long when somebody probes."""
LINK_S = 20.0
"""For one array to cross a link that is worth anything."""
_BYTES = (1 << 10, 1 << 18)
"""Sizes at which a link is measured: little in all, since it is done anew each time and the link may be slow."""
_REPEATS = 5
_RESOLVED = 0.1
_HERE = "cpu:0"
_CALL_S = 3600.0
"""For a call without a limit of its own."""


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
        self._line = line_to(far)
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


def line_to(far: Far) -> Line:
    """A connection to an executor on another host.

    Raises:
        OptionError: there are no keys for it.
    """
    if not far.endpoint.startswith("tcp:"):
        return Line(far.endpoint)
    ring = Keyring()
    return Line(far.endpoint, keys=ring.own(), server_key=ring.key_of(far.key))


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


def joined(machine: Machine, hosts: Mapping[str, tuple[Far, ...]]) -> Machine:
    """The machine with the devices of other hosts and the links to them, measured now. A host that does not answer, or
    does not let us in, is a reach that failed, with the reason. Takes up to `ASK_S` when one is off.
    """
    asked = [(host, far) for host, executors in hosts.items() for far in executors]
    if not asked:
        return machine
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: _ask(*one), asked))
    ways = {link.sink: (link, back) for link in machine.links for back in machine.links
            if link.source == back.sink == _HERE and link.sink == back.source}  # fmt: skip
    devices, reaches, links = list(machine.devices), list(machine.reaches), list(machine.links)
    for device, found in answers:
        reaches += found
        if device is None:
            continue
        try:
            into, back = _links(device)
        except EdgertError as error:
            _log.warning("%s is left out: %s", device.id, error)
            reaches.append(Reach("none", device.id, "", "failed", str(error)))
            continue
        devices.append(replace(device, attributes={**device.attributes, "link": _class(into, back)}))
        links += [into, back]
        for other_into, other_back in ways.values():
            links += [_through(back, other_into), _through(other_back, into)]
        ways[device.id] = into, back
    return replace(machine, devices=tuple(devices), reaches=tuple(reaches), links=tuple(links))


def _links(device: Device) -> tuple[Link, Link]:
    """The way to a device of another host and the way back, each fitted to two sizes.

    Raises:
        ChildError: it went away.
    """
    far = Far.of(device)
    assert far is not None  # it was found there
    child = FarChild(far, f"link to {device.id}")
    try:
        child.call("empty", timeout_s=LINK_S)  # waits until it is up
        times: dict[str, list[float]] = {"transfer": [], "fetch": []}
        for size in _BYTES:
            for method, medians in times.items():
                medians.append(statistics.median([_crossing(child, device, method, size) for _ in range(_REPEATS)][1:]))
        return _fitted(_HERE, device.id, times["transfer"]), _fitted(device.id, _HERE, times["fetch"])
    finally:
        child.close()


def _crossing(child: FarChild, device: Device, method: str, size: int) -> float:
    data: dict[str, Data] = {"x": np.zeros(size, np.uint8)} if method == "transfer" else {}
    started_s = time.perf_counter()
    child.call(method, {"device": asdict(device), "bytes": size}, data, timeout_s=LINK_S)
    return time.perf_counter() - started_s


def _fitted(source: str, sink: str, medians: Sequence[float]) -> Link:
    """The link on which both sizes take what they took, and the larger one that in any case.

    What is less than `_RESOLVED` of the time cannot be told from noise: a link is taken for no faster than ten times
    what crossed it, or the chance that a small array was late would make an infinite bandwidth of it.
    """
    small_s, large_s = medians
    rate = (_BYTES[1] - _BYTES[0]) / max(large_s - small_s, _RESOLVED * large_s)
    return Link(source, sink, max(large_s - _BYTES[1] / rate, 1e-6), rate)


def _through(first: Link, second: Link) -> Link:
    """From one device to another by way of this box."""
    rate = 1 / (1 / first.bandwidth_bytes_per_s + 1 / second.bandwidth_bytes_per_s)
    return Link(first.source, second.sink, first.latency_s + second.latency_s, rate)


def _class(into: Link, back: Link) -> str:
    """Roughly how good the links are, in powers of four: part of the machine's fingerprint, so that plans are made anew
    when a network has become another.
    """
    latency_s = into.latency_s + back.latency_s
    rate = min(into.bandwidth_bytes_per_s, back.bandwidth_bytes_per_s)
    return f"4^{round(math.log(latency_s, 4))} s, 4^{round(math.log(rate, 4))} B/s"


def _ask(host: str, far: Far) -> tuple[Device | None, list[Reach]]:
    try:
        line = line_to(far)
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
