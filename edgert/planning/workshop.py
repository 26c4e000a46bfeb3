"""Pieces of one model tried on targets: taken or refused, right or wrong, how fast. Each answer is asked of the real
backend once, and kept on disk by content.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from edgert import store
from edgert.devices.backend import Source
from edgert.devices.remote import Remote, RemoteRunnable
from edgert.errors import CacheUnwritable, ChildError, EdgertError
from edgert.execution.segments import Parts
from edgert.formats import ModelFile
from edgert.graph import Value
from edgert.machine import Device
from edgert.measure import RUN_LIMIT_S
from edgert.partitioner.blocks import Block, signature
from edgert.partitioner.cuts import size_at
from edgert.plan import Objective, Segment, Tolerance
from edgert.planning.choose import split_cores
from edgert.planning.quarantine import Quarantine
from edgert.planning.trials import Course, failed
from edgert.profile import OutputError, Row, Target, Timing, row_from_json
from edgert.tensor import Data
from edgert.verify import compare, judge

_log = logging.getLogger(__name__)
_FORMAT = 2
"""Raised when what is measured here changes: older entries are then not used."""
_TIMED_S = 0.03
_FEWEST_CALLS, _MOST_CALLS = 5, 30
_SAVE_EVERY_S = 1.0
_SAMPLE = "piece"


@dataclass
class Workshop:
    """What asking for pieces of one model takes, and what was answered so far."""

    file: ModelFile
    blocks: Sequence[Block]
    course: Course
    tolerance: Tolerance
    parts: Parts
    quarantine: Quarantine
    remote_of: Callable[[Target], Remote]
    """The child in which a target is tried."""
    others: Callable[[Target], Sequence[Target]]
    """The same way to run with each number of threads that was tried, the target itself among them."""
    say: Callable[[str], None]
    """Told what is going on; raises `Cancelled` to end it."""
    values: Mapping[str, Data] = field(default_factory=dict)
    """The reference's, by name: the model's inputs and all that crosses between blocks."""
    objective: Objective = "latency"
    """Of the plan: whether a piece counts with the time of one request, or with its share of the requests in flight."""
    certain: bool = True
    """Whether these are confirmed, so that who differs from them is wrong."""
    deadline_s: float = 0.0
    """`time.monotonic()` after which nothing new is asked."""
    memory: Path | None = None
    """File that keeps the answers; None: they are forgotten."""
    answers: dict[tuple[str, str], Row] = field(default_factory=dict)
    """(signature, target) -> what came of it."""
    notes: dict[str, None] = field(default_factory=dict)
    """What a reader of the plan should know, in order, each once."""
    stretches: dict[tuple[Target, tuple[int, ...]], float] = field(default_factory=dict)
    """(target, numbers of blocks) -> what they took there as one piece: tells what calling a piece costs in itself."""
    calls: dict[Target, float] = field(default_factory=dict)
    """What calling a piece costs there in itself, once the blocks were timed."""
    hurried: bool = False
    """Whether the time was over before all was asked: with more of it there may be a better plan."""
    asked: int = 0
    """How many answers were asked of a backend, not remembered."""
    _saved_s: float = 0.0

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self.deadline_s

    def nodes(self, blocks: Sequence[int]) -> tuple[int, ...]:
        """Node indices of blocks, rising."""
        return tuple(sorted(node for number in blocks for node in self.blocks[number].nodes))

    def size(self, value: Value) -> int:
        """Bytes of a value at the shapes that the first sample gives it."""
        array = self.values.get(value.name)
        return array.nbytes if isinstance(array, np.ndarray) else size_at()(value)

    def segment(self, blocks: Sequence[int], target: Target) -> Segment:
        """Those blocks as a segment of a plan."""
        nodes = self.nodes(blocks)
        inputs, outputs = self.file.graph.boundary(frozenset(nodes))
        return Segment(target, tuple(self.file.graph.nodes[index].name for index in nodes), inputs, outputs)

    def source(self, segment: Segment) -> Source:
        """What a backend needs to prepare it."""
        return self.parts.source(segment, self.file.graph.values)

    def ask(self, blocks: Sequence[int], target: Target) -> Row:
        """What comes of these blocks as one segment on a target: prepared, run on the reference's values, compared,
        timed.

        Blocks that do the same work (equal `signature`) are asked for once. Quarantined blocks are not asked for.
        """
        graph = self.file.graph
        for number in blocks:
            entry = self.quarantine.find(graph, self.blocks[number].nodes, target)
            if entry is not None:
                return Row(target, "wrong", f"in quarantine: {entry}")
        key = signature(graph, self.nodes(blocks)), str(target)
        known = self.answers.get(key)
        if known is None:
            self.asked += 1
            known = self.answers[key] = self._try(blocks, target)
            if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
                self.save()
        if known.outcome == "ok":
            self.stretches[target, tuple(blocks)] = seconds(known)
        return known

    def with_threads(self, blocks: Sequence[int], target: Target) -> list[Row]:
        """As `ask`, with each number of threads: those that are right, best first; else what came of `target`."""
        rows = [self.ask(blocks, target)]
        if rows[0].outcome == "ok":
            rows += [self.ask(blocks, other) for other in self.others(target) if other != target and self.in_time]
        return sorted((row for row in rows if row.outcome == "ok"), key=self.price) or rows[:1]

    def price(self, row: Row) -> float:
        """What a segment costs towards the objective, in seconds: its time; for throughput the time that it keeps its
        device from other requests, of which as many run at once as it has instances.
        """
        if self.objective == "latency":
            return seconds(row)
        return seconds(row) / len(instances_of(self.course.machine.device(row.target.device), row.target))

    def note(self, text: str) -> None:
        """Add to the notes."""
        self.notes[text] = None

    def convict(self, number: int, row: Row) -> None:
        """Put a block that gave wrong numbers, alone, into quarantine on that target; anything else stays as it is."""
        if self.certain and row.outcome == "wrong" and not row.reason.startswith("in quarantine"):
            self.quarantine.add(self.file.graph, self.blocks[number].nodes, row.target, row.reason, self.file.digest)

    def _try(self, blocks: Sequence[int], target: Target) -> Row:
        remote, runnable = self.remote_of(target), None
        device = self.course.machine.device(target.device)
        try:
            segment = self.segment(blocks, target)
            feed = {name: self.values[name] for name in segment.inputs if name in self.values}
            runnable = remote.prepare(
                self.source(segment), target, device, self.course.cache, timeout_s=self.course.prepare_limit_s
            )
            remote.hold(_SAMPLE, feed)
            outputs, first_s = runnable.run_held(_SAMPLE, timeout_s=RUN_LIMIT_S)
            errors, reason = self._judge(outputs, target)
            timing = _timed(runnable, first_s)
        except EdgertError as error:
            return failed(target, error)
        finally:
            _let_go(remote, runnable)
        return Row(
            target, "wrong" if reason else "ok", reason, timing, errors, runnable.ran_on, runnable.prepare_s,
            runnable.memory_bytes,
        )  # fmt: skip

    def _judge(self, outputs: Mapping[str, Data], target: Target) -> tuple[tuple[OutputError, ...], str]:
        """How far a segment's outputs are from the reference's values, and why that is too far."""
        expected = {name: self.values[name] for name in outputs if name in self.values}
        errors = compare(expected, {name: outputs[name] for name in expected}, {}, self.tolerance.relative or 0.0)
        dtypes = {name: value.dtype for name, value in self.file.graph.values.items() if name in expected}
        # The largest of some values inside a model means nothing; that of the whole answer is looked at in the end.
        tolerance = replace(self.tolerance, same_top1=False)
        return errors, judge(errors, tolerance, self.course.source.precision, target.precision, dtypes)

    def load(self) -> None:
        """Take over what an earlier planning was answered."""
        content = store.read_or_drop(self.memory) if self.memory else None
        if content is None or content.get("format") != _FORMAT:
            return
        try:
            rows = [(item["signature"], row_from_json(item["row"])) for item in content["answers"]]
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("costs in %s are of another form (%s): measuring again", self.memory, error)
            return
        self.answers |= {(found, str(row.target)): row for found, row in rows}

    def save(self) -> None:
        """Keep the answers so far; a planning that is killed loses at most a second of them."""
        self._saved_s = time.monotonic()
        if self.memory is None:
            return
        rows = [
            {"signature": found, "row": {**asdict(row), "target": target}}
            for (found, target), row in self.answers.items()
            if row.outcome != "timeout"  # the machine may have been busy
        ]
        try:
            store.write_json(self.memory, {"format": _FORMAT, "answers": rows})
        except CacheUnwritable as error:
            _log.warning("%s What was measured is forgotten.", error.message)


def instances_of(device: Device, target: Target) -> list[tuple[int, ...]]:
    """Cores of each instance that a segment gets in a plan for throughput; one without cores of its own elsewhere."""
    return split_cores(device.cores, target.threads) if device.kind == "cpu" else [()]


def seconds(row: Row) -> float:
    """What a segment costs, to predict and compare with: its fastest call, which other work on the machine disturbs
    least.
    """
    return row.timing.best_s if row.timing is not None else math.inf


def _timed(runnable: RemoteRunnable, first_s: float) -> Timing:
    """Median of a few calls; the first one, which warms up, counts only where it is all that there is time for."""
    if first_s > 1.0:
        return Timing(first_s, first_s, first_s, 1, 1)
    (probe_s,) = runnable.time(_SAMPLE, 1, at_most_s=1.0, timeout_s=RUN_LIMIT_S)
    calls = max(_FEWEST_CALLS, min(_MOST_CALLS, int(_TIMED_S / max(probe_s, 1e-7))))
    times = runnable.time(_SAMPLE, calls, at_most_s=0.3, timeout_s=RUN_LIMIT_S)
    return Timing(statistics.median(times), min(times), max(times), len(times), 1)


def _let_go(remote: Remote, runnable: RemoteRunnable | None) -> None:
    try:
        if runnable is not None:
            runnable.close()
    except ChildError as error:
        _log.info("%s ended while it let go of a piece: %s", remote.name, error.message)


def crossing(file: ModelFile, blocks: Sequence[Block]) -> tuple[str, ...]:
    """Tensors that some block makes for another, and that a file can hand out."""
    graph = file.graph
    owner = {node: number for number, block in enumerate(blocks) for node in block.nodes}
    return tuple(
        name
        for name, maker in graph.producers.items()
        if _can_cross(graph.values.get(name))
        and any(owner[reader] != owner[maker] for reader in graph.consumers.get(name, ()))
    )


def _can_cross(value: Value | None) -> bool:
    return value is not None and value.kind == "tensor" and value.dtype is not None


def reference_values(workshop: Workshop, target: Target, limit_s: float) -> dict[str, Data]:
    """The model's inputs, outputs and all that crosses between blocks, on the first sample, as `target` computes them.

    Raises:
        EdgertError: the model with so many outputs is refused, or took too long.
    """
    file, course, remote = workshop.file, workshop.course, workshop.remote_of(target)
    graph = file.graph
    keep = crossing(file, workshop.blocks)
    wanted = [name for name in keep if name not in {value.name for value in graph.outputs}]
    path = workshop.parts.file([node.name for node in graph.nodes], wanted) if wanted else file.path
    inputs, outputs = graph.boundary(frozenset(range(len(graph.nodes)))) if wanted else _signature(file)
    names = (*outputs, *wanted)
    source = Source(
        path, file.format, tuple(graph.values[name] for name in inputs), tuple(graph.values[name] for name in names),
        course.source.precision,
    )  # fmt: skip
    feed = {name: value for name, value in course.samples[0].items() if name in inputs}
    device = course.machine.device(target.device)
    runnable = remote.prepare(source, target, device, None, timeout_s=limit_s)
    try:
        remote.hold(_SAMPLE, feed)
        made, _ = runnable.run_held(_SAMPLE, timeout_s=limit_s)
    finally:
        _let_go(remote, runnable)
    return {**course.samples[0], **made}


def _signature(file: ModelFile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(v.name for v in file.graph.inputs), tuple(v.name for v in file.graph.outputs)
