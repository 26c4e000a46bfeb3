"""A plan in execution in this process (and children of it): the rung that answers, and the next when a target fails."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from edgert.devices.backend import Source
from edgert.errors import Closed, DeviceLost, EdgertError, RunFailed
from edgert.execution.events import Events
from edgert.execution.rungs import EVALUATOR, Isolation, Rung, Rungs
from edgert.execution.segments import Parts
from edgert.execution.workers import Workers
from edgert.machine import Machine
from edgert.plan import Instance, Plan
from edgert.profile import Target
from edgert.tensor import Data

if TYPE_CHECKING:  # with the checks: ordinary models need none of them
    from edgert.execution.controls import Watch
    from edgert.execution.refusals import Refusals

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
_KNOWN_BYTES = 16 << 20
"""Larger requests are not kept to try a target on."""


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
        self._source, self._machine = source, machine
        self._rungs = Rungs(plan, source, machine, cache, isolation=isolation, parts=parts)
        self._lock = threading.Lock()
        self._closed = False
        self._workers: Workers | None = None
        self.verified = verified_targets(plan)
        self._rung = 0
        self._why = ""
        self._known: dict[str, Data] | None = None
        """A request that was answered; empty where the first one is not worth keeping."""
        self._refusals: Refusals | None = None
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
            made = Made(current.run(inputs), current.targets, self._why)
        except EdgertError as error:
            return self._rescue(current, error, inputs, lambda prepared: prepared.run(inputs))
        if self._known is None:
            self._known = copied(inputs)
        return made

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
                current = self._current
                threads = max(_cores_of(target) for target in current.targets)
                self._workers = Workers(current.width, self._source.path.name, threads=threads)
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
        self._rungs.close()

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
            made = Made(current.run_pinned(inputs), current.targets, self._why)
        except EdgertError as error:
            return self._rescue(current, error, inputs, lambda prepared: prepared.run_pinned(inputs))
        if self._known is None:
            self._known = copied(inputs)
        return made

    def _watched(self) -> Watch:
        """Who checks new values of inputs that steer the model."""
        from edgert.execution.controls import Watch, reference  # as above

        evaluate = reference(self._source, self._machine)
        return Watch(self.plan, evaluate, lambda target: self._rungs.whole(target, (Instance(0),)))

    def _refused(self) -> Refusals:
        """Who looks into requests that a target refused."""
        if self._refusals is None:
            from edgert.execution.controls import reference
            from edgert.execution.refusals import Refusals  # as above

            self._refusals = Refusals(self.plan, self._rungs, reference(self._source, self._machine))
        return self._refusals

    def _rescue(
        self, failed: Rung, error: EdgertError, inputs: Mapping[str, Data], run: Callable[[Rung], dict[str, Data]]
    ) -> Made:
        """Answer from the next rung that can, and stay there; another thread may have climbed already. A target that
        is well and refused stays.
        """
        with self._lock:
            self._check_open()
            if self._current is not failed:
                failed = self._current
                try:
                    return Made(run(failed), failed.targets, self._why)
                except EdgertError as again:
                    error = again
            if isinstance(error, RunFailed) and self._refused().is_well(failed, self._known or None):
                return self._refused().answer(self._rung, failed, error, inputs, run)
            _log.warning("%s failed: %s", failed.name, error.message)
            rung = self._rung
            while rung + 1 < len(self._rungs):
                rung += 1
                try:
                    prepared = self._rungs.prepare(rung, (Instance(0),))
                except EdgertError as refusal:
                    _log.warning("fallback %s does not prepare: %s", self._rungs.name(rung), refusal.message)
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

    def _climb(self, start: int, instances: Sequence[Instance]) -> Rung:
        reasons = []
        for rung in range(start, len(self._rungs)):
            try:
                prepared = self._rungs.prepare(rung, instances if rung == 0 else (Instance(0),))
            except EdgertError as error:
                name = self._rungs.name(rung)
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

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the model {self._source.path.name} was closed.", "Load it again.")


def copied(inputs: Mapping[str, Data]) -> dict[str, Data]:
    """A request to try targets on later, in arrays of its own; empty for one that is not worth the memory."""
    arrays = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
    if len(arrays) < len(inputs) or sum(array.nbytes for array in arrays.values()) > _KNOWN_BYTES:
        return {}
    return {name: array.copy() for name, array in arrays.items()}


def verified_targets(plan: Plan) -> frozenset[Target]:
    """Targets whose numbers were compared with the reference; the reference itself among them."""
    found = {row.target for row in plan.candidates if plan.verification.verified and row.errors}
    if plan.verification.reference == "onnx":
        found |= {target for target in plan.fallbacks if target.backend == EVALUATOR}
    return frozenset(found)


def _cores_of(target: Target) -> int:
    """Cores that a run takes."""
    if not target.device.startswith("cpu"):
        return 1  # that waits for the device
    return target.threads or os.cpu_count() or 1
