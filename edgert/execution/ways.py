"""A way to answer through executors: a plan's segments, or the whole model on one of its fallbacks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from edgert.execution.fleet import Fleet
from edgert.execution.member import Held, Member, Order, Place
from edgert.execution.routes import Stage
from edgert.machine import Device
from edgert.profile import Target
from edgert.transport.messages import Leg, Route, Send

_RouteKey: TypeAlias = tuple[tuple[int, ...], frozenset[str], int]
"""The lives of the members of a route, the inputs that its requests leave out, and their priority."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A segment to be held by one or several executors."""

    order: Order
    """With the name that all of them know it by."""
    inputs: tuple[str, ...]
    places: tuple[tuple[Place, Device], ...]
    """One for each instance."""


@dataclass(slots=True, eq=False)
class Way:
    """Belongs to the fleet's loop."""

    wanted: tuple[Wanted, ...]
    stages: tuple[Stage, ...]
    outputs: tuple[str, ...]
    own: bool = False
    """Whether it is the plan's own, and no fallback."""
    members: list[list[Member]] = field(default_factory=list)
    """Of each segment, one for each instance."""
    trusted: set[tuple[int, int]] = field(default_factory=set)
    """(segment, life of a member) that may answer: prepared, and where there was something to try it on, tried."""
    refused: dict[tuple[int, str], str] = field(default_factory=dict)
    """(segment, place) -> why it will never be prepared there."""
    routes: dict[_RouteKey, int] = field(default_factory=dict)
    """Number of each route that was told."""
    barred: str = ""
    """Why it must not be used any more, such as numbers that drift; '' when it may."""
    under_way: Counter[int] = field(default_factory=Counter)
    """Requests that it works on, by priority."""

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(each.order.target for each in self.wanted)

    @property
    def name(self) -> str:
        return " and ".join(map(str, self.targets))

    def held(self, index: int, member: Member) -> Held | None:
        """What a member holds of a segment."""
        return member.held.get(self.wanted[index].order.name)

    def index(self, name: str) -> int | None:
        """Of the segment of that name."""
        return next((number for number, each in enumerate(self.wanted) if each.order.name == name), None)

    def ready(self, index: int) -> list[Member]:
        """Members that have prepared a segment."""
        return [
            member for member in self.members[index] if member.up and (held := self.held(index, member)) and held.ready
        ]

    def usable(self) -> bool:
        """Whether every segment has a member that may answer."""
        return bool(self.members) and not self.barred and all(map(self._trusted, range(len(self.wanted))))

    def hopeless(self) -> str:
        """Why it cannot be used, ever; '' when it can, or may yet."""
        if self.barred:
            return self.barred
        for index, wanted in enumerate(self.wanted):
            reasons = [self.refused.get((index, str(place))) for place, _ in wanted.places]
            if all(reasons):
                return f"{wanted.order.target}: {reasons[0]}"
        return ""

    def pick(self, *, trying: Member | None = None) -> tuple[Member, ...] | None:
        """A member for each segment, the least loaded; None when some segment has none.

        Args:
            trying: a member that was not trusted yet, to be used where it can; the others may be untrusted too.
        """
        chosen = []
        for index in range(len(self.wanted)):
            able = self.ready(index) if trying is not None else self._trusted(index)
            if not able:
                return None
            if len(able) == 1:
                chosen.append(able[0])
            else:
                chosen.append(trying if trying in able else min(able, key=Member.load_s))
        return tuple(chosen)

    def bottleneck_s(self) -> float:
        """Time of the longest segment, over its instances."""
        return max(
            max((held.expected_s() for member in members if (held := self.held(index, member))), default=0.0)
            / max(1, len(members))
            for index, members in enumerate(self.members)
        )

    def total_s(self) -> float:
        """Time of a request that meets no other."""
        return sum(
            max((held.expected_s() for member in members if (held := self.held(index, member))), default=0.0)
            for index, members in enumerate(self.members)
        )

    def limit_s(self) -> float:
        """Sum of the hang limits of all segments."""
        return sum(
            max((held.limit_s(member.limits) for member in members if (held := self.held(index, member))), default=0.0)
            for index, members in enumerate(self.members)
        )

    def others_s(self, requests: int, priority: int) -> float:
        """Time for which other models keep the executors from as many requests of ours, under fair shares: a model
        that has less to do than we is done first, one that has more gets no more than we do.
        """
        longest_s = 0.0
        for index, members in enumerate(self.members):
            name = self.wanted[index].order.name
            waits_s = [
                member.others_s(held.order.model, requests * held.expected_s() / len(members), priority)
                for member in members
                if (held := member.held.get(name))
            ]
            longest_s = max(longest_s, min(waits_s, default=0.0))
        return longest_s

    def route(self, fleet: Fleet, chosen: Sequence[Member], absent: frozenset[str], priority: int) -> int:
        """The number of a route through these members, told to them when it is new.

        Args:
            fleet: whose executors they are.
            chosen: a member for each segment.
            absent: inputs of the model that the request leaves out.
            priority: of the requests that take it.
        """
        key = (tuple(member.life for member in chosen), absent, priority)
        number = self.routes.get(key)
        if number is None:
            number = self.routes[key] = random.getrandbits(63)
            legs: dict[str, list[Leg]] = {}
            for index, stage in enumerate(self.stages):
                legs.setdefault(chosen[index].endpoint, []).append(
                    replace(self._leg(index, stage, fleet, chosen, absent), priority=priority)
                )
            for endpoint, own in legs.items():
                fleet.mail.send(endpoint, Route(number, tuple(own)))
        return number

    def forget(self, fleet: Fleet, life: int) -> None:
        """A life of a member is over: nothing of it is trusted, and routes through it lead nowhere."""
        self.trusted = {each for each in self.trusted if each[1] != life}
        for key in [key for key in self.routes if life in key[0]]:
            self._call_off(fleet, key)

    def leave(self, fleet: Fleet) -> None:
        """Nothing goes this way any more: have its executors forget the routes."""
        for key in list(self.routes):
            self._call_off(fleet, key)

    def _call_off(self, fleet: Fleet, key: _RouteKey) -> None:
        number = self.routes.pop(key)
        for member in dict.fromkeys(each for members in self.members for each in members):
            if member.up and member.life in key[0]:
                fleet.mail.send(member.endpoint, Route(number, ()))

    def _trusted(self, index: int) -> list[Member]:
        return [member for member in self.ready(index) if (index, member.life) in self.trusted]

    def _leg(
        self, index: int, stage: Stage, fleet: Fleet, chosen: Sequence[Member], absent: frozenset[str]
    ) -> Leg:  # fmt: skip
        own, home = chosen[index], "" if chosen[index].place.endpoint else fleet.endpoint
        sends, through_us = [], set(stage.gives)
        for sink, names in stage.feeds:
            if reaches(own, chosen[sink]):
                sends.append(Send(chosen[sink].endpoint, self.wanted[sink].order.name, names))
            else:
                through_us |= set(names)
        if through_us:
            sends.append(Send(home, "", tuple(sorted(through_us))))
        wanted = self.wanted[index]
        inputs = tuple(name for name in wanted.inputs if name not in absent)
        return Leg(wanted.order.name, inputs, tuple(sends), home)


def reaches(source: Member, sink: Member) -> bool:
    """Whether one executor can send to another itself; else the values go through the caller. One that somebody else
    started may be another user's, or on another host, where the inboxes of this user's executors cannot be reached.
    """
    return source is sink or not (source.place.endpoint or sink.place.endpoint)
