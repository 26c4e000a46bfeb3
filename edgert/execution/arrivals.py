"""What comes to an executor: routes, and the inputs of requests, which are gathered until nothing is missing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgert.execution.mail import Mail
from edgert.transport.messages import Carried, Leg, Work

_REMEMBERED = 4096
"""Requests that were called off, half-gathered ones, and routes that are over, that are kept in mind."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request whose inputs are all here."""

    work: Work
    """The message that completed it."""
    leg: Leg
    values: Mapping[str, Carried]
    """Inputs by name."""
    homes: tuple[tuple[str, Carried], ...]
    """Each input, and where its slot is given back ('': it lies in none)."""


@dataclass(slots=True)
class _Gathering:
    """Inputs of one request that came so far."""

    attempt: int
    values: dict[str, Carried] = field(default_factory=dict)
    homes: list[tuple[str, Carried]] = field(default_factory=list)


class Arrivals:
    """Belongs to the executor's loop."""

    def __init__(self, mail: Mail) -> None:
        """Args:
        mail: with which the messages come.
        """
        self._mail = mail
        self._routes: dict[int, dict[str, Leg]] = {}
        self._over: OrderedDict[int, None] = OrderedDict()
        """Routes that were forgotten: what still comes for them is nobody's."""
        self._early: dict[int, list[Work]] = {}
        self._gathering: OrderedDict[tuple[int, str], _Gathering] = OrderedDict()
        self._cancelled: OrderedDict[int, int] = OrderedDict()
        self._ahead: OrderedDict[tuple[int, int, str], bool] = OrderedDict()
        """What was taken ahead of its message."""

    def take(self, work: Work) -> Job | None:
        """Keep what came; the request when nothing is missing any more."""
        if self._ahead and self._ahead.pop(_key(work), False):
            return None  # `take_ahead` gave it
        if work.route not in self._routes:
            if work.route in self._over:
                self._mail.discard(work)
            else:
                self._keep_early(work)
            return None
        leg = self._routes[work.route].get(work.segment)
        if leg is None:
            self._mail.odd(work)
            return None
        if self._cancelled.get(work.request, -1) >= work.attempt:
            self._mail.release(work.home, work.values)
            return None
        homes: tuple[tuple[str, Carried], ...] = tuple((work.home, value) for value in work.values.values())
        if all(name in work.values for name in leg.inputs):
            return Job(work, leg, work.values, homes)
        return self._gather(work, leg, homes)

    def take_ahead(self, work: Work) -> Job | None:
        """The request of a message that will come, when it needs no other one; what comes is then passed over."""
        if not self._is_plain(work):
            return None
        job = self.take(work)
        self._ahead[_key(work)] = True
        if len(self._ahead) > _REMEMBERED:
            self._ahead.popitem(last=False)  # whoever was to send it died
        return job

    def rehearse(self, work: Work) -> None:
        """Take once more what was taken before and can be without changing anything."""
        if self._is_plain(work):
            self.take(work)

    def _is_plain(self, work: Work) -> bool:
        """Whether to take it changes nothing here: a route that is known, with no other inputs, and not called off."""
        leg = self._routes.get(work.route, {}).get(work.segment)
        whole = leg is not None and all(name in work.values for name in leg.inputs)
        return whole and self._cancelled.get(work.request, -1) < work.attempt and _key(work) not in self._ahead

    def set_route(self, route: int, legs: tuple[Leg, ...], peer: str) -> list[Job]:
        """Learn a route, or (no legs) forget it.

        Args:
            route: its number.
            legs: of the segments that run here.
            peer: where to answer a sender that listens nowhere.

        Returns:
            Requests that came before it and miss nothing now.
        """
        if not legs:
            self._forget(route)
            return []
        self._routes[route] = {leg.segment: _answered_at(leg, peer) for leg in legs}
        for endpoint in {send.endpoint for leg in self._routes[route].values() for send in leg.sends}:
            self._mail.expect(endpoint)
        return [job for work in self._early.pop(route, ()) if (job := self.take(work)) is not None]

    def forget(self, caller: str) -> list[int]:
        """A caller is gone: forget its routes, and give their numbers."""
        own = [route for route, legs in self._routes.items() if any(leg.caller == caller for leg in legs.values())]
        for route in own:
            self._forget(route)
        return own

    def call_off(self, request: int, attempt: int) -> None:
        """Drop what came for a request, up to and including that attempt, and what still comes."""
        self._cancelled[request] = attempt
        if len(self._cancelled) > _REMEMBERED:
            self._cancelled.popitem(last=False)
        for key in [key for key in self._gathering if key[0] == request and self._gathering[key].attempt <= attempt]:
            release(self._mail, self._gathering.pop(key).homes)

    def _forget(self, route: int) -> None:
        """Let go of a route, and of executors that no other one leads to: they may be dead."""
        legs = self._routes.pop(route, {})
        self._over[route] = None
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)
        for work in self._early.pop(route, ()):
            self._mail.discard(work)
        for endpoint in _readers(legs) - {each for others in self._routes.values() for each in _readers(others)}:
            self._mail.drop(endpoint)

    def _keep_early(self, work: Work) -> None:
        """The executor before us may be faster than the caller that tells the route."""
        self._early.setdefault(work.route, []).append(work)
        if len(self._early) > _REMEMBERED:
            for late in self._early.pop(next(iter(self._early))):
                self._mail.discard(late)

    def _gather(self, work: Work, leg: Leg, homes: tuple[tuple[str, Carried], ...]) -> Job | None:
        key = (work.request, work.segment)
        parts = self._gathering.get(key)
        if parts is None or parts.attempt < work.attempt:
            parts = self._gathering[key] = _Gathering(work.attempt)
            if len(self._gathering) > _REMEMBERED:
                release(self._mail, self._gathering.popitem(last=False)[1].homes)
        parts.values.update(work.values)
        parts.homes.extend(homes)
        if not all(name in parts.values for name in leg.inputs):
            return None
        del self._gathering[key]
        return Job(work, leg, parts.values, tuple(parts.homes))


def _key(work: Work) -> tuple[int, int, str]:
    return work.request, work.attempt, work.segment


def _readers(legs: Mapping[str, Leg]) -> set[str]:
    """Executors to which these send; callers have an end of their own."""
    return {send.endpoint for leg in legs.values() for send in leg.sends if send.endpoint != leg.caller}


def release(mail: Mail, homes: tuple[tuple[str, Carried], ...] | list[tuple[str, Carried]]) -> None:
    """Give back the slots in which inputs came."""
    for home, value in homes:
        if home:
            mail.release(home, {"": value})


def _answered_at(leg: Leg, peer: str) -> Leg:
    """The leg with the sender's connection in place of an inbox that it does not have."""
    if leg.caller:
        return leg
    return replace(leg, caller=peer, sends=tuple(replace(send, endpoint=send.endpoint or peer) for send in leg.sends))
