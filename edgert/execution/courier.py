"""Carries a request along a way: to the executors chosen for it, between those that cannot reach each other, and off
the way again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from edgert.errors import Garbage
from edgert.execution.fleet import Fleet
from edgert.execution.flight import Flight
from edgert.execution.mail import open_values
from edgert.execution.ways import Way, reaches
from edgert.plan import Plan
from edgert.tensor import Data
from edgert.transport.messages import Cancel, Done, Work


class Courier:
    """Belongs to the fleet's loop."""

    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        """Args:
        plan: whose requests they are.
        fleet: whose executors.
        """
        self._plan, self._fleet = plan, fleet

    def set_out(self, flight: Flight, way: Way) -> bool:
        """Send a request, under its next attempt; False when the way has lost an executor meanwhile."""
        chosen = way.pick(trying=flight.trial)
        if chosen is None:
            return False
        flight.way, flight.chosen, flight.stand = way, chosen, "flying"
        flight.attempt += 1
        flight.outputs = {}
        flight.sent_s, flight.missed = time.monotonic(), 0
        flight.tried.append(way)
        way.under_way[flight.priority] += 1
        absent = frozenset(value.name for value in self._plan.inputs if value.name not in flight.inputs)
        flight.route = way.route(self._fleet, chosen, absent, flight.priority)
        for index, (stage, member) in enumerate(zip(way.stages, chosen, strict=True)):
            held = way.held(index, member)
            assert held is not None  # `pick` chose those that hold it
            held.taken[flight.priority] += 1
            takes = {name: flight.inputs[name] for name in stage.takes if name in flight.inputs}
            if takes or not way.wanted[index].inputs:
                self._give(flight, way, index, takes)
        others_s = self._fleet.limits.hang_factor * max(member.load_s() for member in chosen)
        waits_s = way.limit_s() * (1 + sum(way.under_way.values())) + others_s
        flight.patience_s = waits_s + self._fleet.limits.lapse_s
        return True

    def forward(self, flight: Flight, way: Way, index: int, answer: Done) -> None:
        """Pass on what an executor could not send to the next one itself."""
        for sink, names in way.stages[index].feeds:
            member = flight.chosen[sink]
            if not reaches(flight.chosen[index], member):
                values = open_values(self._fleet.mail, {name: answer.values[name] for name in names}, copy=True)
                self._give(flight, way, sink, values)

    def _give(self, flight: Flight, way: Way, index: int, values: Mapping[str, Data]) -> None:
        """Send values to the executor of a segment."""
        member = flight.chosen[index]
        home, carried = self._fleet.mail.place(member.endpoint, values)
        name = way.wanted[index].order.name
        work = Work(flight.number, flight.attempt, flight.deadline_s, flight.route, name, carried, home)
        self._fleet.mail.send(member.endpoint, work)

    def leave(self, flight: Flight, *, cancel: bool = False) -> None:
        """It is not under way any more, or not there."""
        way, chosen = flight.way, flight.chosen
        if way is None:
            return
        way.under_way[flight.priority] -= 1
        for index, member in enumerate(chosen):
            held = way.held(index, member)
            if held is not None and held.taken[flight.priority]:
                held.taken[flight.priority] -= 1
            if cancel and member.up:
                self._fleet.mail.send(member.endpoint, Cancel(flight.number, flight.attempt))
        flight.way, flight.chosen = None, ()


def maker(flight: Flight, segment: str, error: Garbage) -> str:
    """Which segment made a value that cannot be an answer."""
    way = flight.way
    if way is None or not getattr(error, "read", False):
        return segment
    for index, stage in enumerate(way.stages):
        for sink, names in stage.feeds:
            if way.wanted[sink].order.name == segment and error.value in names:
                return way.wanted[index].order.name
    return segment
