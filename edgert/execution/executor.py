"""The process that owns one device, or one set of a CPU's cores: prepares segments there and runs them.

One loop receives, runs and sends, so that no thread has to be woken between a message and its run; two threads stand
beside it: one prepares (a compiler that hangs holds up nothing else), one sends heartbeats (a run that hangs is seen
from outside). Outputs go straight to the inbox of the executor that reads them.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np

from edgert import errors
from edgert.devices import backend
from edgert.devices.backend import Runnable, RunsInto, Source
from edgert.devices.host import resident_bytes, source_from_json
from edgert.errors import DeadlineExceeded, EdgertError, Garbage, Overloaded, PrepareRefused, RunFailed
from edgert.execution.checks import check_values
from edgert.execution.fair import FairQueue
from edgert.execution.guests import Guests
from edgert.execution.mail import Mail, open_values
from edgert.machine import Device, Reach, device_from_json
from edgert.profile import Target
from edgert.tensor import Array, Data, DType, numpy_dtype
from edgert.transport import notify
from edgert.transport.messages import (
    Answer,
    Bye,
    Call,
    Cancel,
    Carried,
    Done,
    Drain,
    Failed,
    Free,
    Heartbeat,
    Hello,
    Leg,
    Message,
    Prepare,
    Prepared,
    Refused,
    Route,
    Running,
    Welcome,
    Work,
)
from edgert.transport.shm import Slot

_log = logging.getLogger(__name__)
_REMEMBERED = 4096
"""Requests that were called off, and half-gathered ones, that are kept in mind."""
_NEW = 0.1
"""Share of the newest run in a segment's mean time."""


@dataclass(slots=True)
class _Segment:
    """A prepared segment."""

    runnable: Runnable
    source: Source
    target: Target
    model: str
    """Whose share of the device it is charged to."""
    runs_into: bool = False
    """Whether it writes its outputs where it is told."""
    runs: int = 0
    mean_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Job:
    """A request whose inputs are all here."""

    work: Work
    leg: Leg
    values: Mapping[str, Carried]
    homes: tuple[tuple[str, Carried], ...]


@dataclass(slots=True)
class _Gathering:
    """Inputs of one request that came so far."""

    attempt: int
    values: dict[str, Carried] = field(default_factory=dict)
    homes: list[tuple[str, Carried]] = field(default_factory=list)


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
        self._segments: dict[str, _Segment] = {}
        self._routes: dict[int, dict[str, Leg]] = {}
        self._early: dict[int, list[Work]] = {}
        self._gathering: OrderedDict[tuple[int, str], _Gathering] = OrderedDict()
        self._cancelled: OrderedDict[int, int] = OrderedDict()
        self._waiting: FairQueue[_Job] = FairQueue()
        self._orders: queue.SimpleQueue[tuple[Prepare, str] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[str, Message, _Segment | None]] = queue.SimpleQueue()
        self._preparing = 0
        self._callers: dict[str, Hello] = {}
        self._draining = threading.Event()
        self._running: tuple[Running, float] | None = None
        self._stopped = threading.Event()
        self._folder: TemporaryDirectory[str] | None = None
        self._slots: dict[str, Slot] = {}
        """Where the run that goes on writes its outputs."""
        self._unpacking = threading.Lock()
        self._guests = Guests(device, reaches, self._unpacked)

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
            for work, name in ((self._prepare_orders, "compiler"), (self._beat, "heartbeat"))
        ]
        for thread in threads:
            thread.start()
        try:
            while not (self._draining.is_set() and not self._waiting and not self._preparing):
                self._receive()
                if self._waiting:
                    self._run(self._waiting.pop())
            for endpoint in self._callers:
                self._mail.send(endpoint, Bye(self.name, self.life, "drained"))
        finally:
            self._stopped.set()
            self._orders.put(None)
            for segment in self._segments.values():
                with suppress(EdgertError):  # the process ends, which frees it as well
                    segment.runnable.close()
            self._guests.close()
            self._mail.close()
            if self._folder is not None:
                self._folder.cleanup()

    def _receive(self) -> None:
        """Everything that lies in the inbox; waits for something only when there is nothing to run."""
        wait_s = 0.0 if self._waiting else None
        while True:
            received = self._mail.receive(wait_s)
            while not self._results.empty():
                self._conclude(*self._results.get())
            if received is None:
                return
            wait_s = 0.0
            self._take(*received)

    def _take(self, message: Message, peer: str) -> None:
        """Args:
        message: that came.
        peer: where to answer a sender that listens nowhere.
        """
        match message:
            case Work():
                self._gather(message)
            case Free():
                self._mail.freed(message)
            case Cancel(request, attempt):
                self._call_off(request, attempt)
            case Route(route, legs):
                self._set_route(route, tuple(_answered_at(leg, peer) for leg in legs))
            case Prepare():
                self._preparing += 1
                self._orders.put((message, str(message.facts["reply"]) or peer))
            case Hello():
                self._greet(message, message.endpoint or peer)
            case Bye():
                self._forget(message.who)
            case Call(_, "about" | "host"):
                threading.Thread(target=self._serve_guest, args=(message, peer), daemon=True).start()
            case Call(request, "release", facts):
                self._release([str(name) for name in facts["segments"]])
                self._mail.send(str(facts["reply"]) or peer, Answer(request))
            case Drain():
                self._draining.set()
            case _:
                self._mail.odd(message)

    def _serve_guest(self, call: Call, peer: str) -> None:
        """In a thread of its own: a planner elsewhere tries something."""
        self._mail.send(peer, self._guests.answer(call))

    def _greet(self, hello: Hello, endpoint: str) -> None:
        self._callers[endpoint] = hello
        if hello.host != self._mail.host:
            self._mail.spare(endpoint)
        facts = {"device": asdict(self.device)}
        self._mail.send(endpoint, Welcome(self.name, self.endpoint, os.getpid(), self._mail.host, self.life, facts))
        _log.info("%s serves %s", self.name, hello.who)

    def _gather(self, work: Work) -> None:
        """Keep what came; queue the request when nothing is missing."""
        if work.route not in self._routes:
            # The executor before us may be faster than the caller that tells the route.
            self._early.setdefault(work.route, []).append(work)
            if len(self._early) > _REMEMBERED:
                for late in self._early.pop(next(iter(self._early))):
                    self._mail.discard(late)
            return
        leg = self._routes[work.route].get(work.segment)
        if leg is None:
            self._mail.odd(work)
            return
        if self._cancelled.get(work.request, -1) >= work.attempt:
            self._mail.release(work.home, work.values)
            return
        homes: tuple[tuple[str, Carried], ...] = tuple((work.home, value) for value in work.values.values())
        values: Mapping[str, Carried] = work.values
        if not all(name in values for name in leg.inputs):
            key = (work.request, work.segment)
            parts = self._gathering.get(key)
            if parts is None or parts.attempt < work.attempt:
                parts = self._gathering[key] = _Gathering(work.attempt)
                if len(self._gathering) > _REMEMBERED:
                    self._gathering.popitem(last=False)
            parts.values.update(values)
            parts.homes.extend(homes)
            if not all(name in parts.values for name in leg.inputs):
                return
            del self._gathering[key]
            values, homes = parts.values, tuple(parts.homes)
        job = _Job(work, leg, values, homes)
        segment = self._segments.get(work.segment)
        if segment is None:
            self._fail(job, RunFailed(f"{self.name}: segment {work.segment} is not prepared here.", "Prepare it."))
        elif len(self._waiting) >= self._most_waiting:
            self._fail(
                job,
                Overloaded(
                    f"{self.name}: {len(self._waiting)} requests wait already.", "Send fewer, or later.",
                    waiting=len(self._waiting),
                ),
            )  # fmt: skip
        else:
            self._waiting.put(job, segment.model, segment.mean_s)

    def _run(self, job: _Job) -> None:
        work, segment = job.work, self._segments.get(job.work.segment)
        now_s = time.monotonic()
        try:
            if work.deadline_s is not None and work.deadline_s < now_s:
                raise DeadlineExceeded(f"{self.name}: the deadline passed before its turn came.", deadline_s=0.0)
            if segment is None:
                raise RunFailed(f"{self.name}: segment {work.segment} was released.", "Load the model again.")
            self._running = (Running(work.request, work.attempt, work.segment, 0.0), now_s)
            inputs = open_values(self._mail, job.values)
            self._check_inputs(segment, inputs)
            outputs = self._outputs(segment, job.leg, inputs)
            self._mail.check(job.values)
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
        self._release_slots(job)

    def _outputs(self, segment: _Segment, leg: Leg, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """A run, computed into shared memory where the library can and the readers map it."""
        runnable = segment.runnable
        if not segment.runs_into or not isinstance(runnable, RunsInto):
            return runnable.run(inputs)

        def place(name: str, dtype: DType, shape: tuple[int, ...]) -> Array:
            if name in self._slots:  # it asks again, and will not use what it got before
                self._slots.pop(name).drop()
            readers = [send.endpoint for send in leg.sends if name in send.values]
            slot = self._mail.room(readers, dtype, shape)
            if slot is None:
                return np.empty(shape, numpy_dtype(dtype))
            self._slots[name] = slot
            return slot.array

        return runnable.run_into(inputs, place)

    def _check_inputs(self, segment: _Segment, inputs: Mapping[str, Data]) -> None:
        who = f"{self.name} reads {segment.target}'s input"
        try:
            check_values(who, inputs, segment.source.inputs, sizes=False, optional=True)
        except Garbage as error:
            raise Garbage(error.message, error.remedy, value=error.value, read=True) from error

    def _hand_on(self, job: _Job, outputs: Mapping[str, Data], run_s: float) -> None:
        """Send every reader what it reads."""
        work, slots, sends = job.work, self._slots, job.leg.sends
        published = {
            name: slot.publish([send.endpoint for send in sends if name in send.values])
            for name, slot in slots.items()
            if outputs[name] is slot.array
        }
        for send in sends:
            home, values = self._mail.place(send.endpoint, {name: outputs[name] for name in send.values}, published)
            if send.segment:
                message: Message = Work(
                    work.request, work.attempt, work.deadline_s, work.route, send.segment, values, home
                )
            else:
                message = Done(work.request, work.attempt, work.segment, values, home, {"run_s": run_s})
            self._mail.send(send.endpoint, message)
        self._drop_slots()

    def _drop_slots(self) -> None:
        """Give back what a run did not fill; harmless for slots that were published."""
        for slot in self._slots.values():
            slot.drop()
        self._slots.clear()

    def _fail(self, job: _Job, error: EdgertError) -> None:
        work = job.work
        self._drop_slots()
        self._mail.send(job.leg.caller, Failed(work.request, work.attempt, work.segment, errors.to_json(error)))
        self._release_slots(job)

    def _release_slots(self, job: _Job) -> None:
        for home, value in job.homes:
            if home:
                self._mail.release(home, {"": value})

    def _call_off(self, request: int, attempt: int) -> None:
        self._cancelled[request] = attempt
        if len(self._cancelled) > _REMEMBERED:
            self._cancelled.popitem(last=False)
        for job in self._waiting.remove(lambda job: job.work.request == request and job.work.attempt <= attempt):
            self._release_slots(job)
        for key in [key for key in self._gathering if key[0] == request and self._gathering[key].attempt <= attempt]:
            for home, value in self._gathering.pop(key).homes:
                if home:
                    self._mail.release(home, {"": value})

    def _set_route(self, route: int, legs: tuple[Leg, ...]) -> None:
        if not legs:
            self._routes.pop(route, None)
            return
        self._routes[route] = {leg.segment: leg for leg in legs}
        for endpoint in {send.endpoint for leg in legs for send in leg.sends}:
            self._mail.expect(endpoint)
        for work in self._early.pop(route, ()):
            self._gather(work)

    def _release(self, names: list[str]) -> None:
        for name in names:
            segment = self._segments.pop(name, None)
            if segment is not None:
                with suppress(EdgertError):  # it is gone, which is what was wanted
                    segment.runnable.close()

    def _forget(self, who: str) -> None:
        """A caller is gone, and what was prepared for it."""
        for endpoint in [endpoint for endpoint, hello in self._callers.items() if hello.who == who]:
            del self._callers[endpoint]
            self._mail.drop(endpoint)

    def _conclude(self, reply: str, answer: Message, segment: _Segment | None) -> None:
        """A preparation ended."""
        self._preparing -= 1
        if segment is not None and isinstance(answer, Prepared):
            self._segments[answer.segment] = segment
        self._mail.send(reply, answer)

    def _prepare_orders(self) -> None:
        """The compiler's thread: one order after another."""
        while (order := self._orders.get()) is not None:
            message, reply = order
            try:
                segment, facts = self._prepared(message)
            except EdgertError as error:
                self._results.put((reply, Refused(message.request, message.segment, errors.to_json(error)), None))
            except Exception as error:  # noqa: BLE001 - as in `_run`
                refusal = PrepareRefused(f"{message.segment}: {type(error).__name__}: {str(error)[:500]}.", target="")
                self._results.put((reply, Refused(message.request, message.segment, errors.to_json(refusal)), None))
            else:
                self._results.put((reply, Prepared(message.request, message.segment, facts), segment))
            self._mail.wake()

    def _prepared(self, order: Prepare) -> tuple[_Segment, dict[str, Any]]:
        facts = order.facts
        # What the caller calls this device is its own affair: another host's npu:0 has a longer name there.
        target = replace(Target.parse(facts["target"]), device=self.device.id)
        source = source_from_json(facts["source"])
        if order.files:
            source = replace(source, path=self._unpacked(order.files, source.path.name))
        cache = Path(facts["cache"]) if facts["cache"] and not order.files else None
        before_bytes, started_s = resident_bytes(), time.perf_counter()
        runnable = backend(target.backend).prepare(source, target, self.device, cache)
        return _Segment(runnable, source, target, str(facts["model"]), isinstance(runnable, RunsInto)), {
            "ran_on": dict(runnable.ran_on),
            "prepare_s": time.perf_counter() - started_s,
            "memory_bytes": max(0, resident_bytes() - before_bytes),
        }

    def _unpacked(self, files: Mapping[str, Carried], name: str) -> Path:
        """Model files of a caller on another host, in a folder of this process."""
        with self._unpacking:
            if self._folder is None:
                self._folder = TemporaryDirectory(prefix="edgert-")
        folder = Path(mkdtemp(dir=self._folder.name))
        for own, content in files.items():
            place = PurePosixPath(own)
            if place.is_absolute() or ".." in place.parts or not place.parts or not isinstance(content, np.ndarray):
                raise PrepareRefused(f"{own!r} is no name of a file.", "Use the same edgert on both ends.", target="")
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(content.tobytes())
        return folder / name

    def _beat(self) -> None:
        """The heartbeat's thread: tells every caller what runs since when."""
        while not self._stopped.is_set():
            callers = list(self._callers.items())
            beat = self._heartbeat()
            for endpoint, _ in callers:
                self._mail.send(endpoint, beat)
            self._progress(beat)
            self._stopped.wait(min((float(hello.facts["heartbeat_s"]) for _, hello in callers), default=0.05))

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


def _answered_at(leg: Leg, peer: str) -> Leg:
    """The leg with the sender's connection in place of an inbox that it does not have."""
    if leg.caller:
        return leg
    return replace(leg, caller=peer, sends=tuple(replace(send, endpoint=send.endpoint or peer) for send in leg.sends))


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
        self._executor.serve()
        os._exit(0)  # drained: the main thread waits for a parent that has nothing more to say


def own_cores(cores: tuple[int, ...]) -> None:
    """Keep this process and all its threads to come on those logical CPUs; none: leave it as it is."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
