"""One way to run a model in turns, tried as it will run: in a child, segment by segment, within the limit.

What it held is read from the kernel; where that was too much it is cut anew. The ways are tried one after another, each
alone: two children at once would hold twice as much.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgert.devices import memory
from edgert.devices.remote import Remote
from edgert.errors import Infeasible
from edgert.execution.hosted import Prepare
from edgert.execution.segments import Parts
from edgert.execution.streaming import LeanParts
from edgert.execution.streaming_host import SERVICE, prepare_streamed, resident_of
from edgert.formats import ModelFile
from edgert.graph import Graph
from edgert.measure import RUN_LIMIT_S, sample_name
from edgert.partitioner.blocks import Block, blocks_of
from edgert.partitioner.cuts import UNKNOWN_BYTES, weights_of
from edgert.partitioner.residency import Load, Turns, take_turns
from edgert.plan import Segment
from edgert.planning.candidates import LAST_RESORT
from edgert.planning.reference import LIMIT_S
from edgert.planning.trials import Course
from edgert.profile import Row, Target, Timing
from edgert.tensor import Data

_log = logging.getLogger(__name__)
LIBRARY_BYTES = 24 << 20
"""What a library takes beyond being imported: code that is read in when it first runs, threads."""
MOST_COPIES = 2.5
"""What a library holds of a model's weights at most, times their size in the file (OpenVINO's 2.1, as measured)."""
_COPIES: Mapping[str, float] = {  # library -> the same, to begin with; what it holds is then measured
    "onnxruntime+lean": 1.0, "onnxruntime": 1.1, "openvino": 2.2, "litert+builtin": 1.0, "litert": 2.0,
    LAST_RESORT: 3.0,
}  # fmt: skip
_ATTEMPTS = 3
"""Cuts that are tried for one way before it counts as too large."""
_MOST_RUNS = 5


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to run the model in turns, tried."""

    row: Row
    turns: Turns
    segments: tuple[Segment, ...]
    answers: list[dict[str, Data]]
    base_bytes: int
    """What this process and the library hold without a model."""
    peak_bytes: int
    """The most that a run held beyond that."""
    weights_bytes: tuple[int, ...]
    """Of each segment, as the target holds them."""
    copies: float
    """What it holds of the weights, times their size in the file; 0 when that was not asked."""


@dataclass
class Rehearsal:
    """What trying a model in turns takes."""

    file: ModelFile
    course: Course
    limit_bytes: int
    parts: LeanParts
    copies: Parts
    """For who takes no links: onnx's evaluator refuses weights that have a second name."""
    say: Callable[[str], None]
    """Told what is going on; raises `Cancelled` to end it."""
    blocks: Sequence[Block] = field(init=False)
    values_bytes: Sequence[int] = field(init=False)
    """Of each block, while it runs."""

    def __post_init__(self) -> None:
        graph = self.file.graph
        self.blocks = blocks_of(graph)
        self.values_bytes = _values_bytes(graph, self.blocks, free_size(graph, self.course.samples))

    def loads(self, copies: float) -> list[Load]:
        """What the blocks take where a library holds so many times the weights."""
        graph = self.file.graph
        return [
            Load(block.id, int(copies * weights_of(graph, block)), values)
            for block, values in zip(self.blocks, self.values_bytes, strict=True)
        ]

    def attempt(self, target: Target, most_bytes: int | None = None) -> Attempt:
        """The model in turns on a target, cut so that what it really holds stays within the limit.

        Args:
            target: on the CPU.
            most_bytes: of the file's weights in one segment, where it can be helped.

        Raises:
            Infeasible: some block alone does not fit.
            EdgertError: the target refuses a segment, fails or crashes.
        """
        copies = _COPIES.get(_library(target), MOST_COPIES)
        for _ in range(_ATTEMPTS):
            found, excess = self._cut_and_run(target, copies, most_bytes)
            if excess <= 0:
                return found
            room = self.limit_bytes - found.base_bytes
            # What it held decides, with a twentieth to spare: held grows with the weights that are held at once.
            copies *= 1.05 * (room + excess) / room
            _log.info("%s held %d bytes too many: cutting for %.2fx the weights", target, excess, copies)
        raise Infeasible(
            f"{target} holds {found.base_bytes + found.peak_bytes} bytes in the smallest segments that were tried, "
            f"{excess} more than the limit.", "Raise the memory limit.",
            block=None, limit="memory", excess=float(excess),
        )  # fmt: skip

    def alone(self, target: Target, segments: Sequence[Segment]) -> Attempt:
        """As `attempt`, with the segments of another target, each held alone: whether it can stand in.

        Raises:
            Infeasible: it holds more than the limit.
            EdgertError: as `attempt`.
        """
        held = tuple((index,) for index in range(len(segments)))
        with _Child(target, self.course) as child:
            base_bytes = child.base_bytes()
            turns = Turns((), held, 0)
            found = child.run(self, segments, turns, base_bytes=base_bytes, weights=(), copies=0.0, runs=1)
        excess = found.base_bytes + found.peak_bytes - self.limit_bytes
        if excess > 0:
            raise Infeasible(
                f"{target} holds {excess} bytes more than the limit in the chosen segments.", "Raise the memory limit.",
                block=None, limit="memory", excess=float(excess),
            )  # fmt: skip
        return found

    def _cut_and_run(self, target: Target, copies: float, most_bytes: int | None) -> tuple[Attempt, int]:
        with _Child(target, self.course) as child:
            base_bytes = child.base_bytes()
            budget_bytes = self.limit_bytes - base_bytes - LIBRARY_BYTES
            loads = self.loads(copies)
            turns = take_turns(loads, budget_bytes, None if most_bytes is None else int(copies * most_bytes))
            segments = self._segments(target, turns)
            self.say(f"trying {target} in {len(segments)} segments")
            weights = tuple(sum(load.weights_bytes for load in loads[low:high]) for low, high in turns.segments)
            found = child.run(
                self, segments, turns, base_bytes=base_bytes, weights=weights, copies=copies, runs=_MOST_RUNS
            )
        return found, found.base_bytes + found.peak_bytes - self.limit_bytes

    def _segments(self, target: Target, turns: Turns) -> tuple[Segment, ...]:
        graph = self.file.graph
        if len(turns.segments) == 1:
            inputs, outputs = (tuple(value.name for value in values) for values in (graph.inputs, graph.outputs))
            return (Segment(target, (), inputs, outputs, cause="all of it fits"),)
        made = []
        for low, high in turns.segments:
            nodes = sorted(node for block in self.blocks[low:high] for node in block.nodes)
            inputs, outputs = graph.boundary(frozenset(nodes))
            names_of = tuple(graph.nodes[index].name for index in nodes)
            made.append(Segment(target, names_of, inputs, outputs, cause="takes its turn in memory"))
        return tuple(made)


class _Child:
    """A child in which one target is tried; ended afterwards, since an idle one holds its library."""

    def __init__(self, target: Target, course: Course) -> None:
        self.remote = Remote(f"{target} in turns", service=SERVICE)
        self._target, self._course = target, course

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.remote.close()

    def base_bytes(self) -> int:
        """What this process and the child hold once it has loaded the library."""
        self.remote.reaches(self._target.backend, [self._course.machine.device(self._target.device)],
                            timeout_s=self._course.prepare_limit_s)  # fmt: skip
        return memory.resident().now_bytes + resident_of(self.remote).now_bytes

    def run(
        self, work: Rehearsal, segments: Sequence[Segment], turns: Turns,
        *, base_bytes: int, weights: tuple[int, ...], copies: float, runs: int,
    ) -> Attempt:  # fmt: skip
        """Run the segments in turns on every sample; the first sample several times, where time allows."""
        course, remote, target, values = self._course, self.remote, self._target, work.file.graph.values
        device = course.machine.device(target.device)
        files = work.copies if target.backend == LAST_RESORT else work.parts
        parts = [Prepare(files.source(segment, values), target, device) for segment in segments]
        for index, sample in enumerate(course.samples):
            # Not by `measure.hold`, whose ceiling counts the weights that ONNX Runtime maps, and not what is resident.
            remote.hold(sample_name(index), sample)
        resident_of(remote, reset=True)
        outputs = [value.name for value in course.source.outputs]
        runnable = prepare_streamed(remote, parts, outputs, turns.held, timeout_s=course.prepare_limit_s)
        limit_s = LIMIT_S if target.backend == LAST_RESORT else max(RUN_LIMIT_S, 3 * course.budget_s)
        answers, times = [], []
        for index in range(len(course.samples)):
            made, run_s = runnable.run_held(sample_name(index), timeout_s=limit_s)
            answers.append(made)
            times.append(run_s)
        while len(times) < runs and time.monotonic() < course.deadline_s and target.backend != LAST_RESORT:
            times.append(runnable.run_held(sample_name(0), timeout_s=limit_s)[1])
        found = resident_of(remote)
        peak_bytes = max(0, memory.resident().now_bytes + found.peak_bytes - base_bytes)
        times.sort()
        timing = Timing(statistics.median(times), times[0], times[-1], len(times), 1) if times else None
        row = Row(target, "ok", "", timing, (), runnable.ran_on, runnable.prepare_s, peak_bytes)
        return Attempt(row, turns, tuple(segments), answers, base_bytes, peak_bytes, weights, copies)


def _values_bytes(graph: Graph, blocks: Sequence[Block], free: int) -> list[int]:
    """Of each block, in their order: what waits for it or later ones, and all that it makes."""
    position = {node: number for number, block in enumerate(blocks) for node in block.nodes}
    born = {value.name: 0 for value in graph.inputs}
    born |= {name: position[maker] for name, maker in graph.producers.items()}
    outputs = {value.name for value in graph.outputs}
    change = [0] * (len(blocks) + 1)
    for name, first in born.items():
        last = max((position[reader] for reader in graph.consumers.get(name, ())), default=first)
        size = size_of(graph, name, free)
        change[first] += size
        change[len(blocks) if name in outputs else last + 1] -= size
    found, alive = [], 0
    for number in range(len(blocks)):
        alive += change[number]
        found.append(alive)
    return found


def size_of(graph: Graph, name: str, free: int) -> int:
    value = graph.values.get(name)
    size = None if value is None else value.size_bytes(free)
    return UNKNOWN_BYTES if size is None else size


def free_size(graph: Graph, samples: Sequence[Mapping[str, Data]]) -> int:
    """The largest size that the samples give a free dimension."""
    sizes = [1]
    for sample in samples:
        for value in graph.inputs:
            shape = getattr(sample.get(value.name), "shape", ())
            sizes += [got for got, size in zip(shape, value.shape or (), strict=False) if isinstance(size, str)]
    return max(sizes)


def _library(target: Target) -> str:
    return f"{target.backend}+{target.variant}" if target.variant else target.backend
