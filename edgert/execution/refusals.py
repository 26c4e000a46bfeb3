"""Requests that a target refused although it is well: mostly the request is at fault, sometimes the library.

A library that refuses an index outside its table is right, and one that answers it is not: so what a fallback says to a
request that was refused counts only where the format's evaluator says the same. The plan stays on its target.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from edgert.errors import EdgertError, RunFailed
from edgert.execution.controls import Evaluate, evaluator
from edgert.execution.pipeline import Made
from edgert.execution.rungs import Rung, Rungs
from edgert.plan import Instance, Plan, Tolerance
from edgert.profile import Precision
from edgert.tensor import Data
from edgert.verify import compare, judge

_log = logging.getLogger(__name__)
_SPEND_LIMIT_S = 10.0
"""For all second opinions of one model: whoever sends bad requests all day soon gets his errors at once."""
_STRIKES = 3
"""Refusals in a row, before anything was ever answered, after which the target itself is at fault."""


class Refusals:
    """What one pipeline knows of refused requests. Used under the pipeline's lock."""

    def __init__(self, plan: Plan, rungs: Rungs, evaluate: Evaluate) -> None:
        """Args:
        plan: in execution.
        rungs: prepares its fallbacks.
        evaluate: asks the format's evaluator.
        """
        self._plan, self._rungs, self._evaluate = plan, rungs, evaluate
        self._spent_s = 0.0
        self._strikes = 0
        self._proved = False
        """Whether the target that refused just answered another request."""

    def is_well(self, rung: Rung, known: Mapping[str, Data] | None) -> bool:
        """Whether a target that just failed still answers a request that it answered before."""
        if known is None:
            self._strikes += 1
            self._proved = False
            return self._strikes < _STRIKES
        try:
            rung.run(known)
        except EdgertError as error:
            _log.info("%s fails on a request that it answered before: %s", rung.name, error.message)
            return False
        self._proved = True
        return True

    def answer(
        self, number: int, refused: Rung, error: RunFailed, inputs: Mapping[str, Data],
        run: Callable[[Rung], dict[str, Data]],
    ) -> Made:  # fmt: skip
        """The answer of a fallback that the evaluator confirms; unconfirmed where there is no evaluator to ask.

        Args:
            number: of the rung that refused.
            refused: that rung.
            error: what it said.
            inputs: the request.
            run: lets a rung answer it.

        Raises:
            RunFailed: `error`: the evaluator refuses the request too, or says something else; or second opinions have
                cost enough already.
        """
        if self._spent_s > _SPEND_LIMIT_S:
            raise error
        started_s = time.monotonic()
        try:
            made = self._second(number, refused, error, inputs, run)
        finally:
            self._spent_s += time.monotonic() - started_s
        if made is None:
            raise error
        _log.warning("%s answers a request that %s refused: %s", made.targets[0], refused.name, error.message)
        return made

    def _second(
        self, number: int, refused: Rung, error: RunFailed, inputs: Mapping[str, Data],
        run: Callable[[Rung], dict[str, Data]],
    ) -> Made | None:  # fmt: skip
        law = evaluator(self._plan.format, self._plan.own_precision)
        why = f"{refused.name} refused this request: {error.message}"
        expected: Mapping[str, Data] | None = None
        try:
            expected = self._evaluate(inputs)
        except RunFailed as refusal:
            _log.info("the evaluator refuses the request too: %s", refusal.message)
            return None
        except EdgertError as absent:  # not installed, or too slow
            _log.info("nobody to ask about a refused request: %s", absent.message)
        # Of a split one segment refused: each of its libraries may yet run the whole.
        libraries = {target.backend for target in refused.targets} if len(refused.targets) == 1 else set()
        fallbacks = {target: later for later, (target, *_) in enumerate(self._rungs.targets) if later > number}
        for target, later in fallbacks.items():
            if target.backend in libraries or target == law:
                continue
            try:
                rung = self._rungs.prepare(later, (Instance(0),))
            except EdgertError as refusal:
                _log.info("fallback %s does not prepare: %s", target, refusal.message)
                continue
            try:
                outputs = run(rung)
            except EdgertError as refusal:
                _log.info("fallback %s refuses the request too: %s", target, refusal.message)
                libraries.add(target.backend)
                continue
            finally:
                rung.close()
            if expected is None:
                return Made(outputs, (target,), why, confirmed=False)
            if not self._differs(expected, outputs, target.precision):
                return Made(outputs, (target,), why, confirmed=True)
        # The evaluator checks little: alone it is not believed against two libraries, one of which surely is well.
        if expected is None or law not in fallbacks or (self._proved and len(libraries) > 1):
            return None
        return Made(dict(expected), (law,), why, confirmed=False)

    def _differs(self, expected: Mapping[str, Data], got: Mapping[str, Data], precision: Precision) -> str:
        """Why an answer leaves the tolerance; '' when it does not."""
        plan = self._plan
        tolerance = plan.controls.tolerance if plan.controls is not None else Tolerance()
        errors = compare(expected, got, {}, tolerance.relative or 0.0)
        dtypes = {value.name: value.dtype for value in plan.outputs}
        return judge(errors, tolerance, plan.own_precision, precision, dtypes)
