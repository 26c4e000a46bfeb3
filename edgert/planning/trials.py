"""Try every candidate once: does it prepare, does it run, what does it answer, about how fast is it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgert.devices import quota
from edgert.devices.backend import Source
from edgert.devices.remote import Remote
from edgert.errors import ChildDied, ChildTimeout, EdgertError, NotEnoughMemory, RunFailed
from edgert.machine import Machine
from edgert.measure import REMOTES, RUN_LIMIT_S, Contestant, hold
from edgert.profile import Outcome, Row, Target
from edgert.tensor import Data

_log = logging.getLogger(__name__)
_FEWEST_PREPARE_S = 20.0
"""A library's first preparation in a new process includes loading it."""
_FEWEST_RUN_S = 10.0
"""A large model's run on a small board, with its first touch of every weight."""
_RUN_PER_BUDGET = 6.0


def run_limit_s(budget_s: float) -> float:
    """Seconds for one run in a trial; beyond it the target counts as hung.

    A model that never ends costs this much in each library, side by side, so it follows the budget: at the default of
    10 s it is `RUN_LIMIT_S`, and never more. Without a budget nothing is compared, and the first target that runs is
    wanted however slow it is.
    """
    return min(RUN_LIMIT_S, max(_FEWEST_RUN_S, _RUN_PER_BUDGET * budget_s)) if budget_s else RUN_LIMIT_S


@dataclass
class Trial:
    """What came of one candidate."""

    row: Row
    contestant: Contestant | None = None
    """Prepared and waiting in its child, when it ran."""
    answers: list[dict[str, Data]] = field(default_factory=list)
    """Its outputs, one set a sample."""
    prepared: bool = False
    """Whether it prepared and then refused the samples, which may be the samples' fault."""


@dataclass(frozen=True, slots=True)
class Course:
    """What all trials of one planning share."""

    source: Source
    machine: Machine
    samples: Sequence[Mapping[str, Data]]
    cache: Path | None
    """Where backends may keep compiled models."""
    deadline_s: float
    """`time.monotonic()` after which no further candidate is begun."""
    budget_s: float
    known: Mapping[Target, Row] = field(default_factory=dict)
    """What an earlier planning found, with the same versions: what was refused then is not tried again."""

    corners: bool = False
    """Whether the last of the samples is drawn from corners, which a target may refuse without being out."""

    def may_fail(self, index: int) -> bool:
        """Whether a refusal of sample `index` says nothing against who refuses: an error is no wrong answer."""
        return self.corners and 0 < index == len(self.samples) - 1

    @property
    def prepare_limit_s(self) -> float:
        """For one preparation; beyond it the library counts as hung."""
        return max(_FEWEST_PREPARE_S, 3 * self.budget_s)

    @property
    def run_limit_s(self) -> float:
        """For one run of a target whose speed is not known yet, as the function of that name says."""
        return run_limit_s(self.budget_s)

    @property
    def patient(self) -> bool:
        """Whether a target that ran out of time would do so with a larger budget too."""
        return self.run_limit_s >= RUN_LIMIT_S


class Trials:
    """The trials of one planning, with the children that hold what was prepared. A context manager: the children are
    given back at its end.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        self._remotes: dict[str, Remote] = {}

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        for remote in self._remotes.values():
            REMOTES.give_back(remote)

    def remote(self, target: Target) -> Remote:
        """The child in which a target is tried; it is kept until the end."""
        name = _child_name(target)
        if name not in self._remotes:
            self._remotes[name] = REMOTES.borrow(name, self.course.machine.device(target.device))
        return self._remotes[name]

    def run(self, targets: Sequence[Target], progress: Callable[[Target], None] = lambda _: None) -> list[Trial]:
        """Try the targets in the given order; those of different libraries side by side.

        The first target of each library is always tried, the rest while there is budget.
        """
        groups: dict[str, list[Target]] = {}
        for target in targets:
            groups.setdefault(_child_name(target), []).append(target)
        for alike in groups.values():
            self.remote(alike[0]).start()
        with ThreadPoolExecutor(max_workers=max(1, len(groups))) as pool:
            found = pool.map(lambda item: self._group(item[0], item[1], progress), groups.items())
            trials = {trial.row.target: trial for group in found for trial in group}
        return [trials[target] for target in targets]

    def _group(self, name: str, targets: Sequence[Target], progress: Callable[[Target], None]) -> list[Trial]:
        trials = []
        for position, target in enumerate(targets):
            if position and time.monotonic() > self.course.deadline_s:
                trials.append(Trial(Row(target, "untried", f"the budget of {self.course.budget_s:g} s was spent")))
                continue
            progress(target)
            known = self.course.known.get(target)
            if known is not None and known.outcome in ("refused", "crashed", "timeout"):
                trials.append(Trial(replace(known, reason=_remembered(known.reason))))
            else:
                trials.append(self._try(self._remotes[name], target))
        return trials

    def _try(self, remote: Remote, target: Target) -> Trial:
        course = self.course
        device = course.machine.device(target.device)
        try:
            hold(remote, course.samples)
            runnable = remote.prepare(course.source, target, device, course.cache, timeout_s=course.prepare_limit_s)
        except EdgertError as error:
            return Trial(failed(target, error))
        row = Row(
            target, "ok", ran_on=runnable.ran_on, prepare_s=runnable.prepare_s, memory_bytes=runnable.memory_bytes
        )
        if not course.samples:
            return Trial(replace(row, outcome="untried", reason="there are no inputs to try it on"), prepared=True)
        answers, seconds = [], []
        try:
            for index in range(len(course.samples)):
                try:
                    outputs, run_s = runnable.run_held(f"sample {index}", timeout_s=course.run_limit_s)
                except RunFailed as error:
                    if not course.may_fail(index):
                        raise
                    _log.info("%s refuses the corners: %s", target, error.message)
                    break
                answers.append(outputs)
                seconds.append(run_s)
            if min(seconds) < 1.0:  # the first run warms caches and allocates: it says little of a fast target
                seconds.extend(runnable.time("sample 0", 2, at_most_s=1.0, timeout_s=course.run_limit_s))
        except EdgertError as error:
            row = replace(failed(target, error), ran_on=row.ran_on, prepare_s=row.prepare_s)
            return Trial(row, prepared=isinstance(error, RunFailed))
        contestant = Contestant(
            target, course.source, device, remote, runnable, course.samples, course.cache,
            max(min(seconds), 1e-7), course.prepare_limit_s,
        )  # fmt: skip
        return Trial(row, contestant, answers)


def failed(target: Target, error: EdgertError) -> Row:
    """The row of a target that did not prepare or run."""
    outcome: Outcome = "refused"
    if isinstance(error, ChildTimeout):
        outcome = "timeout"
    elif isinstance(error, NotEnoughMemory) or (isinstance(error, ChildDied) and quota.is_hit(error.message)):
        outcome = "out of memory"
    elif isinstance(error, ChildDied):
        outcome = "crashed"
    _log.info("%s: %s: %s", target, outcome, error.message)
    return Row(target, outcome, error.message[:400])


def _child_name(target: Target) -> str:
    """One child a library and device; the CPU's variants share one."""
    return f"{target.backend}@{target.device}" + (
        f"+{target.variant}" if target.variant and not target.device.startswith("cpu") else ""
    )


def _remembered(reason: str) -> str:
    return reason if reason.startswith("as before: ") else f"as before: {reason}"
