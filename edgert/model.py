"""A loaded model: what `edgert.load()` gives."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from edgert import options
from edgert.buckets import Bucket, bucket_of, free_axes, shapes_of, text_of
from edgert.devices.backend import Source
from edgert.errors import Cancelled, Closed, EdgertError
from edgert.execution.climate import Climate, Eased
from edgert.execution.events import Event
from edgert.execution.fair import checked_priority
from edgert.execution.pipeline import Made
from edgert.execution.rungs import Isolation
from edgert.execution.start import Running, start
from edgert.feed import Feeder
from edgert.graph import Value
from edgert.machine import Machine
from edgert.plan import Plan, Receipt
from edgert.result import Inputs, Result
from edgert.tensor import Data

if TYPE_CHECKING:  # a bundle needs no planner, and a small box may have none of what that imports
    from edgert.planning import Assignment

_log = logging.getLogger(__name__)
DEFAULT_BUDGET_S = 10.0
_MOST_ROUTES = 1000
"""Sizes of free axes that a model remembers."""
_ONE_SEARCH = threading.Lock()
"""Two searches in the background at once would time each other's noise."""


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
        self._process = os.getpid()
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
        pipeline = self._open()
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
            priority: -100 to 100; higher goes first, before other models' requests too. Lower ones that wait get a
                tenth of the time.

        Returns:
            A future; `cancel()` calls off what was not begun (on executors: what was not answered).

        Raises:
            InputError, Closed: at once; whatever else `run` raises comes out of the future.
            Overloaded: at once, when too many requests wait or the answer would come after the deadline.
        """
        if deadline_s is not None:
            options.number("deadline_s", deadline_s, "Pass seconds, more than 0.", lambda value: value > 0)
        priority = checked_priority(priority)
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
        """Release everything; later calls raise `Closed`. Closing twice is harmless, and so is closing in a process
        that was forked after loading, where it does nothing.
        """
        if os.getpid() != self._process:
            return
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
        if os.getpid() != self._process:  # no thread of the libraries or of ours is here
            raise Closed(
                f"the model {self._source.path.name} was loaded before this process was forked from process "
                f"{self._process}.",
                "Load it in each process, or start processes with 'spawn'.",
            )
        return pipeline

    def _closed(self) -> Closed:
        return Closed(f"the model {self._source.path.name} was closed.", "Load it again.")
