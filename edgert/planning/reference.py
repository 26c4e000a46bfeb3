"""What the right answer is: the format's evaluator where it ends in time, else two independent CPU backends that
agree.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from edgert.errors import ChildTimeout, EdgertError, RunFailed
from edgert.graph import Graph
from edgert.measure import REMOTES, hold, sample_name
from edgert.plan import Tolerance
from edgert.planning.candidates import LAST_RESORT
from edgert.planning.trials import Course, Trial
from edgert.profile import OutputError, Target
from edgert.tensor import Data
from edgert.verify import compare, draws_random_numbers, judge, output_steps, same_form, worst

_log = logging.getLogger(__name__)
_NOISE_DB = 15.0
"""A wrong kernel's answers have nothing to do with the right ones (about 0 dB); rounding leaves more than this."""
LIMIT_S = 10.0
"""For the evaluator, on all samples together."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Right answers, or the reason why there are none."""

    name: str
    """'onnx' or 'litert+ref' (the format's evaluator), 'A and B agree', or '' for none."""
    answers: tuple[Mapping[str, Data], ...] = ()
    """One set a sample. With no name they are the answers of the format's own library, which nothing confirmed: other
    targets are held to them, and the plan is not verified. Empty when nothing ran at the model's own precision."""
    reason: str = ""
    """Why this one, or why none."""
    disputed: str = ""
    """As `Verification.disputed`."""
    late: bool = False
    """Whether the evaluator was not done when its `LIMIT_S` were over."""


class Checker:
    """Compares answers on one model's terms."""

    def __init__(self, graph: Graph, course: Course, tolerance: Tolerance) -> None:
        self._steps = output_steps(graph)
        self._own = course.source.precision
        self._dtypes = {value.name: value.dtype for value in graph.outputs}
        self._tolerance = tolerance
        self.random = draws_random_numbers(graph)
        self.elementwise = tolerance.relative is not None
        """Whether the user asked for each element to be near: noise is then no excuse."""

    def errors(
        self, expected: Sequence[Mapping[str, Data]], got: Sequence[Mapping[str, Data]]
    ) -> tuple[OutputError, ...]:
        """Worst distance of each output over the samples that both answered (the evaluator may have run out of
        time).
        """
        pairs = zip(expected, got, strict=False)
        if self.random:
            return worst([same_form(one, other) for one, other in pairs])
        return worst([compare(one, other, self._steps, self._tolerance.relative or 0.0) for one, other in pairs])

    def reason(self, errors: Sequence[OutputError], target: Target) -> str:
        """Why they leave the tolerance of that target; '' when they do not."""
        return judge(errors, self._tolerance, self._own, target.precision, self._dtypes)


def evaluate(pool: ThreadPoolExecutor, course: Course) -> Future[Reference]:
    """Run the format's evaluator in its child, beside the trials: onnx's own, or LiteRT's reference kernels."""
    return pool.submit(_evaluate, course)


_EVALUATORS = {  # format -> backend, variant and name of the kernels that its others are checked against
    "onnx": (LAST_RESORT, "", "onnx"),
    "tflite": ("litert", "ref", "litert+ref"),
}


def _evaluate(course: Course) -> Reference:
    library, variant, name = _EVALUATORS[course.source.format]
    reach = next((item for item in course.machine.reached() if item.backend == library), None)
    if reach is None:
        return Reference("", reason=f"{name}: not installed")
    if not course.samples:
        return Reference("", reason="there are no inputs to check on")
    target = Target(library, reach.device, course.source.precision, 0, variant)
    remote = REMOTES.borrow(f"evaluator {name}")
    started_s = time.monotonic()

    def left_s() -> float:
        return max(0.01, started_s + LIMIT_S - time.monotonic())

    try:
        remote.start()
        remote.call("empty")  # waits until it is up: starting an interpreter is not the evaluator's time
        started_s = time.monotonic()
        hold(remote, course.samples)
        runnable = remote.prepare(course.source, target, course.machine.device(reach.device), timeout_s=left_s())
        answers, run_s = [], 0.0
        for index in range(len(course.samples)):
            if index and run_s > left_s():
                break  # the first answers serve; a killed evaluator would leave none
            try:
                outputs, run_s = runnable.run_held(sample_name(index), timeout_s=left_s())
            except RunFailed:
                if not course.may_fail(index):
                    raise
                break
            answers.append(outputs)
    except EdgertError as error:
        _log.info("evaluator %s gives no reference: %s", name, error.message)
        late = isinstance(error, ChildTimeout)
        return Reference("", reason=f"evaluator {name}: {error.message[:300]}", late=late)
    finally:
        REMOTES.give_back(remote)
    return Reference(name, tuple(answers))


def settle(  # noqa: PLR0911 - one return a rule, in the order in which they apply
    evaluated: Reference, trials: Sequence[Trial], checker: Checker, own: str
) -> Reference:
    """Whom to believe, on the answers at the model's own precision of the CPU targets.

    ONNX has an evaluator, and it is the law unless two libraries that share no kernels agree against it (it has bugs of
    its own): the plan is then disputed, and not verified. TFLite has none: there two libraries that agree are
    the law, else two sets of kernels of LiteRT that do. Without agreement the format's own library answers, nothing
    confirms it, and the others are held to it.
    """
    fit = [
        trial
        for trial in trials
        if trial.answers and trial.row.target.device.startswith("cpu") and trial.row.target.precision == own
    ]
    if checker.random:
        answers = evaluated.answers or (tuple(fit[0].answers) if fit else ())
        return Reference("", answers, "the model draws random numbers: only shapes and element types were compared")
    pair = _pair(fit, checker, across=True)
    if evaluated.name == "onnx":
        if any(not _differ(evaluated.answers, trial, checker) for trial in fit):
            return evaluated
        if pair is None:
            return _unless_it_rounds(evaluated, fit, checker, own)
        off = max(error.range_fraction for error in checker.errors(evaluated.answers, pair[0].answers))
        dispute = f"onnx's evaluator says otherwise, by {off:.2g} of the range; two against one"
        return Reference(_agreement(*pair), tuple(pair[0].answers), disputed=dispute)
    if pair is None and evaluated.name and fit and not _differ(evaluated.answers, fit[0], checker):
        name = f"{_library(fit[0].row.target)} and {evaluated.name} agree"
        return Reference(name, tuple(fit[0].answers), "two sets of kernels of one library")
    pair = pair or _pair(fit, checker, across=False)
    if pair is not None:
        return Reference(_agreement(*pair), tuple(pair[0].answers), evaluated.reason)
    libraries = list(dict.fromkeys([*(_library(trial.row.target) for trial in fit), evaluated.name]))
    ran = " and ".join(filter(None, libraries)) or "nothing"
    differ = f"{ran} differ" if " and " in ran else f"only {ran} ran"
    # The format's own library comes first.
    yardstick = tuple(fit[0].answers) if fit else ()
    return Reference("", yardstick, f"{evaluated.reason}; {differ}" if evaluated.reason else differ)


def _pair(fit: Sequence[Trial], checker: Checker, *, across: bool) -> tuple[Trial, Trial] | None:
    """Two that agree: of different libraries, or (not `across`) with different kernels of one, which is the best that
    there
    is where only one library is installed.
    """
    for one, other in itertools.combinations(fit, 2):
        a, b = one.row.target, other.row.target
        independent = a.backend != b.backend if across else a.backend == b.backend and _kernels(a) != _kernels(b)
        if independent and not _differ(one.answers, other, checker):
            return one, other
    return None


def _unless_it_rounds(evaluated: Reference, fit: Sequence[Trial], checker: Checker, own: str) -> Reference:
    """The evaluator, but for a quantised model from which it differs by noise alone.

    It computes those in floats, so deep ones drift from it a rounding at a time, and it is hundreds of times too slow
    to stand in for integer kernels on such grounds: the format's own library then answers, unconfirmed.
    """
    if own != "i8" or not fit or checker.elementwise:
        return evaluated
    errors = checker.errors(evaluated.answers, fit[0].answers)
    noise_db = min(error.sqnr_db for error in errors)
    if any(error.mismatch for error in errors) or noise_db < _NOISE_DB:
        return evaluated
    library = _library(fit[0].row.target)
    return Reference("", tuple(fit[0].answers), f"{library} and onnx's evaluator differ by noise, {noise_db:.1f} dB")


def _differ(answers: Sequence[Mapping[str, Data]], trial: Trial, checker: Checker) -> bool:
    return bool(checker.reason(checker.errors(answers, trial.answers), trial.row.target))


def _agreement(one: Trial, other: Trial) -> str:
    return f"{_library(one.row.target)} and {_library(other.row.target)} agree"


_SAME_KERNELS = frozenset({"spin"})
"""Variants that only schedule the plain one's kernels otherwise, and so confirm nothing."""


def _kernels(target: Target) -> str:
    return "" if target.variant in _SAME_KERNELS else target.variant


def _library(target: Target) -> str:
    kernels = _kernels(target)
    return f"{target.backend}+{kernels}" if kernels else target.backend
