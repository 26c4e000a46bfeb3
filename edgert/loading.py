"""`edgert.load()`: from a file to a model that is ready to run, by the plan that is remembered or made now."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgert import bundle, formats, options, store, unpack
from edgert.buckets import grouped
from edgert.devices import probe as probing
from edgert.devices.backend import Source
from edgert.errors import MissingPackage, NotEnoughMemory, OptionError, PrepareRefused
from edgert.execution import guard
from edgert.execution.climate import CLIMATE
from edgert.execution.rungs import Isolation
from edgert.execution.segments import Parts
from edgert.execution.start import Running, start
from edgert.formats import memo
from edgert.machine import Machine
from edgert.model import DEFAULT_BUDGET_S, Model
from edgert.plan import Objective, Plan, Tolerance
from edgert.profile import PRECISIONS
from edgert.tensor import Data

if TYPE_CHECKING:  # a bundle needs no planner, and a small box may have none of what that imports
    from edgert.execution.shadow import Drift
    from edgert.formats.artefacts import Artefact
    from edgert.planning import Assignment, Memory, Wish

_log = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    objective: Objective = "latency",
    tolerance: float | Tolerance | None = None,
    precision: str = "own",
    targets: Sequence[str] | None = None,
    samples: Sequence[Mapping[str, Data]] | None = None,
    machine: Machine | None = None,
    budget_s: float = DEFAULT_BUDGET_S,
    cache_dir: str | os.PathLike[str] | None = None,
    isolation: Isolation = "auto",
    memory_limit_bytes: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Model:
    """A model, ready to run the fastest correct way that this machine has.

    The first load measures: every way to run it is tried in child processes, its numbers are checked against a
    reference, and the fastest that is right is kept and remembered on disk. The next load prepares only that.

    Args:
        path: an .onnx or .tflite file; or a bundle, which brings its plan: nothing is measured then, and of the other
            arguments only `machine`, `cache_dir` and `isolation` count.
        source: the model that `path` was made from, where that is a file which only one accelerator reads (a context of
            an ONNX Runtime provider, a program for an Edge TPU, ...). It gives the reference, and stands in.
        objective: 'latency' is the time of one request; 'throughput' is items per second, for which several
            instances, each with its own cores, are tried too.
        tolerance: how far answers may be from the reference: a fraction of each output's range, or a `Tolerance`.
        precision: 'own' allows no lower precision than the model's own; 'any' allows any that stays within
            tolerance; else the one that is named ('f32', 'bf16', 'f16', 'i8', 'f64').
        targets: only these, such as 'openvino@cpu:0/f32/2t' or 'onnxruntime@*'; also the way to use a software device.
        samples: inputs to measure and check on, each a mapping of input name to array; else they are synthesised. For
            a model with free dimensions they also say which sizes matter: each shape bucket among them (see
            `edgert.buckets`) gets a plan of its own, in the budget once for each.
        machine: what to plan for; else what `probe` finds.
        budget_s: seconds to spend on trying and timing; the check may add up to ten. One run of a target that is tried
            may take six times that, at least 10 s and at most 60; then it counts as hung. 0 answers at once with the
            first target that runs, and goes on in the background: a better one is swapped in when it is found.
        cache_dir: where plans are remembered; else EDGERT_CACHE, else the platform's cache folder.
        isolation: 'auto' runs GPUs and NPUs in a process of their own; 'none' runs everything in this one.
        memory_limit_bytes: what this process may hold resident, everything counted. A model that does not fit is cut
            into segments that are loaded, run and released in turn; the plan, `Plan.residency` and each receipt say so.
            None: what the box or the control group has left, where that would not hold the model.
        progress: told what is going on and which share of the budget is spent.

    Raises:
        ModelNotFound, ModelCorrupt, ModelUnsupported: the file is at fault, or nothing here runs it; or a bundle is
            for another machine (with the differences).
        NoLastResort: only an accelerator reads the file, and there is no `source`.
        UnknownTarget, OptionError: a setting is.
        Infeasible: some block of the model alone does not fit the memory limit; with the figures.
        NotEnoughMemory: what is left does not even hold what the plan's fallbacks need.
        CacheUnwritable: the cache folder that was asked for cannot be written.
        MissingPackage: the package that reads this format is not installed.
    """
    _check(objective, isolation, precision, machine, progress)
    budget_s = options.seconds("budget_s", budget_s)
    folder = store.folder(cache_dir)
    file = options.path_of("path", path)
    if bundle.is_bundle(file):
        _refuse_wishes(
            file, objective, precision, tolerance=tolerance, targets=targets, samples=samples, source=source
        )  # fmt: skip
        return _unpacked(unpack.unpack(file, machine, folder, apart=isolation != "none"), isolation)
    from edgert import planning

    groups = grouped(planning.user_samples(samples)[0])
    if len(groups) > 1 and budget_s:  # without a budget nothing is measured, at no shape
        one = partial(
            load, path, source=source, objective=objective, tolerance=tolerance, precision=precision, targets=targets,
            machine=machine, budget_s=budget_s, cache_dir=cache_dir, isolation=isolation,
            memory_limit_bytes=memory_limit_bytes, progress=progress,
        )  # fmt: skip
        return _joined([partial(one, samples=group) for group in groups])
    file, artefact = _model_and_artefact(file, source)
    chosen, digest = planning.user_samples(samples)
    limit_bytes = guard.limit_for(file, memory_limit_bytes)
    wish = replace(wish_of(objective, precision, tolerance, targets, digest), memory_limit_bytes=limit_bytes)
    return _loaded(_Asked(file, artefact, wish, chosen, machine, budget_s, folder, isolation, progress))


def _check(
    objective: Objective, isolation: Isolation, precision: str, machine: Machine | None,
    progress: Callable[[str, float], None] | None,
) -> None:  # fmt: skip
    """Raises OptionError: one of these settings of `load` is none of its values."""
    options.one_of("objective", objective, get_args(Objective))
    options.one_of("isolation", isolation, get_args(Isolation))
    options.one_of("precision", precision, ("own", "any", *PRECISIONS))
    options.instance("machine", machine, Machine, "what edgert.probe() gives")
    options.instance("progress", progress, Callable, "a function of a text and a share")


def _model_and_artefact(path: Path, source: str | os.PathLike[str] | None) -> tuple[Path, Artefact | None]:
    """What a reference can be made of, and what was compiled from it where that is what `path` names."""
    if source is None:
        return path, None
    from edgert.planning import artefacts

    artefact = artefacts.open_artefact(path)
    return options.path_of("source", source), artefact


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `load` was asked for, checked."""

    file: Path
    """The model, which a reference can be made of."""
    artefact: Artefact | None
    """What was compiled from it, where that is what shall run."""
    wish: Wish
    samples: Sequence[Mapping[str, Data]]
    """The user's; empty for none."""
    machine: Machine | None
    """To plan for; None for the one at hand."""
    budget_s: float
    folder: Path | None
    """Where plans are remembered; None for nowhere."""
    isolation: Isolation
    progress: Callable[[str, float], None] | None


def _joined(loads: Sequence[Callable[[], Model]]) -> Model:
    """One model of several, each planned at sizes of its own; none is left behind when one does not load."""
    with ExitStack() as made:
        first, *others = [made.enter_context(load_one()) for load_one in loads]
        made.pop_all()  # all are there: nothing is closed
    return first.join(others)


def _loaded(asked: _Asked) -> Model:
    """The model of the plan that is remembered, or else made now."""
    from edgert.planning import Assignment, Memory, artefacts

    machine, folder, wish = asked.machine, asked.folder, asked.wish
    digest = memo.digest(asked.file, folder)
    if asked.artefact is not None:
        digest = artefacts.digest_beside(digest, asked.artefact.path, folder)
    if machine is None and asked.budget_s:
        machine = probing.probe(cache_dir=folder, progress=asked.progress)
    elif machine is None:
        machine = probing.known_or_glance(folder)
    memory = Memory(folder, digest, machine)
    plan = memory.plan(wish, asked.budget_s)
    if plan is not None and guard.has_room(plan):
        with suppress(NotEnoughMemory):  # less is left today than when it was made: plan anew, within that
            return _remembered(asked, plan, machine, memory)
        wish = replace(wish, memory_limit_bytes=wish.memory_limit_bytes or guard.within_reach())
    say = asked.progress or (lambda _message, _share: None)
    file = _open(asked.file, digest)
    assignment = Assignment(file, machine, wish, memory, asked.budget_s, asked.samples, say, asked.artefact)
    artefacts.check(file, asked.artefact, wish.targets)
    model = _planned(assignment, asked.isolation)
    if not asked.budget_s and model.plan.residency is None:  # a search would hold more than the limit beside the model
        model.improve(assignment, asked.isolation, lambda: asked.machine or probing.probe(cache_dir=folder))
    return model


def _remembered(asked: _Asked, plan: Plan, machine: Machine, memory: Memory) -> Model:
    """The model of a plan that was made before; raises as `_started`."""
    from edgert import planning
    from edgert.planning.artefacts import why_unused

    whole = Source(asked.file, plan.format, plan.inputs, plan.outputs, plan.own_precision, asked.artefact)
    return _started(
        plan, whole, machine, memory.compiled(), asked.isolation, limit_bytes=asked.wish.memory_limit_bytes,
        reason=why_unused(plan, asked.artefact, asked.wish.targets),
        drifted=partial(planning.distrust, memory, asked.wish, whole),
    )  # fmt: skip


def _planned(assignment: Assignment, isolation: Isolation) -> Model:
    """The model of a plan that is made now; in turns where less memory is left than the plan turned out to need."""
    from edgert import planning
    from edgert.planning.artefacts import why_unused

    make = planning.make_plan if assignment.budget_s else planning.first_plan
    source, machine, compiled = assignment.source, assignment.machine, assignment.memory.compiled()
    limit_bytes = assignment.wish.memory_limit_bytes
    drifted = partial(planning.distrust, assignment.memory, assignment.wish, source)
    plan = make(assignment)
    reason = why_unused(plan, assignment.artefact, assignment.wish.targets)
    try:
        return _started(
            plan, source, machine, compiled, isolation, limit_bytes=limit_bytes, drifted=drifted, reason=reason
        )
    except NotEnoughMemory:
        if limit_bytes:
            raise
    limit_bytes = guard.within_reach()
    anew = replace(assignment, wish=replace(assignment.wish, memory_limit_bytes=limit_bytes))
    return _started(make(anew), source, machine, compiled, isolation, limit_bytes=limit_bytes, reason=reason)


def _started(
    plan: Plan, source: Source, machine: Machine, compiled: Path | None, isolation: Isolation,
    *, limit_bytes: int, parts: Parts | None = None, reason: str = "", release: Callable[[], None] = lambda: None,
    drifted: Callable[[Plan, Drift], None] = lambda _plan, _drift: None,
) -> Model:  # fmt: skip
    """The model of a plan, or of as much of it as fits into the memory that is left; its receipts then say so.

    Raises:
        NotEnoughMemory: nothing of it fits.
        DeviceLost: no target of it prepares.
    """
    fit, why = guard.fitted(plan, limit_bytes)
    if why:
        _log.warning("%s: %s", source.path.name, why)

    def made_ready(plan: Plan) -> Running:
        return start(plan, source, machine, compiled, isolation, parts=parts, drifted=partial(drifted, plan))

    model = Model(made_ready(fit), source, machine, reason="; ".join(filter(None, (reason, why))), release=release)
    model.heed(CLIMATE, made_ready)
    return model


def wish_of(
    objective: Objective, precision: str, tolerance: float | Tolerance | None, targets: Sequence[str] | None,
    samples: str = "",
) -> Wish:  # fmt: skip
    """What `load`'s arguments ask of a plan; `samples` is the digest of the user's. Raises OptionError."""
    from edgert.planning import Wish

    return Wish(objective, precision, _tolerance(tolerance), _targets(targets), samples)


def _refuse_wishes(file: Path, objective: str, precision: str, **others: object) -> None:
    """A bundle's plan is made already: what would have decided it cannot be wished any more."""
    wishes = {"objective": objective != "latency", "precision": precision != "own"}
    wishes |= {name: value is not None for name, value in others.items()}
    for name, wished in wishes.items():
        if wished:
            raise OptionError(f"{name}= was given, but {file} is a bundle, whose plan is made.", "Load its model.")


def _unpacked(found: unpack.Unpacked, isolation: Isolation) -> Model:
    try:
        return _started(
            found.plan, found.source, found.machine, found.compiled, isolation, limit_bytes=0, parts=found.parts,
            reason=found.reason, release=found.release,
        )  # fmt: skip
    except BaseException:
        found.release()
        raise


def _open(file: Path, digest: str) -> formats.ModelFile:
    """The model file as a graph; a .tflite without its schema (32-bit boards) as one piece."""
    try:
        return formats.open_model(file)
    except MissingPackage as error:
        if file.suffix != ".tflite":
            raise
        from edgert.planning.artefacts import explain_refusal
        from edgert.planning.whole import open_whole

        _log.info("%s", error.message)
        try:
            return open_whole(file, digest)
        except PrepareRefused as refusal:
            explain_refusal(file, refusal)
            raise


def _targets(asked: Sequence[str] | None) -> tuple[str, ...] | None:
    if asked is not None and not (options.is_list(asked) and asked and all(isinstance(each, str) for each in asked)):
        raise OptionError(
            f"targets={asked!r} is not a list of targets.", "Pass a list such as ['openvino@*'], or nothing for all."
        )
    return None if asked is None else tuple(asked)


def _tolerance(asked: float | Tolerance | None) -> Tolerance:
    if asked is None:
        return Tolerance()
    if isinstance(asked, Tolerance):
        for name in ("range_fraction", "lsb", "absolute", "relative"):
            if name != "relative" or asked.relative is not None:
                options.number(f"Tolerance.{name}", getattr(asked, name), "Pass 0 or more.")
        for name in ("sqnr_db", "quantised_sqnr_db"):
            options.number(f"Tolerance.{name}", getattr(asked, name), "Pass decibels.", lambda _value: True)
        return asked
    fraction = options.number("tolerance", asked, "Pass a fraction of the range, 0 or more, such as 1e-3.")
    # One number is one rule: it replaces the rule for lower precisions as well.
    return Tolerance(range_fraction=fraction, sqnr_db=float("inf"), quantised_sqnr_db=float("inf"))
