"""Inputs that steer a model (an axis, a shape, scales, a count, a branch) and took a value that nothing was checked on.

Kernels behave otherwise there: a library may be right for one axis and wrong for another. The first answer for such
a value is therefore held against the reference then and there, once; a target that differs hands the value over to the
first fallback that does not. Models without such inputs never come here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from edgert.devices.backend import Source
from edgert.errors import ChildTimeout, EdgertError, PrepareRefused
from edgert.graph import Format
from edgert.machine import Machine
from edgert.measure import REMOTES
from edgert.plan import Plan
from edgert.profile import Precision, Target
from edgert.samples import digest_of
from edgert.tensor import Data
from edgert.verify import compare, judge

if TYPE_CHECKING:  # the pipeline imports this module, for plans that need it
    from edgert.execution.pipeline import Made

_log = logging.getLogger(__name__)
CHECK_LIMIT_S = 2.0
"""For the reference to answer one request, its process being up; beyond it the value stays unchecked."""
SPEND_LIMIT_S = 10.0
"""For all checks of one model: whoever sends a new value with every request soon pays nothing more for it, and is told
that the answers are not verified."""
_KEPT = 4096
"""Values that are remembered; beyond them new ones stay unchecked."""

Answer: TypeAlias = Mapping[str, Data]
Evaluate: TypeAlias = Callable[[Answer], Answer]
"""The reference's answer to a request; raises an EdgertError where there is none."""


class Fallback(Protocol):
    """The whole model on another target, ready to run."""

    name: str

    @property
    def targets(self) -> tuple[Target, ...]: ...
    def run(self, inputs: Answer) -> dict[str, Data]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What came of checking one value."""

    right: tuple[Target, ...] = ()
    """Targets whose answer was found right; empty for none."""
    fallback: Fallback | None = None
    """Who answers in place of the plan's targets; None for themselves."""
    reason: str = ""
    """Why not the plan's targets, or why nothing is confirmed."""


class Watch:
    """The checks of one plan in execution. Thread-safe: one check at a time."""

    def __init__(self, plan: Plan, evaluate: Evaluate, prepare: Callable[[Target], Fallback]) -> None:
        """Args:
        plan: one with `controls`.
        evaluate: asks the reference.
        prepare: one of the plan's fallbacks.
        """
        assert plan.controls is not None, "only made for plans that have them"
        self._plan, self._controls = plan, plan.controls
        self._evaluate, self._prepare = evaluate, prepare
        self._checked = frozenset(plan.controls.checked)
        self._verdicts: dict[str, _Verdict] = {}
        self._fallbacks: dict[Target, Fallback] = {}
        self._spent_s = 0.0
        self._slow = False
        self._lock = threading.Lock()

    def run(self, inputs: Answer, plain: Callable[[Answer], Made]) -> Made:
        """What `plain` makes of a request, or the fallback that is right where its answer is not.

        Raises:
            EdgertError: what `plain` or that fallback raised.
        """
        key = digest_of([{name: inputs.get(name) for name in self._controls.names}])
        if key in self._checked:
            return plain(inputs)
        verdict = self._verdicts.get(key)
        if verdict is not None and verdict.fallback is not None:
            return _instead(verdict, verdict.fallback, inputs)
        made = plain(inputs)
        if verdict is None:
            verdict = self._learn(key, inputs, made)
            if verdict.fallback is not None:
                return _instead(verdict, verdict.fallback, inputs)
        return made._replace(confirmed=made.targets == verdict.right)

    def close(self) -> None:
        """Release the fallbacks that were prepared."""
        with self._lock:
            fallbacks, self._fallbacks = list(self._fallbacks.values()), {}
        for fallback in fallbacks:
            fallback.close()

    def _learn(self, key: str, inputs: Answer, made: Made) -> _Verdict:
        """Check a value that was not seen before, and remember what came of it."""
        with self._lock:
            known = self._verdicts.get(key)  # another thread may have had the same value
            if known is not None:
                return known
            if self._spent_s > SPEND_LIMIT_S or len(self._verdicts) >= _KEPT:
                return _Verdict(reason="too many values were new")
            started_s = time.monotonic()
            try:
                verdict = self._verdicts[key] = self._judged(inputs, made)
            finally:
                self._spent_s += time.monotonic() - started_s
        if verdict.fallback is not None:
            _log.warning("%s answers for these values: %s", verdict.fallback.name, verdict.reason)
        elif not verdict.right:
            _log.info("an answer of plan %s was not confirmed: %s", self._plan.id, verdict.reason)
        return verdict

    def _judged(self, inputs: Answer, made: Made) -> _Verdict:
        """The reference decides; without one, or against it, another library that agrees."""
        expected: Answer | None = None
        try:
            expected = None if self._slow else self._evaluate(inputs)
            why = "the reference takes too long"
        except EdgertError as error:
            self._slow = isinstance(error, ChildTimeout)  # one request pays for finding out, not every one
            why = f"the reference gave no answer ({error.message[:200]})"
        if expected is not None:
            why = self._differs(expected, made.outputs, made.targets)
        if not why:
            return _Verdict(made.targets)
        ran = " and ".join(map(str, made.targets))
        why = f"{ran}, for these values of its steering inputs: {why}"
        own = {target.backend for target in made.targets}
        law = evaluator(self._plan.format, self._plan.own_precision)
        # The evaluator is no fallback of a plan that it did not confirm, but may know better here; or it was too slow.
        asked = [target for target in self._plan.fallbacks if target != law] + ([law] if expected is not None else [])
        for target in asked:
            fallback, outputs = self._second(target, inputs)
            if fallback is None:
                continue
            if expected is not None and not self._differs(expected, outputs, fallback.targets):
                return _Verdict(fallback.targets, fallback, why)
            if target.backend not in own and not self._differs(outputs, made.outputs, made.targets):
                # Two libraries that share no kernels agree: against a reference that is a dispute, else a confirmation.
                return _Verdict(reason=why) if expected is not None else _Verdict(made.targets)
        return _Verdict(reason=why)

    def _second(self, target: Target, inputs: Answer) -> tuple[Fallback | None, Answer]:
        """A fallback and its answer; none where it refuses."""
        try:
            if target not in self._fallbacks:
                self._fallbacks[target] = self._prepare(target)
            return self._fallbacks[target], self._fallbacks[target].run(inputs)
        except EdgertError as error:
            _log.info("fallback %s gives no second opinion: %s", target, error.message)
            return None, {}

    def _differs(self, expected: Answer, got: Answer, targets: Sequence[Target]) -> str:
        """Why an answer leaves the tolerance; '' when it does not."""
        plan, tolerance = self._plan, self._controls.tolerance
        errors = compare(expected, got, {}, tolerance.relative or 0.0)
        dtypes = {value.name: value.dtype for value in plan.outputs}
        reasons = (judge(errors, tolerance, plan.own_precision, target.precision, dtypes) for target in targets)
        return next(filter(None, reasons), "")


def _instead(verdict: _Verdict, fallback: Fallback, inputs: Answer) -> Made:
    from edgert.execution.pipeline import Made  # which imports this module, for plans that need it

    return Made(fallback.run(inputs), fallback.targets, verdict.reason, confirmed=True)


_REFERENCES: Mapping[str, tuple[str, str, str]] = {  # format -> backend, variant and name of its evaluator
    "onnx": ("reference", "", "onnx"),
    "tflite": ("litert", "ref", "litert+ref"),
}


def evaluator(form: Format, precision: Precision) -> Target:
    """The format's evaluator as a target."""
    backend, variant, _ = _REFERENCES[form]
    return Target(backend, "cpu:0", precision, 1 if variant else 0, variant)


def reference(source: Source, machine: Machine) -> Evaluate:
    """Asks the format's evaluator, in a child that serves the planner too, with a limit of time."""
    target, name = evaluator(source.format, source.precision), _REFERENCES[source.format][2]

    def evaluate(inputs: Answer) -> Answer:
        if not any(reach.backend == target.backend and reach.device == target.device for reach in machine.reached()):
            raise PrepareRefused(
                f"{name} is not installed.", "`edgert probe` shows what is missing.", target=str(target)
            )
        remote = REMOTES.borrow(f"evaluator {name}")
        try:
            remote.call("empty")  # waits until it is up
            started_s = time.monotonic()
            runnable = remote.prepare(source, target, machine.device(target.device), timeout_s=CHECK_LIMIT_S)
            runnable.timeout_s = max(0.01, started_s + CHECK_LIMIT_S - time.monotonic())
            return runnable.run(inputs)
        finally:
            REMOTES.give_back(remote)

    return evaluate
