"""An executor's answers to planners on other hosts: what it has, and a child process for each in which they try pieces
of models on its device.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgert import errors
from edgert.errors import ChildError, EdgertError, OptionError, Overloaded
from edgert.machine import Device, Reach
from edgert.profile import Target
from edgert.tensor import Data
from edgert.transport.child import Child
from edgert.transport.line import own_all
from edgert.transport.messages import Answer, Call, Carried

_log = logging.getLogger(__name__)
_HOST = "edgert.devices.host:Host"
_MOST = 8
"""Planners at a time; each has a process."""
_IDLE_S = 120.0
"""A child that nobody asked for so long is ended: its planner may be gone for good."""
_METHODS = frozenset(
    {"prepare", "hold", "run", "time", "throughput", "transfer", "fetch", "release", "empty", "ration"}
)
"""Of the host in the child: none that reads a path of the planner's choice."""


@dataclass(slots=True)
class _Guest:
    child: Child
    used_s: float
    at_work: int = 0


class Guests:
    """Children for planners elsewhere. Thread-safe."""

    def __init__(
        self, device: Device, reaches: Sequence[Reach], unpack: Callable[[Mapping[str, Carried], str], Path]
    ) -> None:
        """Args:
        device: that the executor owns.
        reaches: the ways to run on it, as `probe` found them.
        unpack: writes model files that came, gives the path of the one that is named.
        """
        self._device, self._reaches, self._unpack = device, reaches, unpack
        self._guests: dict[str, _Guest] = {}
        self._lock = threading.Lock()

    def answer(self, call: Call) -> Answer:
        """What comes of a call; may take as long as the call's deadline."""
        try:
            if call.method == "about":
                ways = [asdict(reach) for reach in self._reaches if reach.device == self._device.id]
                return Answer(call.request, {"device": asdict(self._device), "reaches": ways})
            if call.method == "host":
                body, values = self._host(call)
                return Answer(call.request, body, values)
            raise OptionError(f"an executor has no method {call.method!r}.", "Use the same edgert on both ends.")
        except EdgertError as error:
            return Answer(call.request, error=errors.to_json(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.debug("a call that makes no sense: %r", error)  # who sent it is told
            refusal = OptionError(f"the call makes no sense: {error!r}.", "Use the same edgert on both ends.")
            return Answer(call.request, error=errors.to_json(refusal))

    def close(self) -> None:
        """End all children."""
        with self._lock:
            guests, self._guests = self._guests, {}
        for guest in guests.values():
            guest.child.close()

    def _host(self, call: Call) -> tuple[dict[str, Any], dict[str, Data]]:
        name, method, body = str(call.facts["guest"]), str(call.facts["method"]), dict(call.facts["body"])
        if method == "end":
            self._end(name)
            return {}, {}
        if method not in _METHODS:
            raise OptionError(f"an executor does not {method!r} for others.", "Use the same edgert on both ends.")
        values = dict(call.values)
        folder: Path | None = None
        if method == "prepare":
            files = {own: values.pop(key) for key, own in call.facts["files"].items()}
            body = self._own_words(body, files)
            folder = Path(body["source"]["path"]).parent
        elif "device" in body:
            body["device"] = asdict(self._device)
        guest = self._hired(name)
        try:
            left_s = None if call.deadline_s is None else max(0.0, call.deadline_s - time.monotonic())
            answer, made = guest.child.call(method, body, own_all(values), timeout_s=left_s)
        except ChildError:
            self._end(name)
            raise
        finally:
            guest.at_work -= 1
            guest.used_s = time.monotonic()
            if folder is not None:  # a library that maps a file keeps it, though it has no name any more
                shutil.rmtree(folder, ignore_errors=True)
        return {**answer, "device": self._device.id}, made

    def _own_words(self, body: Mapping[str, Any], files: Mapping[str, Carried]) -> dict[str, Any]:
        """An order in which device and paths are those of this box."""
        source = dict(body["source"])
        source["path"] = str(self._unpack(files, Path(source["path"]).name))
        target = replace(Target.parse(str(body["target"])), device=self._device.id)
        return {**body, "source": source, "target": str(target), "device": asdict(self._device), "cache": ""}

    def _hired(self, name: str) -> _Guest:
        now_s = time.monotonic()
        with self._lock:
            idle = [key for key, guest in self._guests.items() if not guest.at_work and now_s - guest.used_s > _IDLE_S]
            ended = [self._guests.pop(key) for key in idle if key != name]
            guest = self._guests.get(name)
            if guest is None:
                if len(self._guests) >= _MOST:
                    raise Overloaded(
                        f"executor of {self._device.id}: {_MOST} planners use it already.", "Try again later.",
                        waiting=_MOST,
                    )  # fmt: skip
                guest = self._guests[name] = _Guest(Child(_HOST, name=f"guest on {self._device.id}"), now_s)
            guest.at_work += 1
        for each in ended:
            each.child.close()
        return guest

    def _end(self, name: str) -> None:
        with self._lock:
            guest = self._guests.pop(name, None)
        if guest is not None:
            guest.child.close()
