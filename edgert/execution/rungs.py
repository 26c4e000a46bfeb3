"""What answers on one rung of a plan's ladder, and how it is prepared: in this process or in children.

CPU targets that ran in a child once run in this process; any other runs in a child, so that a crash costs one answer's
time and not the application.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol, TypeAlias

from edgert.devices import backend
from edgert.devices.backend import Runnable, Source
from edgert.devices.host import pin_thread
from edgert.devices.remote import Remote
from edgert.errors import EdgertError, RunFailed
from edgert.execution.segments import Parts, Relay, Step, parts_of
from edgert.execution.streaming import LEAN_FOLDER, LeanParts, Piece, Streamed, extents_of
from edgert.machine import Machine
from edgert.plan import Instance, Plan, Residency
from edgert.profile import Target
from edgert.tensor import Data

Isolation: TypeAlias = Literal["auto", "none"]
EVALUATOR = "reference"
_HANG_FACTOR = 50
_FEWEST_HANG_S = 10.0
"""A run on an isolated device counts as hung after `_HANG_FACTOR` times its measured time, but not before this."""
_UNKNOWN_HANG_S = 60.0
"""The same for a target that was never timed."""
_FEWEST_PREPARE_S = 60.0


class Rung(Protocol):
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


class Instances:
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


class Split:
    """The plan's segments, each prepared on its target."""

    def __init__(self, plan: Plan, prepared: Sequence[Instances]) -> None:
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


class Rungs:
    """Prepares the rungs of one plan: its own segments, then each fallback for the whole model."""

    def __init__(
        self, plan: Plan, source: Source, machine: Machine, cache: Path | None, *, isolation: Isolation,
        parts: Parts | None,
    ) -> None:  # fmt: skip
        """Args: as of `Pipeline`."""
        self._plan, self._source, self._machine, self._cache = plan, source, machine, cache
        self._isolation, self._parts = isolation, parts
        self._unseen = unseen_targets(plan)
        self._remotes: list[Remote] = []
        self._temporary: TemporaryDirectory[str] | None = None
        self.targets: tuple[tuple[Target, ...], ...] = (plan.targets, *((target,) for target in plan.fallbacks))
        """Of each rung: those of the plan's segments, then for the whole model."""

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, number: int) -> str:
        """For messages."""
        return " and ".join(map(str, self.targets[number]))

    def prepare(self, number: int, instances: Sequence[Instance]) -> Rung:
        """One rung.

        Raises:
            EdgertError: it does not prepare; nothing of it is held then.
        """
        target = self.targets[number][0]
        if self._plan.residency is not None:
            return self._prepare_streamed(target, self._plan.residency, planned=number == 0)
        if number == 0 and len(self._plan.segments) > 1:
            return self._prepare_split()
        return self.whole(target, instances)

    def whole(self, target: Target, instances: Sequence[Instance]) -> Instances:
        """The whole model on one target; raises as `prepare`."""
        return self._prepare(target, instances, self._source)

    def close(self) -> None:
        """End the children and remove the files that no cache keeps. After all that was prepared is closed."""
        for remote in self._remotes:
            remote.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _folder(self) -> Path:
        """Where the segments' files go."""
        if self._cache is None and self._temporary is None:
            self._temporary = TemporaryDirectory(prefix="edgert-")
        return self._cache or Path(self._temporary.name if self._temporary else ".")

    def _prepare_streamed(self, target: Target, residency: Residency, *, planned: bool) -> Streamed:
        """The segments in turn on one target; on a fallback each alone, since it may hold more than the planned one."""
        plan = self._plan
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

    def _prepare_split(self) -> Split:
        """Every segment on its target; what was prepared is released when one refuses."""
        plan, folder = self._plan, self._folder()
        parts = self._parts or parts_of(plan, self._source, folder)
        values = {value.name: value for value in (*plan.inputs, *plan.values, *plan.outputs)}
        prepared: list[Instances] = []
        try:
            for index, segment in enumerate(plan.segments):
                own = [instance for instance in plan.instances if instance.segment == index] or [Instance(index)]
                prepared.append(self._prepare(segment.target, own, parts.source(segment, values)))
        except EdgertError:
            for each in prepared:
                each.close()
            raise
        return Split(plan, prepared)

    def _prepare(self, target: Target, instances: Sequence[Instance], source: Source) -> Instances:
        unseen = target in self._unseen
        if (target.device.startswith("cpu") or self._isolation == "none") and not unseen:
            return self._prepare_here(target, instances, source)
        return self._prepare_apart(target, instances, source, unseen=unseen)

    def _prepare_here(self, target: Target, instances: Sequence[Instance], source: Source) -> Instances:
        library, device = backend(target.backend), self._machine.device(target.device)

        def make() -> Runnable:
            return library.prepare(source.on(target), target, device, self._cache)

        try:
            made = [(_pinned(instance.cores, make), instance.cores) for instance in instances]
        except EdgertError:
            raise
        except Exception as error:  # as in `Instances.run`
            raise _typed(error, target) from error
        return Instances(target, made, library.reentrant)

    def _prepare_apart(
        self, target: Target, instances: Sequence[Instance], source: Source, *, unseen: bool
    ) -> Instances:
        device = self._machine.device(target.device)
        remote = Remote(f"executor of {target.device}")
        self._remotes.append(remote)
        apart: list[tuple[Runnable, tuple[int, ...]]] = []
        hang_s = _UNKNOWN_HANG_S if unseen else max(_FEWEST_HANG_S, _HANG_FACTOR * self._plan.measured_s)
        for instance in instances:
            runnable = remote.prepare(source, target, device, self._cache, timeout_s=self._prepare_limit_s(target))
            runnable.timeout_s = hang_s
            apart.append((runnable, instance.cores))
        return Instances(target, apart, reentrant=False)

    def _prepare_limit_s(self, target: Target) -> float:
        known_s = max((row.prepare_s for row in self._plan.candidates if row.target == target), default=0.0)
        return _FEWEST_PREPARE_S + 5 * known_s


def unseen_targets(plan: Plan) -> frozenset[Target]:
    """Fallbacks of a plan that was made at once, which nobody saw prepare: each lives in a child. The evaluator is none
    of them: it is Python, and crashes nothing.
    """
    untried = (row for row in plan.candidates if row.outcome == "untried" and not row.prepare_s)
    return frozenset(row.target for row in untried if row.target.backend != EVALUATOR)


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
