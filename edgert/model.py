"""`edgert.load()`: the embedding API."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, get_args

from edgert import bundle, formats, options, store, unpack
from edgert.buckets import Bucket, bucket_of, free_axes, grouped, shapes_of, text_of
from edgert.devices import probe as probing
from edgert.devices.backend import Source
from edgert.errors import Cancelled, Closed, EdgertError, MissingPackage, NotEnoughMemory, OptionError, PrepareRefused
from edgert.execution import guard
from edgert.execution.climate import CLIMATE, Climate, Eased
from edgert.execution.events import Event
from edgert.execution.pipeline import Made
from edgert.execution.rungs import Isolation
from edgert.execution.segments import Parts
from edgert.execution.start import Running, start
from edgert.feed import Feeder
from edgert.formats import memo
from edgert.graph import Value
from edgert.machine import Machine
from edgert.plan import Objective, Plan, Receipt, Tolerance
from edgert.profile import PRECISIONS
from edgert.result import Inputs, Result
from edgert.tensor import Data

if TYPE_CHECKING:  # a bundle needs no planner, and a small box may have none of what that imports
    from edgert.execution.shadow import Drift
    from edgert.planning import Assignment, Wish

_log = logging.getLogger(__name__)
DEFAULT_BUDGET_S = 10.0
_MOST_ROUTES = 1000
"""Sizes of free axes that a model remembers."""
_ONE_SEARCH = threading.Lock()
"""Two searches in the background at once would time each other's noise."""


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
        budget_s: seconds to spend on trying and timing; the check may add up to ten. 0 answers at once with the first
            target that runs, and goes on in the background: a better one is swapped in when it is found.
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
    options.one_of("objective", objective, get_args(Objective))
    options.one_of("isolation", isolation, get_args(Isolation))
    options.one_of("precision", precision, ("own", "any", *PRECISIONS))
    budget_s = options.seconds("budget_s", budget_s)
    options.instance("machine", machine, Machine, "what edgert.probe() gives")
    options.instance("progress", progress, Callable, "a function of a text and a share")
    folder = store.folder(cache_dir)
    file = options.path_of("path", path)
    if bundle.is_bundle(file):
        _refuse_wishes(
            file, objective, precision, tolerance=tolerance, targets=targets, samples=samples, source=source
        )  # fmt: skip
        return _unpacked(unpack.unpack(file, machine, folder, apart=isolation != "none"), isolation)
    from edgert import planning
    from edgert.planning import Assignment, Memory, artefacts

    groups = grouped(planning.user_samples(samples)[0])
    if len(groups) > 1 and budget_s:  # without a budget nothing is measured, at no shape
        with ExitStack() as made:
            loads = [
                made.enter_context(load(
                    path, source=source, objective=objective, tolerance=tolerance, precision=precision,
                    targets=targets, samples=group,
                    machine=machine, budget_s=budget_s, cache_dir=cache_dir, isolation=isolation,
                    memory_limit_bytes=memory_limit_bytes, progress=progress,
                ))
                for group in groups
            ]  # fmt: skip
            made.pop_all()  # all are there: nothing is closed
        return loads[0].join(loads[1:])
    artefact = None
    if source is not None:
        artefact, file = artefacts.open_artefact(file), options.path_of("source", source)
    chosen, digest = planning.user_samples(samples)
    limit_bytes = guard.limit_for(file, memory_limit_bytes)
    wish = replace(wish_of(objective, precision, tolerance, targets, digest), memory_limit_bytes=limit_bytes)
    model_digest = memo.digest(file, folder)
    if artefact is not None:
        model_digest = artefacts.digest_beside(model_digest, artefact.path, folder)
    asked = machine
    if machine is None:
        machine = probing.probe(cache_dir=folder, progress=progress) if budget_s else probing.known_or_glance(folder)
    memory = Memory(folder, model_digest, machine)
    plan = memory.plan(wish, budget_s)
    if plan is not None and guard.has_room(plan):
        whole = Source(file, plan.format, plan.inputs, plan.outputs, plan.own_precision, artefact)
        with suppress(NotEnoughMemory):  # less is left today than when it was made: plan anew, within that
            return _started(
                plan, whole, machine, memory.compiled(), isolation, limit_bytes=limit_bytes,
                reason=artefacts.why_unused(plan, artefact, targets),
                drifted=partial(planning.distrust, memory, wish, whole),
            )  # fmt: skip
        wish = replace(wish, memory_limit_bytes=limit_bytes or guard.within_reach())
    say = progress or (lambda _message, _share: None)
    assignment = Assignment(_open(file, model_digest), machine, wish, memory, budget_s, chosen, say, artefact)
    artefacts.check(assignment.file, artefact, targets)
    model = _planned(assignment, isolation)
    if not budget_s and model.plan.residency is None:  # a search would hold more than the limit beside the model
        model.improve(assignment, isolation, lambda: asked or probing.probe(cache_dir=folder))
    return model


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


def _same_way(one: Plan, other: Plan) -> bool:
    """Whether two plans run the same segments on the same targets."""
    return all(getattr(one, name) == getattr(other, name) for name in ("instances", "fallbacks", "residency")) and [
        (segment.target, segment.nodes) for segment in one.segments
    ] == [(segment.target, segment.nodes) for segment in other.segments]


class Model:
    """A loaded model. Thread-safe; a context manager. Made by `edgert.load`."""

    def __init__(
        self, pipeline: Running, source: Source, machine: Machine, *,
        reason: str = "", release: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Args:
        pipeline: what runs its plan.
        source: the model file.
        machine: where.
        reason: why the plan itself is a fallback; every receipt says so.
        release: called once everything is closed.
        """
        self._pipeline: Running | None = pipeline
        self._reason, self._release = reason, release
        self._retired: list[Running] = []
        self._source = source
        self._machine = machine
        self._lock = threading.Lock()
        self._feed = Feeder(pipeline.plan.inputs, pipeline.plan.optional_inputs)
        self._axes = free_axes(pipeline.plan.inputs)
        self._others: dict[Bucket, Model] = {}
        """Those that answer requests of other shape buckets; `self` where the same plan serves."""
        self._routes: tuple[Plan, dict[object, tuple[Model | None, str]]] = (pipeline.plan, {})
        """What `_for_shapes` found, by the sizes of the free axes, while this plan runs."""
        self._improving: threading.Thread | None = None
        self._stop = threading.Event()
        self._throttled = ""
        """As `Receipt.throttled`."""
        self._own: Running | None = None
        """What runs when the board is cool, while a cheaper plan does."""
        self._eased: Eased | None = None
        self._unheed: Callable[[], None] = lambda: None

    @property
    def plan(self) -> Plan:
        """What runs where, and why. Changes when `budget_s=0` found better in the background, and while the board
        throttles.
        """
        return self._open().plan

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Names, element types and shapes of what `run` takes."""
        return self._open().plan.inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Names, element types and shapes of what `run` gives."""
        return self._open().plan.outputs

    @property
    def path(self) -> Path:
        """The model file."""
        return self._source.path

    def run(self, inputs: Inputs) -> Result:
        """One inference.

        Args:
            inputs: arrays by name; or by position; or the one array of a model with one input. Numpy, anything with
                `__dlpack__`, lists and scalars. An array of another element type is widened if that loses nothing.

        Returns:
            Outputs by name, and `.receipt`.

        Raises:
            InputError: a name, shape or element type does not fit; says which and how to mend it.
            TargetError: every target refused these inputs.
            Closed: after `close`.
        """
        pipeline = self._pipeline
        if pipeline is None:
            raise self._closed()
        feed = self._feed(inputs)
        other, elsewhere = self._for_shapes(pipeline, feed) if self._axes else (None, "")
        if other is not None:
            return other.run(feed)
        started_s = perf_counter()
        made = pipeline.run(feed)
        return self._result(pipeline, made, perf_counter() - started_s, elsewhere)

    def submit(self, inputs: Inputs, *, deadline_s: float | None = None, priority: int = 0) -> Future[Result]:
        """As `run`, in edgert's own threads and executors: returns at once. Inputs are checked before it returns.

        Args:
            inputs: as for `run`; their arrays must stay as they are until the answer is there.
            deadline_s: seconds from now; when they are over the future ends with `DeadlineExceeded`.
            priority: higher goes first.

        Returns:
            A future; `cancel()` calls off what was not begun (on executors: what was not answered).

        Raises:
            InputError, Closed: at once; whatever else `run` raises comes out of the future.
            Overloaded: at once, when too many requests wait or the answer would come after the deadline.
        """
        if deadline_s is not None:
            options.number("deadline_s", deadline_s, "Pass seconds, more than 0.", lambda value: value > 0)
        options.number("priority", priority, "Pass a number; higher goes first.", lambda _value: True)
        pipeline = self._open()
        feed = self._feed(inputs)
        other, elsewhere = self._for_shapes(pipeline, feed) if self._axes else (None, "")
        if other is not None:
            return other.submit(feed, deadline_s=deadline_s, priority=priority)
        started_s = perf_counter()
        return pipeline.submit(
            feed, lambda made: self._result(pipeline, made, perf_counter() - started_s, elsewhere),
            deadline_s=deadline_s, priority=priority,
        )  # fmt: skip

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened to the executors that run it, oldest first: lost, restored, ...; empty without executors."""
        pipeline = self._open()
        return pipeline.events()

    def close(self) -> None:
        """Release everything; later calls raise `Closed`. Closing twice is harmless."""
        self._stop.set()
        self._unheed()
        with self._lock:
            running = self._own or self._pipeline  # a cheaper one is closed with its kind
            pipelines = [*self._retired, running] if running else self._retired
            self._pipeline, self._own, self._retired = None, None, []
            others, self._others = [other for other in self._others.values() if other is not self], {}
        for pipeline in pipelines:
            pipeline.close()
        if self._eased is not None:
            self._eased.close()
        for other in others:
            other.close()
        self._release()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        pipeline = self._pipeline
        state = "closed" if pipeline is None else ", ".join(map(str, pipeline.plan.targets))
        return f"<edgert.Model {self._source.path.name}: {state}>"

    def wait_improved(self, timeout_s: float | None = None) -> bool:
        """Wait for the background search of `budget_s=0`; True when it is over (or there was none)."""
        if self._improving is None:
            return True
        self._improving.join(timeout_s)
        return not self._improving.is_alive()

    def improve(self, assignment: Assignment, isolation: Isolation, probe: Callable[[], Machine]) -> None:
        """Search for a better plan in the background and swap it in when it is ready."""
        from edgert import planning
        from edgert.planning import Memory, artefacts

        def work() -> None:
            try:
                with _ONE_SEARCH:
                    machine = probe()
                    memory = Memory(assignment.memory.folder, assignment.memory.model, machine)
                    plan = planning.make_plan(
                        replace(assignment, machine=machine, memory=memory, budget_s=DEFAULT_BUDGET_S),
                        self._stop.is_set,
                    )
                better = start(plan, self._source, machine, memory.compiled(), isolation)
            except Cancelled:
                return
            except RuntimeError as error:
                if "shutdown" not in str(error):
                    raise
                return  # the interpreter ends, and starts no threads any more: nobody waits for a better plan
            except EdgertError as error:
                _log.warning("%s: no better plan was found: %s", self._source.path.name, error)
                return
            self._reason = artefacts.why_unused(plan, assignment.artefact, assignment.wish.targets)
            self._swap(better)

        self._improving = threading.Thread(target=work, name=f"improve {self._source.path.name}", daemon=True)
        self._improving.start()

    def _swap(self, better: Running) -> None:
        with self._lock:
            if self._pipeline is None:  # closed meanwhile
                better.close()
                return
            # Requests may still run on the old one, so it is closed with the model.
            if self._own is not None:  # the board throttles: the better plan runs once it is cool
                self._retired.append(self._own)
                self._own = better
                return
            self._retired.append(self._pipeline)
            self._pipeline = better
        _log.info("%s: now on %s", self._source.path.name, ", ".join(map(str, better.plan.targets)))

    def heed(self, climate: Climate, made_ready: Callable[[Plan], Running]) -> None:
        """Run a cheaper plan while the board throttles, until the model is closed; receipts say so.

        Args:
            climate: tells when it does.
            made_ready: prepares a plan.
        """
        self._eased = Eased(made_ready)
        weather = weakref.WeakMethod(self._weather)  # a model that nobody holds any more is not kept for this

        def tell(throttled: str) -> None:
            if (listener := weather()) is not None:
                listener(throttled)

        self._unheed = climate.heed(tell)
        weakref.finalize(self, self._unheed)

    def _weather(self, throttled: str) -> None:
        """The board throttles, or ('') has cooled down. Called by one thread."""
        running = self._own or self._pipeline
        if running is None or self._eased is None:
            return
        cheap, text = self._eased.of(running.plan, throttled) if throttled else (None, "")
        with self._lock:
            if self._pipeline is None:  # closed meanwhile
                cheap = None
            elif cheap is not None:
                self._pipeline, self._own = cheap, running
            elif self._own is not None and not throttled:
                self._pipeline, self._own = self._own, None
            self._throttled = text
        if self._stop.is_set():
            self._eased.close()

    def join(self, others: Sequence[Model]) -> Model:
        """The model itself, which now hands requests of other shape buckets to the models that were planned there."""
        for other in others:
            bucket = bucket_of(self._axes, other.plan.shapes)
            if _same_way(self.plan, other.plan):
                other.close()
                self._others[bucket] = self
            else:
                self._others[bucket] = other
        self._routes = (self.plan, {})
        return self

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan, and those of the other shape buckets that were asked for and need one of their own."""
        return self.plan, *(other.plan for other in self._others.values() if other is not self)

    def _for_shapes(self, pipeline: Running, feed: Mapping[str, Data]) -> tuple[Model | None, str]:
        """Which other model answers a request of these shapes, if one does; else what its receipt says of them."""
        plan = pipeline.plan
        if not plan.shapes:  # nothing was measured
            return None, ""
        if self._routes[0] is not plan or len(self._routes[1]) > _MOST_ROUTES:
            self._routes = (plan, {})
        # A request costs microseconds, and most are of a size that came before.
        sizes = tuple([getattr(feed.get(name), "shape", ())[axis : axis + 1] for name, axis in self._axes])
        known = self._routes[1]
        if sizes not in known:
            known[sizes] = self._route(plan, feed)
        return known[sizes]

    def _route(self, plan: Plan, feed: Mapping[str, Data]) -> tuple[Model | None, str]:
        bucket = bucket_of(self._axes, shapes_of(feed))
        if bucket == bucket_of(self._axes, plan.shapes):
            return None, ""
        other = self._others.get(bucket)
        if other is None:
            return None, text_of(self._axes, plan.shapes)
        return (None, "") if other is self else (other, "")

    def _result(self, pipeline: Running, made: Made, run_s: float, elsewhere: str) -> Result:
        reason = made.reason if not self._reason else "; ".join(filter(None, (self._reason, made.reason)))
        turns = len(pipeline.plan.segments) if pipeline.plan.residency is not None else 0
        verified = pipeline.checked(made.targets) if made.confirmed is None else made.confirmed
        receipt = Receipt(
            pipeline.plan.id, made.targets, bool(reason), verified, run_s, reason, turns, elsewhere, self._throttled,
        )  # fmt: skip
        return Result(made.outputs, receipt)

    def _open(self) -> Running:
        pipeline = self._pipeline
        if pipeline is None:
            raise self._closed()
        return pipeline

    def _closed(self) -> Closed:
        return Closed(f"the model {self._source.path.name} was closed.", "Load it again.")
