"""One executor as its caller sees it: spawned or found, what it has prepared, when it was last heard of."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from edgert.devices.backend import Source
from edgert.execution.executor import Executor
from edgert.execution.limits import Limits
from edgert.machine import Device
from edgert.profile import Target
from edgert.transport.child import Child
from edgert.transport.direct import WAKE, Bell
from edgert.transport.endpoints import sweep
from edgert.transport.messages import Heartbeat

_log = logging.getLogger(__name__)
Transport: TypeAlias = Literal["ipc", "tcp", "inproc"]
State: TypeAlias = Literal["starting", "up", "down", "closed"]


@dataclass(frozen=True, slots=True)
class Place:
    """What names an executor: the same place is the same executor, whatever model asks."""

    device: str
    """Device id."""
    cores: tuple[int, ...] = ()
    """Logical CPUs that are its own; empty when it does not keep to any."""
    endpoint: str = ""
    """Where one listens that somebody else started; '' for one to spawn."""
    key: str = ""
    """Its public key, where the endpoint is tcp; '' for this machine's own."""

    def __str__(self) -> str:
        cores = f" on cores {','.join(map(str, self.cores))}" if self.cores else ""
        return f"executor of {self.device}{cores}{f' at {self.endpoint}' if self.endpoint else ''}"


@dataclass(frozen=True, slots=True)
class Order:
    """A segment that an executor shall hold."""

    name: str
    """Unique among all that this process asks for."""
    source: Source
    target: Target
    device: Device
    model: str
    """Whose share of the device its runs are charged to."""
    cache: str
    """Folder for what backends compile; '' for none."""
    measured_s: float
    """Of one run, when the plan was made; 0 when unknown."""
    prepared_s: float
    """What preparing took, when the plan was made; 0 when unknown."""


@dataclass(slots=True)
class Held:
    """A segment at a member."""

    order: Order
    ready: bool = False
    """Prepared in this life."""
    asked_s: float | None = None
    """When the order went out, if no answer came yet."""
    failures: int = 0
    """Lives that ended, or hung, while they prepared it."""
    runs: int = 0
    """In this life, as the last heartbeat said."""
    mean_s: float = 0.0
    """Of a run, as the last heartbeat said; 0 before the first."""
    taken: Counter[int] = field(default_factory=Counter)
    """Requests under way whose route leads through it, by priority."""

    @property
    def outstanding(self) -> int:
        """Requests under way whose route leads through it."""
        return sum(self.taken.values())

    def saw(self, run_s: float) -> None:
        """The first run of this life is over; later ones are in the heartbeats."""
        if not self.runs:
            self.runs, self.mean_s = 1, run_s

    def expected_s(self) -> float:
        """Time of a run, as far as known."""
        return max(self.mean_s, self.order.measured_s)

    def prepare_limit_s(self, limits: Limits) -> float:
        """When preparing it counts as hung."""
        return limits.prepare_s + limits.prepare_factor * self.order.prepared_s

    def limit_s(self, limits: Limits) -> float:
        """When a run of it counts as hung."""
        hang_s = limits.hang_s(self.expected_s())
        return hang_s if self.runs else max(hang_s, limits.first_run_s)


@dataclass(slots=True, eq=False)
class Member:
    """One executor. Everything but the process itself belongs to the fleet's loop."""

    place: Place
    device: Device
    limits: Limits
    state: State = "down"
    process: Child | None = None
    thread: Executor | None = None
    """In place of a process, where the transport is inproc."""
    endpoint: str = ""
    life: int = 0
    pid: int = 0
    heard_s: float = 0.0
    """`time.monotonic()` of its last message."""
    excused_s: float = 0.0
    """Before this moment nobody looked (this process, or the whole machine, stood still): what was not heard until
    then, or took long, proves nothing."""
    listens: str = ""
    """Where a process of ours was told to; known before it does."""
    unwatch: Callable[[], None] = field(default=lambda: None)
    """Ends the wait for its process's end."""
    beat: Heartbeat | None = None
    started_s: float = 0.0
    faults: int = 0
    """In a row, without a calm time between."""
    held: dict[str, Held] = field(default_factory=dict)
    near: bool = True
    """On this host."""
    reason: str = ""
    """Why it is down."""

    @property
    def up(self) -> bool:
        return self.state == "up"

    def load_s(self) -> float:
        """Time that the requests under way will keep it busy, as far as known."""
        return sum(held.outstanding * held.expected_s() for held in self.held.values())

    def others_s(self, model: str, share_s: float, priority: int) -> float:
        """Time for which other models' requests of that priority or a higher one go before work of `share_s`, when
        each model gets an equal share; from any thread.
        """
        loads_s: defaultdict[str, float] = defaultdict(float)
        for held in tuple(self.held.values()):
            if held.order.model != model:
                ahead = sum(count for own, count in tuple(held.taken.items()) if own >= priority)
                loads_s[held.order.model] += ahead * held.expected_s()
        return sum(min(load_s, share_s) for load_s in loads_s.values())

    def lapse_s(self) -> float:
        """Silence of so many seconds is a fault."""
        longest_s = max((held.limit_s(self.limits) for held in self.held.values() if held.outstanding), default=0.0)
        preparing_s = max(
            (held.prepare_limit_s(self.limits) for held in self.held.values() if held.asked_s is not None),
            default=0.0,
        )
        return max(self.limits.lapse_s, longest_s, preparing_s)

    def idle_since(self, moment_s: float) -> bool:
        """Whether it said after that moment that nothing waits and nothing runs. Never of another host's, to which a
        large value may be on its way for long.
        """
        beat = self.beat
        return self.near and beat is not None and self.heard_s > moment_s and not beat.queued and not beat.running

    def complaint(self, now_s: float) -> tuple[Literal["hung", "stopped"], str] | None:
        """What is wrong with it, judged by its heartbeats; None when nothing is."""
        silent_s, looked_s = now_s - max(self.heard_s, self.excused_s), now_s - self.excused_s
        if self.beat is not None:
            for run in self.beat.running:
                held = self.held.get(run.segment)
                if held is not None and min(run.for_s, looked_s) > (limit_s := held.limit_s(self.limits)):
                    return "hung", (
                        f"a run of {held.order.target} took {run.for_s:.2f} s, beyond its limit of {limit_s:.2f} s"
                    )
        for held in self.held.values():
            limit_s = held.prepare_limit_s(self.limits)
            if held.asked_s is not None and min(now_s - held.asked_s, looked_s) > limit_s:
                return "hung", f"preparing {held.order.target} took more than {limit_s:.0f} s"
        if silent_s > 3 * self.limits.heartbeat_s and self.pid and _is_stopped(self.pid):
            return "stopped", f"process {self.pid} was stopped (SIGSTOP or a debugger)"
        if silent_s > self.lapse_s():
            whom = f"process {self.pid}" if self.pid else "it"  # of another host only its endpoint is known
            return "stopped", f"nothing was heard of {whom} for {silent_s:.2f} s"
        return None


def _is_stopped(pid: int) -> bool:
    """Whether the kernel holds a process of this box stopped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in ("T", "t")


def kill(member: Member) -> Callable[[], None] | None:
    """SIGKILL it at once, and return what is left to do: reaping and closing, in a thread that may wait."""
    process, member.process = member.process, None
    listens, member.listens = member.listens, ""
    if member.thread is not None:
        # A thread cannot be killed: one that hangs is left behind, and what it still sends is thrown away.
        member.thread.drain()
        member.thread = None
    if process is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)

    def rest() -> None:
        process.close()
        sweep(listens)

    return rest


def watch(pid: int, gone: Callable[[], None], apart: Callable[[Callable[[], None]], None]) -> Callable[[], None]:
    """Call `gone`, in a thread of its own, when a process of this box has ended. It need not be a child.

    Args:
        pid: of the process.
        gone: called once, unless it was called off.
        apart: starts the thread; see `Loop.apart`.

    Returns:
        Calls it off; harmless at any time, and to be called in any case.
    """
    with contextlib.ExitStack() as opened:
        try:
            descriptor = os.pidfd_open(pid)
            opened.callback(os.close, descriptor)
            bell = Bell()
            opened.callback(bell.close)
            held = opened.pop_all()
        except ProcessLookupError:
            gone()
            return _nothing
        except OSError as error:  # Linux before 5.3, or no descriptor is left: then its silence tells
            _log.warning("the end of process %d will be noticed by its silence alone: %s", pid, error)
            return _nothing

    def wait() -> None:
        with held:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(bell.fd, select.POLLIN)
            ended = any(fd == descriptor for fd, _ in poll.poll())
        if ended:
            gone()

    try:
        apart(wait)
    except RuntimeError as error:  # no thread is left
        held.close()
        _log.warning("the end of process %d will be noticed by its silence alone: %s", pid, error)
        return _nothing
    return lambda: bell.ring(WAKE)


def _nothing() -> None:
    """There is nothing to be called off."""
