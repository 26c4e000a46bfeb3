"""One plan's requests at the executors: sent, gathered, run again on another way, each ended exactly once.

Everything here happens in the fleet's loop, one thing after another: `staged` brings requests in, the fleet tells what
came of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgert import errors
from edgert.errors import ChildTimeout, DeadlineExceeded, EdgertError, Garbage
from edgert.execution.admission import Admission
from edgert.execution.checks import check_values
from edgert.execution.courier import Courier, maker
from edgert.execution.events import EventKind
from edgert.execution.fair import FairQueue
from edgert.execution.fleet import Fleet
from edgert.execution.flight import Flight
from edgert.execution.mail import open_values
from edgert.execution.member import Member
from edgert.execution.pipeline import Made
from edgert.execution.recovery import Ladder
from edgert.execution.reserve import Reserve
from edgert.execution.shadow import Drift, Shadow
from edgert.execution.trial import Witness
from edgert.execution.ways import Way
from edgert.plan import Plan
from edgert.tensor import Data
from edgert.transport.messages import Done, Failed

_MOST_AHEAD = 64
_LOOK_S = 0.25
"""How often requests that nobody answers are looked for."""


class Dispatcher:
    """Belongs to the fleet's loop; is told of its executors as their `Customer`."""

    def __init__(
        self, plan: Plan, fleet: Fleet, ways: Sequence[Way], reserve: Reserve, *, name: str, witness: Witness,
        refusals: Sequence[str], drifted: Callable[[Drift], None],
    ) -> None:  # fmt: skip
        """Args: as of `StagedPipeline`."""
        self.plan, self.name, self.limits = plan, name, fleet.limits
        self._fleet, self._reserve, self._witness, self._drifted = fleet, reserve, witness, drifted
        self.shadow = Shadow(reserve, witness, fleet.limits.shadow)
        self.ladder = Ladder(fleet, ways, name, self._try, refusals)
        self._courier = Courier(plan, fleet)
        self.admission = Admission(name, fleet.limits, self.ladder, reserve)
        self._waiting: FairQueue[Flight] = FairQueue()
        self._flights: dict[int, Flight] = {}
        self._looking = self._closing = False
        self._looked_s = 0.0
        """When requests that nobody answers were last looked for."""
        self.settled = threading.Event()
        """It is known which way answers at first."""
        self.empty = threading.Event()
        """Closed, and the last request was answered."""

    def begin(self) -> None:
        """Order the segments."""
        self.ladder.order(self)
        self._settle()

    def close(self) -> None:
        """Nothing comes any more: `empty` is set once what was taken is answered."""
        self._closing = True
        if not self._flights:
            self.empty.set()

    def enter(self, flight: Flight) -> None:
        """A new request."""
        flight.number = self._fleet.request(self)
        self._flights[flight.number] = flight
        if flight.promise is not None and flight.promise.cancelled():
            self._end(flight)
            return
        if flight.deadline_s is not None:
            # A timer holds the number alone: what was answered is let go.
            number = flight.number
            self._fleet.loop.after(
                flight.deadline_s - time.monotonic(), lambda: self._expire(self._flights.get(number))
            )
        self._waiting.put(flight, self.plan.id, 0.0, flight.priority)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give executors what they can take now."""
        while self._waiting:
            way = self.ladder.usable()
            if way is None:
                if not self._reserve.free():
                    return
                flight = self._waiting.pop()
            else:
                # Each priority has a window of its own: lower ones that were sent do not hold higher ones back, and
                # lower ones are there when the executor owes them a turn.
                window, busy = self._window(way), way.under_way
                open_to = (each for each in self._waiting.priorities() if busy[each] < window)
                priority = next(open_to, None)
                if priority is None:
                    return
                flight = self._waiting.pop(priority)
            if flight.over:
                continue
            if way is None:
                self._to_reserve(flight)
            else:
                self._send(flight, way)

    def _window(self, way: Way) -> int:
        """Requests of a priority that may be under way: enough that no segment waits for the next, no more."""
        bottleneck_s = way.bottleneck_s()
        ahead = int(self.limits.ahead_s / bottleneck_s) if bottleneck_s > 0 else 0
        return min(_MOST_AHEAD, 2 * sum(map(len, way.members)) + ahead)

    def _send(self, flight: Flight, way: Way) -> None:
        if not self._courier.set_out(flight, way):
            self._again(flight, "the way was lost before it was sent")
        elif not self._looking:
            self._looking = True
            self._fleet.loop.after(_LOOK_S, self._look)

    def _look(self) -> None:
        """Find requests that no executor complains about and nobody answers: a message may have been lost."""
        try:
            self._look_after_all(time.monotonic())
        finally:
            self._looking = bool(self._flights)
            if self._looking:
                self._fleet.loop.after(_LOOK_S, self._look)

    def _look_after_all(self, now_s: float) -> None:
        looked_s, self._looked_s = self._looked_s, now_s
        for flight in [each for each in self._flights.values() if each.stand == "flying"]:
            nobody_has_it = all(member.idle_since(max(flight.sent_s, looked_s)) for member in flight.chosen)
            flight.missed = flight.missed + 1 if nobody_has_it else 0
            waited_s = now_s - max(flight.sent_s, self._fleet.awake_s)
            if flight.missed > 1 or waited_s > flight.patience_s:
                words = f"no answer came within {now_s - flight.sent_s:.1f} s, and no executor has it or complains."
                self._again(flight, words, ChildTimeout(words, "", timeout_s=now_s - flight.sent_s))

    def done(self, answer: Done) -> None:
        """See `Customer`."""
        flight = self._flights.get(answer.request)
        if flight is None or flight.stand != "flying" or answer.attempt != flight.attempt:
            if flight is not None and answer.attempt > flight.attempt:
                self._distrust(answer.segment, f"it answered attempt {answer.attempt}, which was never made")
            self._fleet.mail.discard(answer)
            return
        way = flight.way
        assert way is not None
        index = way.index(answer.segment)
        try:
            values = open_values(self._fleet.mail, answer.values, copy=True)
            if index is None:
                raise Garbage(f"{self.name}: an answer of segment {answer.segment!r}, which was not asked.")
            gives = way.stages[index].gives
            declared = [value for value in self.plan.outputs if value.name in gives]
            self._courier.forward(flight, way, index, answer)
            check_values(str(flight.chosen[index].place), values, declared, sizes=self._witness.keeps_sizes)
        except EdgertError as error:
            if getattr(error, "shortage", False):  # of ours: the executor is not to blame
                self._again(flight, error.message, error)
            else:
                self._distrust(answer.segment, error.message, flight)
            return
        finally:
            self._fleet.mail.release(answer.home, answer.values)
        held = way.held(index, flight.chosen[index])
        if held is not None:
            held.saw(float(answer.facts.get("run_s", 0.0)))
        flight.outputs.update({name: values[name] for name in gives})
        if all(name in flight.outputs or name in flight.inputs for name in way.outputs):
            self._answered(flight, way)

    def _answered(self, flight: Flight, way: Way) -> None:
        outputs = {name: flight.outputs.get(name, flight.inputs.get(name)) for name in way.outputs}
        chosen = flight.chosen
        self._courier.leave(flight)
        if flight.trial is not None:
            self._judge(flight, way, outputs, chosen)
            return
        self.admission.answered(flight.sent_s, alone=len(self._flights) <= 1)
        if not flight.fatal:
            self._witness.keep(flight.inputs, outputs, primary=way.own)
        self._doubt(flight)
        reason = "; ".join(filter(None, (self.ladder.why(way), *flight.reasons)))
        made = Made(outputs, way.targets, reason)
        if not self._waiting:
            self.shadow.watch(flight.inputs, made, self._fleet.loop.post, lambda drift: self._bar(way, drift))
        self._resolve(flight, made)

    def failed(self, answer: Failed) -> None:
        """See `Customer`."""
        flight = self._flights.get(answer.request)
        if flight is None or flight.stand != "flying" or answer.attempt != flight.attempt:
            return
        error = errors.from_json(answer.error)
        if isinstance(error, DeadlineExceeded) and flight.late:
            self._expire(flight)
            return
        if isinstance(error, Garbage):
            self._distrust(maker(flight, answer.segment, error), error.message, flight)
            return
        assert flight.way is not None  # it flies
        if flight.trial is not None:
            # The trial was for one member, and another one on its route failed: that one is to blame.
            index = flight.way.index(answer.segment)
            flight.trial = flight.trial if index is None else flight.chosen[index]
        self._again(flight, f"{flight.way.name} failed: {error.message}", error)

    def garbled(self, segment: str, reason: str) -> None:
        """See `Customer`."""
        self._distrust(segment, reason)

    def _again(self, flight: Flight, reason: str, error: EdgertError | None = None) -> None:
        """Run a request on the next way that can, under the next attempt."""
        way, chosen = flight.way, flight.chosen
        self._courier.leave(flight, cancel=True)
        if flight.trial is not None:
            self._end(flight)
            if way is not None:
                self.ladder.gave_up(way, chosen)
            if error is not None:
                self._fleet.fault(flight.trial, "refused", f"the trial failed: {reason}")
            return
        flight.reasons.append(reason)
        if error is not None and way is not None:
            flight.errors.append((way, chosen, error))
        if len(flight.tried) < self.limits.attempts:
            for other in self.ladder.ways:
                if other.usable() and other not in flight.tried:
                    self._send(flight, other)
                    return
        self._to_reserve(flight)

    def _to_reserve(self, flight: Flight) -> None:
        """The last resort: plain CPU in this process."""
        flight.stand = "reserve"
        flight.attempt += 1
        attempt = flight.attempt

        def conclude(made: Made | EdgertError) -> None:
            self._fleet.loop.post(lambda: self._from_reserve(flight, attempt, made))

        self._reserve.run(flight.inputs, conclude, lambda: flight.over)

    def _from_reserve(self, flight: Flight, attempt: int, made: Made | EdgertError) -> None:
        if flight.over or flight.attempt != attempt:
            self._dispatch()
            return
        if isinstance(made, EdgertError):
            # What the plan's own way said is nearer to the cause than what the last resort says.
            self._reject(flight, flight.errors[0][2] if flight.errors else made)
            return
        if not flight.fatal:
            self._witness.keep(flight.inputs, made.outputs, primary=False)
        self._doubt(flight)
        reason = "; ".join(filter(None, (*(flight.reasons or [self.ladder.why(None)]), made.reason)))
        self._resolve(flight, Made(made.outputs, made.targets, reason))

    def _resolve(self, flight: Flight, made: Made) -> None:
        promise = flight.promise
        self._end(flight)
        if promise is not None:
            promise.resolve(lambda: self._finished(flight, made))

    def _finished(self, flight: Flight, made: Made) -> Any:
        """What its caller gets. Looked at last of all, since the timer of the deadline waits for the loop as answers
        do, and may come after them.

        Raises:
            DeadlineExceeded: it is late.
        """
        result = flight.finish(made)
        if flight.late:
            raise self._late(flight)
        return result

    def _reject(self, flight: Flight, error: EdgertError) -> None:
        promise = flight.promise
        self._end(flight)
        if promise is not None and promise.set_running_or_notify_cancel():
            promise.set_exception(error)

    def _expire(self, flight: Flight | None) -> None:
        if flight is not None and not flight.over:
            self._courier.leave(flight, cancel=True)
            self._reject(flight, self._late(flight))

    def _late(self, flight: Flight) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.name}: the deadline of {flight.given_s:.3f} s passed before an answer was there.",
            "Give more time, or send fewer requests.", deadline_s=flight.given_s,
        )  # fmt: skip

    def call_off(self, flight: Flight) -> None:
        """Its caller does not want it any more."""
        if not flight.over and flight.number in self._flights:
            self._courier.leave(flight, cancel=True)
            promise = flight.promise
            self._end(flight)
            if promise is not None:
                promise.set_running_or_notify_cancel()

    def _end(self, flight: Flight) -> None:
        flight.stand = "over"
        self._fleet.over(flight.number)
        if self._flights.pop(flight.number, None) is not None and flight.promise is not None:
            self.admission.leave(flight.priority)
            flight.promise.let_go()
            flight.promise = None
        if self._closing and not self._flights:
            self.empty.set()
        self._dispatch()

    # Recovery, in the loop -----------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if not self.settled.is_set() and self.ladder.settled():
            self.settled.set()
        self._dispatch()

    def ready(self, member: Member, name: str) -> None:
        """See `Customer`."""
        self.ladder.ready(member, name)
        self._settle()

    def refused(self, member: Member, name: str, error: EdgertError) -> None:
        """See `Customer`."""
        self.ladder.refused(member, name, error)
        self._settle()

    def lost(self, member: Member, kind: EventKind, reason: str) -> None:
        """See `Customer`: run again what it had taken."""
        self.ladder.lost(member, kind, reason)
        for flight in [each for each in self._flights.values() if member in each.chosen]:
            flight.fatal = True
            if flight.trial is not None:
                self._witness.drop()
            self._again(flight, f"{member.place} ({kind}): {reason}")
        self._settle()

    def _distrust(self, segment: str, reason: str, flight: Flight | None = None) -> None:
        """Somebody sent what cannot be an answer: give it up, whatever else it holds."""
        for way in self.ladder.ways:
            index = way.index(segment)
            if index is not None:
                chosen = flight.chosen if flight is not None and flight.way is way else ()
                for member in (chosen[index],) if chosen else way.members[index]:
                    self._fleet.fault(member, "garbage", reason)
                return
        if flight is not None:
            for member in dict.fromkeys(flight.chosen):
                self._fleet.fault(member, "garbage", reason)

    def _doubt(self, flight: Flight) -> None:
        """The request was answered after all: those that failed on it are tried before they answer again."""
        for way, chosen, error in flight.errors:
            self.ladder.doubt(way, chosen, f"{way.name} failed: {error.message}")
        flight.errors.clear()

    def _bar(self, way: Way, drift: Drift) -> None:
        """Wrong numbers while serving: leave that way for good, and say so."""
        if way.barred:
            return
        self._fleet.events.add("drift", f"{way.name}: {drift.reason}", model=self.name)
        self.ladder.bar(way, f"{way.name} gave wrong numbers: {drift.reason}")
        for flight in [each for each in self._flights.values() if each.way is way]:
            self._again(flight, f"{way.name} gave wrong numbers")
        self._fleet.loop.apart_soon(lambda: self._drifted(drift))

    def _try(self, way: Way, member: Member) -> bool:
        """Start a trial on the kept request; False when none is kept."""
        if self._witness.inputs is None:
            return False
        flight = Flight(0, self._witness.inputs, None, lambda made: made, trial=member)
        flight.number = self._fleet.request(self)
        self._flights[flight.number] = flight
        self._send(flight, way)
        return True

    def _judge(self, flight: Flight, way: Way, outputs: Mapping[str, Data], chosen: Sequence[Member]) -> None:
        wrong = self._witness.judge(outputs, way.targets)
        self._end(flight)
        if wrong:
            self.ladder.gave_up(way, chosen)
            for doubted in self.ladder.untrusted(way, chosen):
                self._fleet.fault(doubted, "garbage", f"the trial gave wrong numbers: {wrong}")
        else:
            self.ladder.passed(way, chosen)
            self._settle()
