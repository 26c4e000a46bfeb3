"""Which way may answer now: told of what was prepared, refused, lost and doubted; tries before it trusts.

    ordered -> prepared -> (tried, where an answer is at hand) -> trusted -> lost or doubted -> prepared again ...

A member that comes back is tried on a request whose answer is known, and answers nobody before it got that right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from edgert.errors import EdgertError
from edgert.execution.customer import Customer
from edgert.execution.events import EventKind
from edgert.execution.fleet import Fleet
from edgert.execution.member import Member
from edgert.execution.ways import Way

_log = logging.getLogger(__name__)


class Ladder:
    """The ways of one plan, best first. Belongs to the fleet's loop."""

    def __init__(
        self, fleet: Fleet, ways: Sequence[Way], name: str, attempt: Callable[[Way, Member], bool],
        refusals: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Args:
        fleet: whose executors hold the segments.
        ways: best first; the first is the plan's own.
        name: of the model.
        attempt: starts a trial of a member on a way; False when there is nothing to try it on.
        refusals: why ways of the plan are not among these.
        """
        self._fleet, self.ways, self._name, self._attempt = fleet, tuple(ways), name, attempt
        self._reason = "; ".join(refusals) or "its executors are being prepared"
        self._degraded = self._begun = False
        self._up: set[int] = set()
        self._lost: set[int] = set()
        """Numbers of ways that lost a member, once at least."""
        self._trying: set[tuple[int, int]] = set()
        """(number of a way, life of a member) under trial."""

    def order(self, customer: Customer) -> None:
        """Have every segment prepared wherever the ways want it."""
        for way in self.ways:
            way.members = [
                [self._fleet.order(place, device, wanted.order, customer) for place, device in wanted.places]
                for wanted in way.wanted
            ]

    def release(self) -> None:
        """Give everything back."""
        for way in self.ways:
            way.leave(self._fleet)
            for wanted, members in zip(way.wanted, way.members, strict=False):
                for member in members:
                    self._fleet.release(member, wanted.order.name)

    def usable(self) -> Way | None:
        """The best way that may answer now."""
        return next((way for way in self.ways if way.usable()), None)

    def settled(self) -> bool:
        """Whether it is known which way answers at first: the best one that is neither refused nor was lost."""
        for number, way in enumerate(self.ways):
            if way.usable():
                return True
            if not way.hopeless() and number not in self._lost:
                return False
        return True

    def why(self, way: Way | None) -> str:
        """Why not the plan's own way; '' when it is that."""
        return "" if way is not None and way.own else self._reason

    def hopeless(self) -> list[str]:
        """Why each way is out for good."""
        return [why for way in self.ways if (why := way.hopeless())]

    def ready(self, member: Member, name: str) -> None:
        """A segment was prepared: try the member where its way has all it needs."""
        for number, way in enumerate(self.ways):
            index = way.index(name)
            if index is None:
                continue
            way.refused.pop((index, str(member.place)), None)
            for other in [other for members in way.members for other in members]:
                if all((own, other.life) in way.trusted for own in _parts(way, other)):
                    continue
                if way.pick(trying=other) is not None:
                    self._try(number, way, other)
        self._tell()

    def refused(self, member: Member, name: str, error: EdgertError) -> None:
        """A segment will never be prepared there."""
        for way in self.ways:
            index = way.index(name)
            if index is not None:
                way.refused[index, str(member.place)] = error.message
                self._fleet.events.add("refused", error.message, device=member.device.id, model=self._name)
        self._tell(f"{error.message}")

    def lost(self, member: Member, kind: EventKind, reason: str) -> None:
        """A member is gone."""
        for number, way in enumerate(self.ways):
            way.forget(self._fleet, member.life)
            if any(member in members for members in way.members):
                self._lost.add(number)
            self._trying.discard((number, member.life))
        self._tell(f"{member.place} ({kind}): {reason}")

    def passed(self, way: Way, chosen: Sequence[Member]) -> None:
        """A trial got it right."""
        self.trust(way, chosen)
        number = self.ways.index(way)
        self._trying -= {(number, member.life) for member in chosen}
        self._tell()

    def trust(self, way: Way, chosen: Sequence[Member]) -> None:
        """These members may answer on that way."""
        way.trusted |= {(index, member.life) for index, member in enumerate(chosen)}

    def untrusted(self, way: Way, chosen: Sequence[Member]) -> list[Member]:
        """Those of a route that may not answer yet; each once."""
        doubted = [member for index, member in enumerate(chosen) if (index, member.life) not in way.trusted]
        return list(dict.fromkeys(doubted))

    def gave_up(self, way: Way, chosen: Sequence[Member]) -> None:
        """A trial ended without a verdict, or with a bad one: what has not failed is tried again."""
        number = self.ways.index(way)
        self._trying -= {(number, member.life) for member in chosen}

    def doubt(self, way: Way, chosen: Sequence[Member], reason: str) -> None:
        """A way failed on a request that another way could answer: try its members before they answer again."""
        if way.barred:
            return
        number = self.ways.index(way)
        way.trusted -= {(index, member.life) for index, member in enumerate(chosen)}
        self._tell(reason)
        for member in dict.fromkeys(chosen):
            if member.up and way.pick(trying=member) is not None:
                self._try(number, way, member)
        self._tell(reason)

    def bar(self, way: Way, reason: str) -> None:
        """Never use a way again: its numbers drift."""
        way.barred = reason
        self._tell(reason)

    def _try(self, number: int, way: Way, member: Member) -> None:
        if (number, member.life) in self._trying:
            return
        self._trying.add((number, member.life))
        if not self._attempt(way, member):
            chosen = way.pick(trying=member)
            if chosen is not None:
                self.passed(way, chosen)

    def _tell(self, reason: str = "") -> None:
        """Say it when the plan's own way stops or starts to answer."""
        if reason:
            self._reason = reason
        for number, way in enumerate(self.ways):
            if way.usable() and number not in self._up:
                self._fleet.events.add("ready", f"{way.name} can answer", model=self._name)
        self._up = {number for number, way in enumerate(self.ways) if way.usable()}
        self._begun = self._begun or self.settled()
        if not self.ways or not self._begun:
            return
        degraded = not (self.ways[0].own and self.ways[0].usable())
        if degraded and not self._degraded:
            now = self.usable()
            answers = now.name if now is not None else "plain CPU in this process"
            self._fleet.events.add("degraded", f"{answers} answers: {self._reason}", model=self._name)
        elif self._degraded and not degraded:
            self._fleet.events.add("restored", f"{self.ways[0].name} answers again", model=self._name)
        self._degraded = degraded


def _parts(way: Way, member: Member) -> list[int]:
    """Segments of a way that a member has prepared."""
    return [index for index in range(len(way.wanted)) if member in way.ready(index)]
