"""A plan in execution: prepared instances, and the next fallback when a target fails.

CPU targets that ran in a child once run in this process; any other runs in a child, so that a crash costs one answer's
time and not the application.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from edgert.devices import backend
from edgert.devices.backend import Runnable, Source
from edgert.devices.host import pin_thread
from edgert.devices.remote import Remote
from edgert.errors import Closed, DeviceLost, EdgertError, RunFailed
from edgert.execution.events import Events
from edgert.execution.segments import Parts, Relay, Step, parts_of
from edgert.execution.streaming import LEAN_FOLDER, LeanParts, Piece, Streamed, extents_of
from edgert.execution.workers import Workers
from edgert.machine import Machine
from edgert.plan import Instance, Plan, Residency
from edgert.profile import Target
from edgert.tensor import Data

if TYPE_CHECKING:  # with the checks: ordinary models need none of them
    from edgert.execution.controls import Watch

_log = logging.getLogger(__name__)
Isolation: TypeAlias = Literal["auto", "none"]
Answer = TypeVar("Answer")
_EVALUATOR = "reference"
_HANG_FACTOR = 50
_FEWEST_HANG_S = 10.0
"""A run on an isolated device counts as hung after `_HANG_FACTOR` times its measured time, but not before this."""
_UNKNOWN_HANG_S = 60.0
"""The same for a target that was never timed."""
_FEWEST_PREPARE_S = 60.0


class Made(NamedTuple):
    """Outputs, and how they were really made. A tuple, since one is made for each request."""

    outputs: dict[str, Data]
    targets: tuple[Target, ...]
    """That ran, in the order of the plan's segments."""
    reason: str
    """Why not the plan's targets; '' when it was."""
    confirmed: bool | None = None
    """Whether a reference confirmed this very answer; None where it is as confirmed as its targets are."""

    @property
    def target(self) -> Target:
        """The first that ran; of a whole model, the only one."""
        return self.targets[0]


class _Rung(Protocol):
    """One way to answer: the plan's segments, or the whole model on one target."""

    name: str

    @property
    def targets(self) -> tuple[Target, ...]: ...
    @property
    def width(self) -> int:
        """How many requests can be at work at once."""
        ...

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]: ...
    def run_pinned(self, inputs: Mapping[str, Data]) -> dict[str, Data]: ...
    def close(self) -> None: ...


class _Prepared:
    """The instances of one target, lent one at a time."""

    def __init__(self, target: Target, runnables: Sequence[tuple[Runnable, tuple[int, ...]]], reentrant: bool) -> None:
        self.target = target
        self.targets: tuple[Target, ...] = (target,)
        self.name = str(target)
        self.all = tuple(runnables)
        self.width = len(self.all)
        # One reentrant instance needs no lending: the common case on the hot path.
        self.shared = runnables[0][0].run if reentrant and len(runnables) == 1 else None
        self.free: queue.SimpleQueue[tuple[Runnable, tuple[int, ...]]] = queue.SimpleQueue()
        for runnable in runnables:
            self.free.put(runnable)

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        if self.shared is None:
            return self._lend(inputs, pinned=False)
        try:
            return self.shared(inputs)
        except EdgertError:
            raise
        except Exception as error:  # a backend of another package may raise anything
            raise _typed(error, self.target) from error

    def run_pinned(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """As `run`, on the instance's own cores: for edgert's threads only, never the caller's."""
        return self._lend(inputs, pinned=True)

    def _lend(self, inputs: Mapping[str, Data], *, pinned: bool) -> dict[str, Data]:
        runnable, cores = lent = self.free.get()
        try:
            if pinned:
                pin_thread(cores)
            return runnable.run(inputs)
        except EdgertError:
            raise
        except Exception as error:  # as in `run`
            raise _typed(error, self.target) from error
        finally:
            self.free.put(lent)

    def close(self) -> None:
        for runnable, _ in self.all:
            with suppress(EdgertError):  # it is gone, which is what was wanted
                runnable.close()


class _Split:
    """The plan's segments, each prepared on its target."""

    def __init__(self, plan: Plan, prepared: Sequence[_Prepared]) -> None:
        self.targets, self.name = plan.targets, " and ".join(map(str, plan.targets))
        self.all = tuple(prepared)
        self.width = sum(each.width for each in prepared)
        steps = [
            Step(segment.target, segment.inputs, segment.outputs, each.run)
            for segment, each in zip(plan.segments, prepared, strict=True)
        ]
        self._relay = Relay(steps, [value.name for value in plan.outputs])

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        return self._relay.run(inputs)

    def run_pinned(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """As `run`: a segment of a split has no cores of its own."""
        return self._relay.run(inputs)

    def close(self) -> None:
        self._relay.close()
        for each in self.all:
            each.close()


class Pipeline:
    """Runs requests of one plan. Thread-safe."""

    def __init__(
        self, plan: Plan, source: Source, machine: Machine, cache: Path | None = None, isolation: Isolation = "auto",
        *, parts: Parts | None = None,
    ) -> None:  # fmt: skip
        """Prepare the plan's segments, or the first fallback that prepares.

        Args:
            plan: what to run.
            source: the whole model.
            machine: where.
            cache: folder for what backends compile and for the segments' files.
            isolation: as for `edgert.load`.
            parts: the segments' files, where they are there already; else they are cut from the model.

        Raises:
            DeviceLost: neither the plan's targets nor any fallback prepares; with each one's reason.
        """
        self.plan = plan
        self._source, self._machine, self._cache, self._isolation = source, machine, cache, isolation
        self._parts = parts
        self._lock = threading.Lock()
        self._closed = False
        self._remotes: list[Remote] = []
        self._workers: Workers | None = None
        self.verified = verified_targets(plan)
        self._unseen = unseen_targets(plan)
        self._ladder = (plan.targets, *((target,) for target in plan.fallbacks))
        """Targets of each rung: those of the plan's segments, then for the whole model."""
        self._temporary: TemporaryDirectory[str] | None = None
        self._rung = 0
        self._why = ""
        self._current = self._climb(0, plan.instances)
        self._watch = None if plan.controls is None else self._watched()

    def run(self, inputs: Mapping[str, Data]) -> Made:
        """One request, on the first rung of the ladder that answers.

        Raises:
            TargetError, ChildError: what the first target said, when no fallback could answer either: the fault then
            lies
                with the inputs, and the plan stays as it was.
            Closed: after `close`.
        """
        if self._watch is not None:
            return self._watch.run(inputs, self._run)
        return self._run(inputs)

    def _run(self, inputs: Mapping[str, Data]) -> Made:
        current = self._current
        try:
            return Made(current.run(inputs), current.targets, self._why)
        except EdgertError as error:
            return self._rescue(current, error, lambda prepared: prepared.run(inputs))

    def submit(
        self, inputs: Mapping[str, Data], finish: Callable[[Made], Answer], *, deadline_s: float | None = None,
        priority: int = 0,
    ) -> Future[Answer]:  # fmt: skip
        """As `run`, in one of the pipeline's own threads, of which there are as many as instances.

        Args:
            inputs: as for `run`.
            finish: makes the future's result.
            deadline_s: seconds from now; see `Workers.submit`, also for what it raises.
            priority: higher goes first.
        """
        with self._lock:
            self._check_open()
            if self._workers is None:
                self._workers = Workers(self._current.width, self._source.path.name)
            workers = self._workers
        return workers.submit(lambda: self._work(inputs, finish), deadline_s=deadline_s, priority=priority)

    def close(self) -> None:
        """Finish what runs, release everything. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()
        self._current.close()
        if self._watch is not None:
            self._watch.close()
        for remote in self._remotes:
            remote.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def events(self) -> Events:
        """Nothing happens to executors where there are none."""
        return Events()

    def checked(self, targets: tuple[Target, ...]) -> bool:
        """Whether the numbers of what ran were confirmed by a reference."""
        if len(targets) > 1:
            return targets == self.plan.targets and self.plan.verification.verified
        return targets[0] in self.verified

    def _work(self, inputs: Mapping[str, Data], finish: Callable[[Made], Answer]) -> Answer:
        if self._watch is not None:
            return finish(self._watch.run(inputs, self._run_pinned))
        return finish(self._run_pinned(inputs))

    def _run_pinned(self, inputs: Mapping[str, Data]) -> Made:
        """As `_run`, on the instance's own cores."""
        current = self._current
        try:
            return Made(current.run_pinned(inputs), current.targets, self._why)
        except EdgertError as error:
            return self._rescue(current, error, lambda prepared: prepared.run_pinned(inputs))

    def _watched(self) -> Watch:
        """Who checks new values of inputs that steer the model."""
        from edgert.execution.controls import Watch, reference  # as above

        evaluate = reference(self._source, self._machine)
        return Watch(self.plan, evaluate, lambda target: self._prepare(target, (Instance(0),), self._source))

    def _rescue(self, failed: _Rung, error: EdgertError, run: Callable[[_Rung], dict[str, Data]]) -> Made:
        """Answer from the next rung that can, and stay there; another thread may have climbed already."""
        with self._lock:
            self._check_open()
            if self._current is not failed:
                failed = self._current
                try:
                    return Made(run(failed), failed.targets, self._why)
                except EdgertError as again:
                    error = again
            _log.warning("%s failed: %s", failed.name, error.message)
            rung = self._rung
            while rung + 1 < len(self._ladder):
                rung += 1
                try:
                    prepared = self._prepare_rung(rung, (Instance(0),))
                except EdgertError as refusal:
                    _log.warning("fallback %s does not prepare: %s", self._ladder[rung][0], refusal.message)
                    continue
                try:
                    outputs = run(prepared)
                except EdgertError as refusal:
                    _log.warning("fallback %s fails too: %s", prepared.name, refusal.message)
                    prepared.close()
                    continue
                self._rung, self._why = rung, f"{failed.name} failed: {error.message}"
                self._current = prepared
                failed.close()
                _log.warning(
                    "degraded: %s answers instead of %s", prepared.name, " and ".join(map(str, self.plan.targets))
                )
                return Made(outputs, prepared.targets, self._why)
        raise error

    def _climb(self, start: int, instances: Sequence[Instance]) -> _Rung:
        reasons = []
        for rung in range(start, len(self._ladder)):
            try:
                prepared = self._prepare_rung(rung, instances if rung == 0 else (Instance(0),))
            except EdgertError as error:
                name = " and ".join(map(str, self._ladder[rung]))
                reasons.append(f"{name}: {error.message}")
                _log.warning("%s does not prepare: %s", name, error.message)
                continue
            self._rung = rung
            self._why = "; ".join(reasons)
            return prepared
        raise DeviceLost(
            f"{self._source.path}: no target of plan {self.plan.id} prepares ({'; '.join(reasons)}).",
            "Look at `edgert probe --refresh`; load again to plan anew.",
        )

    def _prepare_rung(self, rung: int, instances: Sequence[Instance]) -> _Rung:
        if self.plan.residency is not None:
            return self._prepare_streamed(self._ladder[rung][0], self.plan.residency, planned=rung == 0)
        if rung == 0 and len(self.plan.segments) > 1:
            return self._prepare_split()
        return self._prepare(self._ladder[rung][0], instances, self._source)

    def _folder(self) -> Path:
        """Where the segments' files go."""
        if self._cache is None and self._temporary is None:
            self._temporary = TemporaryDirectory(prefix="edgert-")
        return self._cache or Path(self._temporary.name if self._temporary else ".")

    def _prepare_streamed(self, target: Target, residency: Residency, *, planned: bool) -> Streamed:
        """The segments in turn on one target; on a fallback each alone, since it may hold more than the planned one."""
        plan = self.plan
        parts = self._parts or LeanParts(self._source, self._folder() / LEAN_FOLDER)
        values = {value.name: value for value in (*plan.inputs, *plan.values, *plan.outputs)}
        pieces = []
        for index, segment in enumerate(plan.segments):
            source = parts.source(segment, values)
            load = partial(self._prepare, target, (Instance(index),), source)
            pieces.append(Piece(target, segment.inputs, segment.outputs, extents_of(source.path), load))
        held = residency.held if planned else [(index,) for index in range(len(pieces))]
        streamed = Streamed(pieces, [value.name for value in plan.outputs], held)
        try:
            streamed.begin()
        except BaseException:
            streamed.close()
            raise
        return streamed

    def _prepare_split(self) -> _Split:
        """Every segment on its target; what was prepared is released when one refuses."""
        plan, folder = self.plan, self._folder()
        parts = self._parts or parts_of(plan, self._source, folder)
        values = {value.name: value for value in (*plan.inputs, *plan.values, *plan.outputs)}
        prepared: list[_Prepared] = []
        try:
            for index, segment in enumerate(plan.segments):
                own = [instance for instance in plan.instances if instance.segment == index] or [Instance(index)]
                prepared.append(self._prepare(segment.target, own, parts.source(segment, values)))
        except EdgertError:
            for each in prepared:
                each.close()
            raise
        return _Split(plan, prepared)

    def _prepare(self, target: Target, instances: Sequence[Instance], source: Source) -> _Prepared:
        library = backend(target.backend)
        device = self._machine.device(target.device)
        unseen = target in self._unseen
        if (target.device.startswith("cpu") or self._isolation == "none") and not unseen:
            try:
                made = [
                    (
                        _pinned(
                            instance.cores, lambda: library.prepare(source.on(target), target, device, self._cache)
                        ),
                        instance.cores,
                    )
                    for instance in instances
                ]
            except EdgertError:
                raise
            except Exception as error:  # as in `_Prepared.run`
                raise _typed(error, target) from error
            return _Prepared(target, made, library.reentrant)
        remote = Remote(f"executor of {target.device}")
        self._remotes.append(remote)
        apart: list[tuple[Runnable, tuple[int, ...]]] = []
        for instance in instances:
            runnable = remote.prepare(source, target, device, self._cache, timeout_s=self._prepare_limit_s(target))
            runnable.timeout_s = _UNKNOWN_HANG_S if unseen else max(_FEWEST_HANG_S, _HANG_FACTOR * self.plan.measured_s)
            apart.append((runnable, instance.cores))
        return _Prepared(target, apart, reentrant=False)

    def _prepare_limit_s(self, target: Target) -> float:
        known_s = max((row.prepare_s for row in self.plan.candidates if row.target == target), default=0.0)
        return _FEWEST_PREPARE_S + 5 * known_s

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the model {self._source.path.name} was closed.", "Load it again.")


def verified_targets(plan: Plan) -> frozenset[Target]:
    """Targets whose numbers were compared with the reference; the reference itself among them."""
    found = {row.target for row in plan.candidates if plan.verification.verified and row.errors}
    if plan.verification.reference == "onnx":
        found |= {target for target in plan.fallbacks if target.backend == _EVALUATOR}
    return frozenset(found)


def unseen_targets(plan: Plan) -> frozenset[Target]:
    """Fallbacks of a plan that was made at once, which nobody saw prepare: each lives in a child. The evaluator is none
    of them: it is Python, and crashes nothing.
    """
    untried = (row for row in plan.candidates if row.outcome == "untried" and not row.prepare_s)
    return frozenset(row.target for row in untried if row.target.backend != _EVALUATOR)


def _typed(error: Exception, target: Target) -> RunFailed:
    """What a library raised against the rules, as an error of the tree."""
    return RunFailed(f"{target}: {type(error).__name__}: {error}.")


def _pinned(cores: tuple[int, ...], make: Callable[[], Runnable]) -> Runnable:
    """What `make` makes, made in a thread on those cores: a library's own threads inherit where they were created."""
    if not cores:
        return make()

    def work() -> Runnable:
        pin_thread(cores)
        return make()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()
