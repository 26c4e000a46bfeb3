"""The process that owns one device, or one set of a CPU's cores: prepares segments there and runs them.

One loop receives, runs and sends, so that no thread has to be woken between a message and its run; two threads stand
beside it: one prepares (a compiler that hangs holds up nothing else), one sends heartbeats (a run that hangs is seen
from outside). Outputs go straight to the inbox of the executor that reads them.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from edgert import errors
from edgert.devices.backend import RunsInto
from edgert.errors import DeadlineExceeded, EdgertError, Garbage, Overloaded, RunFailed
from edgert.execution.arrivals import Arrivals, Job, release
from edgert.execution.attention import Attention
from edgert.execution.checks import check_values
from edgert.execution.fair import FairQueue
from edgert.execution.guests import Guests
from edgert.execution.mail import Mail, open_values
from edgert.execution.outgoing import Outgoing
from edgert.execution.preparer import PreparedSegment, Preparer
from edgert.execution.promises import Promises
from edgert.machine import Device, Reach, device_from_json
from edgert.tensor import Data
from edgert.transport import notify
from edgert.transport.messages import (
    Ahead,
    Answer,
    Bye,
    Call,
    Cancel,
    Failed,
    Free,
    Heartbeat,
    Hello,
    Leg,
    Message,
    Prepare,
    Prepared,
    Route,
    Running,
    Soon,
    Welcome,
    Work,
)
from edgert.transport.port import Lookout

_log = logging.getLogger(__name__)
_LEAST_BEAT_S, _MOST_BEAT_S = 0.01, 10.0
"""Heartbeats are sent no more and no less often, whatever a caller asks for."""
_LONG_S = 250e-6
"""A run of which the next executor is told all before it ends."""
_NEW = 0.1
"""Share of the newest run in a segment's mean time."""


class Executor:
    """Serves one device until told to drain. `serve` is called once, in the thread that shall run the segments."""

    def __init__(self, device: Device, mail: Mail, *, most_waiting: int = 4096, reaches: Sequence[Reach] = ()) -> None:
        """Args:
        device: that it owns; its `cores` are where it runs.
        mail: its inbox, and what it sends with.
        most_waiting: requests that may wait; one more is refused as `Overloaded`.
        reaches: the ways to run on the device, for planners on other hosts.
        """
        self.device = device
        self.name = f"executor of {device.id}"
        self.life = random.getrandbits(63)
        self._mail = mail
        self._most_waiting = most_waiting
        self._segments: dict[str, PreparedSegment] = {}
        self._arrivals = Arrivals(mail)
        self._attention = Attention()
        self._promises = Promises(mail, self._arrivals)
        self._preparer = Preparer(device, mail.wake)
        self._waiting: FairQueue[Job] = FairQueue()
        self._callers: dict[str, Hello] = {}
        self._draining = threading.Event()
        self._running: tuple[Running, float] | None = None
        self._stopped = threading.Event()
        self._outgoing = Outgoing(mail)
        self._latest: dict[str, Job] = {}
        """The last one of each segment, to rehearse the next one with."""
        self._guests = Guests(device, reaches, self._preparer.unpacked)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self._mail.endpoint

    def drain(self) -> None:
        """From any thread or signal handler: finish what was taken, take no more, and let `serve` return."""
        self._draining.set()
        self._mail.wake()

    def serve(self) -> None:
        """Work until drained."""
        threads = [
            threading.Thread(target=work, name=f"{name} of {self.name}", daemon=True)
            for work, name in ((self._preparer.run, "compiler"), (self._beat, "heartbeat"))
        ]
        for thread in threads:
            thread.start()
        try:
            while not self._finished():
                self._receive()
                if self._waiting:
                    self._run(self._waiting.pop())
            for endpoint in self._callers:
                self._mail.send(endpoint, Bye(self.name, self.life, "drained"))
        finally:
            self._stopped.set()
            for segment in self._segments.values():
                with suppress(EdgertError):  # the process ends, which frees it as well
                    segment.runnable.close()
            self._guests.close()
            self._mail.close()
            self._preparer.close()

    def _receive(self) -> None:
        """Everything that lies in the inbox, so that the queue decides whose turn it is; else what comes next, which
        runs at once.
        """
        while self._take_next(0.0):
            pass
        if not self._waiting and not self._finished():  # the `wake` that told us to drain may be behind us
            self._take_next(None)

    def _finished(self) -> bool:
        """Whether it was told to drain, and has."""
        return self._draining.is_set() and not self._waiting and not self._preparer.under_way

    def _take_next(self, wait_s: float | None) -> bool:
        """Whether a message came within that time; None: wait until one comes or somebody calls `wake`."""
        expected = self._attention.next() if wait_s is None else None
        received = self._mail.receive(wait_s, None if expected is None else self._lookout(*expected))
        if received is None and expected is not None and (job := self._promises.kept(expected[0])) is not None:
            self._attention.came(expected[0])
            self._queue(job)
            return True
        for reply, answer, segment in self._preparer.results():
            if segment is not None and isinstance(answer, Prepared):
                self._hold(answer.segment, segment, reply)
            self._mail.send(reply, answer)
        for endpoint in self._mail.departed():
            self._forget(endpoint)
        if received is not None:
            self._take(*received)
        return received is not None

    def _take(self, message: Message, peer: str) -> None:
        """Args:
        message: that came.
        peer: where to answer a sender that listens nowhere.
        """
        match message:
            case Work():
                self._attention.came(message.segment)
                self._promises.came(message)
                if (job := self._arrivals.take(message)) is not None:
                    self._queue(job)
            case Soon(_, segment):
                self._attention.foretold(segment)
            case Ahead():
                self._promises.heard(message)
            case Free():
                self._mail.freed(message)
            case Cancel(request, attempt):
                self._call_off(request, attempt)
            case Hello() | Prepare() | Route() | Call():
                try:
                    self._order(message, peer)
                except (EdgertError, KeyError, TypeError, ValueError) as error:  # of another version, or of no edgert
                    self._mail.odd(message, f"it makes no sense to {self.name}: {error!r}")
            case Bye():
                for endpoint in [each for each, hello in self._callers.items() if hello.life == message.life]:
                    self._forget(endpoint)
            case _:
                self._mail.odd(message)

    def _order(self, message: Hello | Prepare | Route | Call, peer: str) -> None:
        """What a caller wants to be arranged. Raises whatever its facts cannot be read with."""
        match message:
            case Route(route, legs):
                for job in self._arrivals.set_route(route, legs, peer):
                    self._queue(job)
                if not legs:
                    self._drop_jobs(lambda job: job.work.route == route)
            case Prepare():
                self._preparer.order(message, str(message.facts["reply"]) or peer)
            case Hello():
                self._greet(message, message.endpoint or peer)
            case Call(_, "about" | "host"):
                self._host(message, peer)
            case Call(request, "release", facts):
                self._release([str(name) for name in facts["segments"]])
                self._mail.send(str(facts["reply"]) or peer, Answer(request))
            case _:
                self._mail.odd(message)

    def _host(self, call: Call, peer: str) -> None:
        """Try something for a planner elsewhere, in a thread of its own."""
        try:
            threading.Thread(target=self._serve_guest, args=(call, peer), daemon=True).start()
        except RuntimeError as error:  # there may be no more
            refusal = Overloaded(f"{self.name}: {error}.", "Ask again later.", waiting=0)
            self._mail.send(peer, Answer(call.request, error=errors.to_json(refusal)))

    def _serve_guest(self, call: Call, peer: str) -> None:
        """In a thread of its own: a planner elsewhere tries something."""
        self._mail.send(peer, self._guests.answer(call))

    def _greet(self, hello: Hello, endpoint: str) -> None:
        self._beat_s(hello)
        for before in [each for each, known in self._callers.items() if known.life == hello.life and each != endpoint]:
            self._forget(before)  # its connection broke, and it came back over another
        self._callers[endpoint] = hello
        if hello.host != self._mail.host:
            self._mail.spare(endpoint)
        facts = {"device": asdict(self.device)}
        self._mail.send(endpoint, Welcome(self.name, self.endpoint, os.getpid(), self._mail.host, self.life, facts))
        _log.info("%s serves %s", self.name, hello.who)

    def _queue(self, job: Job) -> None:
        segment = self._segments.get(job.work.segment)
        if segment is None:
            words = f"{self.name}: segment {job.work.segment} is not prepared here."
            self._fail(job, RunFailed(words, "Prepare it."))
        elif (waiting := len(self._waiting)) >= self._most_waiting:
            words = f"{self.name}: {waiting} requests wait already."
            self._fail(job, Overloaded(words, "Send fewer, or later.", waiting=waiting))
        else:
            # The same model of two processes has two shares: neither may keep the other waiting.
            self._waiting.put(job, (segment.owner, segment.model), segment.mean_s, job.leg.priority)

    def _run(self, job: Job) -> None:
        work, segment = job.work, self._segments.get(job.work.segment)
        now_s = time.monotonic()
        try:
            if work.deadline_s is not None and work.deadline_s < now_s:
                raise DeadlineExceeded(f"{self.name}: the deadline passed before its turn came.", deadline_s=0.0)
            if segment is None:
                raise RunFailed(f"{self.name}: segment {work.segment} was released.", "Load the model again.")
            self._running = (Running(work.request, work.attempt, work.segment, 0.0), now_s)
            # Where requests queue up, or a run is over before its reader has taken it in, it would be in the way.
            ahead = not self._waiting and segment.mean_s >= _LONG_S
            self._outgoing.begin(job, segment.source.outputs, ahead=ahead)
            self._foretell(job)
            inputs = open_values(self._mail, job.values)
            self._check_inputs(segment, inputs)
            outputs = self._outputs(segment, job.leg, inputs)
            self._mail.check(job.values)
            if not self._outgoing.is_sound(outputs):
                check_values(f"{segment.target} in {self.name}", outputs, segment.source.outputs, sizes=False)
        except EdgertError as error:
            self._fail(job, error)
            return
        except Exception as error:  # noqa: BLE001 - a vendor's library may raise anything, and the caller must learn of it
            self._fail(job, RunFailed(f"{self.name}: {type(error).__name__}: {str(error)[:500]}."))
            return
        finally:
            self._running = None
        run_s = time.monotonic() - now_s
        segment.runs += 1
        segment.mean_s += (run_s - segment.mean_s) * max(_NEW, 1.0 / segment.runs)
        self._hand_on(job, outputs, run_s)
        if self._attention.knows(work.segment):
            self._latest[work.segment] = job
        release(self._mail, job.homes)

    def _outputs(self, segment: PreparedSegment, leg: Leg, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """A run, computed into shared memory where the library can and the readers map it."""
        runnable = segment.runnable
        if not segment.runs_into or not isinstance(runnable, RunsInto):
            return runnable.run(inputs)

        return runnable.run_into(inputs, self._outgoing.place)

    def _lookout(self, segment: str, begin_s: float, end_s: float) -> Lookout:
        """When to be awake for what was foretold, and what to do and to look for."""
        return Lookout(begin_s, end_s, partial(self._rehearse, segment), partial(self._promises.is_kept, segment))

    def _rehearse(self, name: str) -> None:
        """Do for the last request once more what will be done for the next one, up to its run: then its code and data
        are in the caches. Changes nothing.
        """
        job, segment = self._latest.get(name), self._segments.get(name)
        if job is not None and segment is not None:
            queue: FairQueue[Job] = FairQueue()
            queue.put(job, segment.model, segment.mean_s, job.leg.priority)
            queue.pop()
            self._arrivals.rehearse(job.work)
            with suppress(EdgertError):  # its owner is gone
                self._check_inputs(segment, self._mail.rehearse(job.work))

    def _foretell(self, job: Job) -> None:
        """Tell those who wait for the outputs that they are being made; no use where requests queue up anyway."""
        if not self._waiting:
            for send in job.leg.sends:
                if send.segment:
                    self._mail.hint(send.endpoint, Soon(job.work.route, send.segment))

    def _check_inputs(self, segment: PreparedSegment, inputs: Mapping[str, Data]) -> None:
        who = f"{self.name} reads {segment.target}'s input"
        try:
            check_values(who, inputs, segment.source.inputs, sizes=False, optional=True)
        except Garbage as error:
            raise Garbage(error.message, error.remedy, value=error.value, read=True) from error

    def _hand_on(self, job: Job, outputs: Mapping[str, Data], run_s: float) -> None:
        """Send every reader what it reads."""
        self._outgoing.hand_on(job, outputs, run_s)

    def _fail(self, job: Job, error: EdgertError) -> None:
        work = job.work
        self._outgoing.drop()
        self._mail.send(job.leg.caller, Failed(work.request, work.attempt, work.segment, errors.to_json(error)))
        release(self._mail, job.homes)

    def _call_off(self, request: int, attempt: int) -> None:
        self._arrivals.call_off(request, attempt)
        self._drop_jobs(lambda job: job.work.request == request and job.work.attempt <= attempt)

    def _drop_jobs(self, unwanted: Callable[[Job], bool]) -> None:
        for job in self._waiting.remove(unwanted):
            release(self._mail, job.homes)

    def _hold(self, name: str, segment: PreparedSegment, owner: str) -> None:
        """Keep what was prepared, in place of what had that name, unless who ordered it is gone."""
        self._release([name])
        segment.owner = owner
        self._segments[name] = segment
        if owner not in self._callers:
            self._release([name])

    def _release(self, names: list[str]) -> None:
        for name in names:
            self._latest.pop(name, None)
            self._promises.forget(name)
            segment = self._segments.pop(name, None)
            if segment is not None:
                with suppress(EdgertError):  # it is gone, which is what was wanted
                    segment.runnable.close()

    def _forget(self, endpoint: str) -> None:
        """A caller is gone, with all that it ordered and all that waits for it."""
        hello = self._callers.pop(endpoint, None)
        if hello is None:
            return
        _log.info("%s serves %s no more", self.name, hello.who)
        routes = set(self._arrivals.forget(endpoint))
        self._drop_jobs(lambda job: job.work.route in routes)
        self._release([name for name, segment in self._segments.items() if segment.owner == endpoint])
        self._mail.drop(endpoint)

    def _beat(self) -> None:
        """The heartbeat's thread: tells every caller what runs since when."""
        while not self._stopped.is_set():
            callers = self._callers.copy()
            beat = self._heartbeat()
            for endpoint in callers:
                self._mail.send(endpoint, beat)
            self._progress(beat)
            self._stopped.wait(min(map(self._beat_s, callers.values()), default=0.05))

    @staticmethod
    def _beat_s(hello: Hello) -> float:
        """How often a caller wants to hear of this executor. Raises as `_order`."""
        return min(max(_LEAST_BEAT_S, float(hello.facts["heartbeat_s"])), _MOST_BEAT_S)

    def _progress(self, beat: Heartbeat) -> None:
        """Feed the watchdog of systemd, if there is one, while every run comes to an end."""
        limit_s = notify.watchdog_s()
        if limit_s is not None and not any(run.for_s > limit_s / 2 for run in beat.running):
            notify.tell(WATCHDOG=1)

    def _heartbeat(self) -> Heartbeat:
        running, now_s = self._running, time.monotonic()
        runs: tuple[Running, ...] = ()
        if running is not None:
            work, since_s = running
            runs = (Running(work.request, work.attempt, work.segment, now_s - since_s),)
        means = {name: [segment.runs, segment.mean_s] for name, segment in self._segments.copy().items()}
        return Heartbeat(self.name, self.life, len(self._waiting), runs, {"segments": means})


class Hosted:
    """An executor in a supervised child (`transport.child`): started by one call, gone with the child."""

    kind: type[Executor] = Executor

    def __init__(self) -> None:
        self._executor: Executor | None = None

    def handle(
        self, method: str, body: Mapping[str, Any], data: Mapping[str, Data]
    ) -> tuple[dict[str, Any], dict[str, Data]]:
        if method == "serve":
            device = device_from_json(body["device"])
            own_cores(device.cores)
            self._executor = self.kind(device, Mail.bound(body["endpoint"]))
            threading.Thread(target=self._serve, name="executor", daemon=True).start()
            return {"endpoint": self._executor.endpoint}, {}
        raise errors.OptionError(f"executor: there is no method {method!r}.")

    def _serve(self) -> None:
        assert self._executor is not None  # it was made before this thread was
        try:
            self._executor.serve()
        except Exception:  # noqa: BLE001 - the parent would hear of this end by silence alone, and never why
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # drained: the main thread waits for a parent that has nothing more to say


def own_cores(cores: tuple[int, ...]) -> None:
    """Keep this process and all its threads to come on those logical CPUs; none: leave it as it is."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
