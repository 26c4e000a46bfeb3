"""The executors of this process, and the one loop that talks to them.

Everything that changes is changed in the loop's thread: `post` brings work there. So each message, end of a process,
passed limit and new request is met one after another, and no request can be answered twice.

| what happened | seen by | at once |
|---|---|---|
| a process ended | its pidfd, in a thread that waits for nothing else | yes |
| a run takes too long | the heartbeat that says how long it runs | limit + one heartbeat |
| a process was stopped | three heartbeats are missing and the kernel says so | 3 heartbeats |
| a process (or box) is silent | nothing was heard for `Member.lapse_s` | that |
| a preparation hangs | no answer within its limit | limit |
| garbage | whoever reads it | yes |

An executor is shared by all models of the process that use its device.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgert import errors, formats
from edgert.devices.host import source_to_json
from edgert.errors import Closed, PrepareRefused
from edgert.execution.customer import Customer
from edgert.execution.events import EventKind, Events
from edgert.execution.launcher import Launcher
from edgert.execution.limits import Limits
from edgert.execution.loop import Loop
from edgert.execution.mail import Mail, fresh_endpoint
from edgert.execution.member import Held, Member, Order, Place, Transport, kill
from edgert.machine import Device
from edgert.tensor import Data
from edgert.transport import forked
from edgert.transport.memory import SHORTAGES
from edgert.transport.messages import (
    Answer,
    Bye,
    Call,
    Done,
    Failed,
    Free,
    Heartbeat,
    Message,
    Prepare,
    Prepared,
    Refused,
    Welcome,
)

_log = logging.getLogger(__name__)
SERVICE = "edgert.execution.executor:Hosted"
_MOST_FAILURES = 3
"""Lives that may end over preparing one segment, before it is refused for good."""


class Fleet:
    """Executors by place. One a process (`shared`), but for tests."""

    def __init__(
        self, limits: Limits | None = None, transport: Transport = "ipc", service: str = SERVICE
    ) -> None:  # fmt: skip
        """Args:
        limits: else the defaults.
        transport: over which this process and the executors that it starts talk.
        service: what a child runs; another one is of use to tests alone.
        """
        self.limits, self.transport = limits or Limits(), transport
        self.events = Events()
        self._mail = Mail.bound(fresh_endpoint(transport))
        self._members: dict[Place, Member] = {}
        self._customers: dict[str, Customer] = {}
        """Name of a segment -> who ordered it."""
        self._requests: dict[int, Customer] = {}
        self._first = self._last = random.getrandbits(30) << 32
        self._numbers = itertools.count(self._first)
        self._asked: dict[int, tuple[Member, str, int]] = {}
        self._closed = False
        self._looked_s = self.awake_s = time.monotonic()
        """`awake_s`: since when it is looked without a break; a busy or suspended machine makes breaks."""
        self.loop = Loop(self._mail, self, "edgert fleet")
        self._launcher = Launcher(
            self.loop, self.limits, transport, service,
            lost=lambda member, reason: self.fault(member, "lost", reason), heard=self.take,
        )  # fmt: skip
        # The sockets close themselves at the interpreter's end: the loop must have ended before. What is registered
        # last goes first, and the sockets registered when `Mail` was made.
        atexit.register(self.close)
        self.loop.start()

    @property
    def endpoint(self) -> str:
        """Where executors answer."""
        return self._mail.endpoint

    @property
    def mail(self) -> Mail:
        """Of the loop: for calls from the loop alone."""
        return self._mail

    def request(self, customer: Customer) -> int:
        """A new request's number; from the loop."""
        self._last = number = next(self._numbers)
        self._requests[number] = customer
        return number

    def over(self, number: int) -> None:
        """A request was answered; what still comes for it is thrown away."""
        self._requests.pop(number, None)

    def order(self, place: Place, device: Device, order: Order, customer: Customer) -> Member:
        """Have a segment prepared at a place, now and after every restart; from the loop."""
        member = self._members.get(place)
        if member is None:
            member = self._members[place] = Member(place, device, self.limits)
            self._start(member)
        self._customers[order.name] = customer
        member.held[order.name] = held = Held(order)
        if member.up:
            self._ask(member, held)
        return member

    def release(self, member: Member, name: str) -> None:
        """A segment is not needed any more; an executor that holds none is ended. From the loop."""
        self._customers.pop(name, None)
        member.held.pop(name, None)
        if member.up:
            number = next(self._numbers)
            self._mail.send(
                member.endpoint, Call(number, "release", {"segments": [name], "reply": self._reply(member)})
            )
        if not member.held and self._members.pop(member.place, None) is not None:
            self._end(member)

    def fault(self, member: Member, kind: EventKind, reason: str) -> None:
        """Give a member up: kill what is left of it, tell who used it, and try it again later. From the loop."""
        if member.state in ("down", "closed"):
            return
        now_s = time.monotonic()
        if member.started_s and now_s - member.started_s > self.limits.calm_s:
            member.faults = 0
        member.faults += 1
        for held in member.held.values():
            held.failures += held.asked_s is not None
            held.ready, held.asked_s, held.runs, held.taken = False, None, 0, Counter()
        member.state, member.reason = "down", reason
        wait_s = self.limits.backoff(member.faults)
        self.loop.after(wait_s, lambda: self._start(member))
        self.events.add(kind, f"{member.place}: {reason}", device=member.device.id)
        for customer in {id(each): each for each in self._users(member)}.values():
            customer.lost(member, kind, reason)
        _log.info("%s is tried again in %.1f s", member.place, wait_s)
        self._put_away(member)

    def close(self) -> None:
        """End all executors; at the end of the interpreter it happens by itself. Harmless twice."""

        def last() -> None:
            self._closed = True
            for member in list(self._members.values()):
                self._end(member)
            self._members.clear()

        atexit.unregister(self.close)
        self.loop.close(last)

    # The loop ------------------------------------------------------------------------------------------------------

    def look(self) -> float | None:
        """See `loop.Minder`: judge every member by its heartbeats."""
        self._look_after(time.monotonic())
        return self.limits.heartbeat_s if any(member.up for member in self._members.values()) else None

    def _look_after(self, now_s: float) -> None:
        """Judge every member by its heartbeats, once in a while."""
        gap_s = now_s - self._looked_s
        if gap_s < self.limits.heartbeat_s / 2:
            return
        self._looked_s = now_s
        if gap_s > 4 * self.limits.heartbeat_s:
            self.awake_s = now_s
        for member in list(self._members.values()):
            if not member.up:
                continue
            member.excused_s = self.awake_s
            complaint = member.complaint(now_s)
            if complaint is not None:
                self.fault(member, *complaint)

    def take(self, message: Message) -> None:  # noqa: PLR0912 - one branch a message: the table reads best whole
        """See `loop.Minder`."""
        match message:
            case Done() | Failed():
                customer = self._requests.get(message.request)
                if customer is None:
                    self._unknown(message)
                elif isinstance(message, Done):
                    customer.done(message)
                else:
                    customer.failed(message)
            case Heartbeat():
                self._heard(message)
            case Free():
                self._mail.freed(message)
            case Answer():
                pass  # to a release: nobody waits for it
            case Welcome():
                self._welcome(message)
            case Prepared(request) | Refused(request):
                self._answered(request, message)
            case Bye(_, life, reason):
                for member in self._members.values():
                    if member.life == life:
                        self.fault(member, "drained", reason)
            case _:
                self._mail.odd(message)

    def _unknown(self, answer: Done | Failed) -> None:
        """An answer to no request: late, since it was answered otherwise, or one that was never asked."""
        owner = self._customers.get(answer.segment)
        if owner is not None and not self._first <= answer.request <= self._last:
            owner.garbled(answer.segment, f"an answer to request {answer.request}, which was never made")
        self._mail.discard(answer)

    def _heard(self, beat: Heartbeat) -> None:
        for member in self._members.values():
            if member.life == beat.life and member.up:
                member.heard_s, member.beat = time.monotonic(), beat
                for name, (runs, mean_s) in beat.facts.get("segments", {}).items():
                    held = member.held.get(name)
                    if held is not None and int(runs) >= held.runs:  # answers may overtake it: then it is older
                        held.runs, held.mean_s = int(runs), float(mean_s)

    def _users(self, member: Member) -> list[Customer]:
        return [self._customers[name] for name in member.held if name in self._customers]

    # Life of a member ----------------------------------------------------------------------------------------------

    def _start(self, member: Member) -> None:
        if not self._closed and member.state == "down":
            self._launcher.start(member)

    def _welcome(self, message: Welcome) -> None:
        for member in self._members.values():
            if member.endpoint == message.endpoint and member.state == "starting":
                self._launcher.welcome(member, message)
                self.events.add("started", f"{member.place}, process {message.pid}", device=member.device.id)
                for held in member.held.values():
                    self._ask(member, held)

    def _ask(self, member: Member, held: Held) -> None:
        order = held.order
        if held.failures >= _MOST_FAILURES:
            reason = f"{order.target}: {held.failures} executors in a row ended while they prepared it."
            refusal = PrepareRefused(reason, "Look at `edgert probe --refresh`.", target=str(order.target))
            self._customers[order.name].refused(member, order.name, refusal)
            return
        held.asked_s = time.monotonic()
        number = next(self._numbers)
        self._asked[number] = (member, order.name, member.life)
        facts: dict[str, Any] = {
            "source": source_to_json(order.source), "target": str(order.target), "device": asdict(order.device),
            "cache": order.cache, "model": order.model, "reply": self._reply(member),
        }  # fmt: skip

        def send() -> None:
            try:
                files = {} if member.near else _contents(order.source.path)
            except OSError as error:
                self.loop.post(partial(self._unread, number, order, error, send))
                return
            self._mail.send(member.endpoint, Prepare(number, order.name, facts, files))

        if member.near:
            send()
        else:
            self.loop.apart_soon(send)  # a large model takes a while to read

    def _unread(self, number: int, order: Order, error: OSError, again: Callable[[], None]) -> None:
        """The model's files, which another host's executor needs, cannot be read."""
        if error.errno in SHORTAGES:
            _log.warning("%s cannot be read: %s", order.source.path, error)
            self.loop.after(self.limits.backoff_s, lambda: self.loop.apart_soon(again))
            return
        reason = f"{order.target}: {order.source.path} cannot be read: {error.strerror or error}."
        refusal = PrepareRefused(reason, "Put the model's files back, and load it again.", target=str(order.target))
        self._answered(number, Refused(number, order.name, errors.to_json(refusal)))

    def _reply(self, member: Member) -> str:
        """Where a member answers; '' is the connection over which it was asked."""
        return "" if member.place.endpoint else self.endpoint

    def _answered(self, request: int, answer: Prepared | Refused) -> None:
        member, name, life = self._asked.pop(request, (None, "", 0))
        held = member.held.get(name) if member is not None else None
        if member is None or held is None or life != member.life or name not in self._customers:
            return
        held.asked_s = None
        if isinstance(answer, Prepared):
            held.ready, held.failures = True, 0
            self._customers[name].ready(member, name)
        else:
            self._customers[name].refused(member, name, errors.from_json(answer.error))

    def _put_away(self, member: Member) -> None:
        """Kill what is left, and let a thread wait for its end."""
        if member.endpoint:
            self._mail.drop(member.endpoint)
        member.unwatch()
        rest = kill(member)
        member.life, member.pid, member.beat, member.endpoint = 0, 0, None, ""
        self._asked = {number: asked for number, asked in self._asked.items() if asked[0] is not member}
        if rest is None:
            return
        if self._closed:
            rest()  # at the end of the interpreter no thread can be started; it was killed already
        else:
            self.loop.apart_soon(rest)

    def _end(self, member: Member) -> None:
        self._launcher.part(member)
        member.state = "closed"
        self._put_away(member)


_shared: Fleet | None = None
_users = 0
_lock = threading.Lock()


def _forget() -> None:
    """In a process that was forked: the fleet is its parent's."""
    global _shared, _users, _lock
    _shared, _users, _lock = None, 0, threading.Lock()


forked.forget(_forget)


def shared() -> Fleet:
    """The fleet of this process, made for the first who asks; each who asked calls `give_back` once."""
    global _shared, _users  # noqa: PLW0603 - one registry a process is the point
    with _lock:
        if _shared is None:
            _shared = Fleet()
        _users += 1
        return _shared


def give_back(fleet: Fleet) -> None:
    """The caller needs it no more; the last one ends it."""
    global _shared, _users  # noqa: PLW0603 - as in `shared`
    with _lock:
        if fleet is not _shared:
            fleet.close()
            return
        _users -= 1
        if _users:
            return
        _shared = None
    fleet.close()


def _contents(model: Path) -> dict[str, Data]:
    """A model file and what it refers to, by their names in one folder."""
    files = {model.name: model, **dict(formats.companions(model))}
    return {name: np.fromfile(path, np.uint8) for name, path in files.items()}


def closed(name: str) -> Closed:
    """The error of a request to something that was closed."""
    return Closed(f"the model {name} was closed.", "Load it again.")
