"""A plan's segments: written as model files of their own, and run so that each hands its values to the next.

| stage | call | gives |
|---|---|---|
| nodes -> file | `Parts.file` | a model file in the cache folder, written once and checked by its digest |
| file -> Source | `Parts.source` | what a backend prepares |
| prepared segments -> request | `Relay.run` | the model's outputs; segments on different devices overlap |
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from edgert import formats, store
from edgert.devices.backend import Source
from edgert.errors import CacheCorrupt, CacheUnwritable, ChildError, EdgertError, RunFailed, TargetError
from edgert.formats import ModelFile
from edgert.graph import Value
from edgert.plan import Plan, Segment
from edgert.profile import Target
from edgert.tensor import Data

_log = logging.getLogger(__name__)
_FORMAT = 1
"""Raised when the writers of segments change: older files are then not found."""


class Parts:
    """Segments of one model, as files in a folder. Thread-safe."""

    def __init__(self, model: Source, folder: Path, read: Callable[[], ModelFile] | None = None) -> None:
        """Args:
        model: the whole model.
        folder: where the files go; made when first needed. It belongs to this model's content alone.
        read: gives the model as a graph; asked only when a file is missing.
        """
        self._model, self._folder = model, folder
        self._read = read or (lambda: formats.open_model(model.path))
        self._file: ModelFile | None = None
        self._written: set[Path] = set()
        self._lock = threading.Lock()

    def file(self, nodes: Sequence[str], keep: Sequence[str] = ()) -> Path:
        """The file of these nodes, written when it is not there or damaged.

        Args:
            nodes: a convex set, by name.
            keep: values made inside that become outputs too.

        Raises:
            ModelError, OptionError: the model cannot be cut there; see `ModelFile.write`.
            CacheUnwritable: the folder cannot be written.
        """
        path = self._path(nodes, keep)
        with self._lock:
            if not intact(path):
                self._write(nodes, keep, path)
        return path

    def source(self, segment: Segment, values: Mapping[str, Value]) -> Source:
        """What a backend needs to prepare a segment.

        Args:
            segment: of the plan; `inputs` and `outputs` are those of its file.
            values: every value at its border, by name.
        """
        inputs, outputs = (tuple(values[name] for name in names) for names in (segment.inputs, segment.outputs))
        path = self.file(segment.nodes) if segment.nodes else self._model.path
        return Source(path, self._model.format, inputs, outputs, self._model.precision)

    def prune(self, kept: Sequence[Segment]) -> None:
        """Remove the files that this object wrote, but for those of `kept`: all that was tried may be many models."""
        keep = {self._path(segment.nodes, ()) for segment in kept}
        with self._lock:
            for path in self._written - keep:
                for each in (seal(path), path, path.with_name(f"{path.name}.data")):
                    each.unlink(missing_ok=True)
            self._written &= keep

    def _path(self, nodes: Sequence[str], keep: Sequence[str]) -> Path:
        key = json.dumps([_FORMAT, sorted(nodes), list(keep)])
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.{self._model.format}"

    def _write(self, nodes: Sequence[str], keep: Sequence[str], path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheUnwritable(
                f"folder {path.parent} for segments cannot be made: {error.strerror or error}.",
                "Mend the cache folder's permissions and space, or pass another cache_dir=.",
            ) from error
        self._written.add(path)
        self._store(nodes, keep, path)

    def _store(self, nodes: Sequence[str], keep: Sequence[str], path: Path) -> None:
        if self._file is None:
            self._file = self._read()
        self._file.write(nodes, path, keep)
        store.write_json(seal(path), {"digest": formats.digest(path)})


def parts_of(plan: Plan, model: Source, folder: Path) -> Parts:
    """The files of a plan's segments, cut from the model, or from what it was tidied up to.

    Args:
        plan: of several segments.
        model: the whole model.
        folder: belongs to this model's content alone.
    """
    if not plan.tidied:
        return Parts(model, folder / "segments")
    return Parts(model, tidied_parts(folder), lambda: _tidied(plan, folder))


def tidied_path(folder: Path) -> Path:
    """Where the tidied-up model lies in a model's folder."""
    return folder / "tidied.onnx"


def tidied_parts(folder: Path) -> Path:
    """Where the segments of the tidied-up model lie: nodes of one name may differ from the model's own."""
    return folder / "segments-tidied"


def is_at_hand(plan: Plan, folder: Path) -> bool:
    """Whether what the plan's segments are cut from is still there."""
    known = store.read_or_drop(seal(tidied_path(folder))) if plan.tidied else None
    return not plan.tidied or (known is not None and known.get("digest") == plan.tidied)


def _tidied(plan: Plan, folder: Path) -> ModelFile:
    path = tidied_path(folder)
    if not intact(path) or formats.digest(path) != plan.tidied:
        raise CacheCorrupt(
            f"{path}, from which plan {plan.id} cuts its segments, is damaged or of another version.",
            "Delete the folder, and load the model again: it is planned anew.",
        )
    return formats.open_model(path)


def seal(path: Path) -> Path:
    """Where the digest of a file is kept, and what else is to be known of it."""
    return path.with_name(f"{path.name}.json")


def intact(path: Path) -> bool:
    """Whether the file is there, with the content that was written."""
    try:
        known = store.read_json(seal(path))
        return known is not None and known.get("digest") == formats.digest(path)
    except (CacheCorrupt, EdgertError) as error:
        _log.warning("segment %s is written again: %s", path, error)
        return False


@dataclass(frozen=True, slots=True)
class Step:
    """A prepared segment."""

    target: Target
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[Mapping[str, Data]], dict[str, Data]]


class Relay:
    """Segments that hand values to one another in this process. Thread-safe where the steps are.

    Each segment runs as soon as what it reads is there and its device is idle; a value is dropped after its last
    reader.
    """

    def __init__(self, steps: Sequence[Step], outputs: Sequence[str]) -> None:
        """Args:
        steps: in an order in which each reads only inputs of the model and outputs of earlier ones.
        outputs: the model's, by name.
        """
        self._steps, self._outputs = tuple(steps), tuple(outputs)
        makers = {name: index for index, step in enumerate(steps) for name in step.outputs}
        self._before = [frozenset(makers[name] for name in step.inputs if name in makers) for step in steps]
        self._dead = self._last_reads()
        self._side_by_side = self._can_overlap()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """One request.

        Raises:
            RunFailed: a segment failed; says which, on which target.
        """
        values = dict(inputs)
        if self._side_by_side:
            self._overlapped(values)
        else:
            for index in range(len(self._steps)):
                self._take(values, index, self._run_step(values, index))
                for name in self._dead[index]:
                    values.pop(name, None)
        return {name: values[name] for name in self._outputs}

    def close(self) -> None:
        """End the threads. Harmless when there are none."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _run_step(self, values: Mapping[str, Data], index: int) -> dict[str, Data]:
        step = self._steps[index]
        try:
            return step.run({name: values[name] for name in step.inputs if name in values})
        except (TargetError, ChildError) as error:
            raise RunFailed(f"segment {index + 1} of {len(self._steps)} on {step.target}: {error.message}") from error

    def _take(self, values: dict[str, Data], index: int, made: Mapping[str, Data]) -> None:
        for name in self._steps[index].outputs:
            values[name] = made[name]

    def _overlapped(self, values: dict[str, Data]) -> None:
        """Start what can start, one segment a device at a time; the caller's thread runs what would run alone."""
        left = dict(enumerate(self._before))
        done: set[int] = set()
        running: dict[Future[dict[str, Data]], int] = {}
        while left or running:
            busy = {self._steps[index].target.device for index in running.values()}
            starting: dict[str, int] = {}
            for index, before in left.items():
                device = self._steps[index].target.device
                if before <= done and device not in busy:
                    starting.setdefault(device, index)
            for index in starting.values():
                del left[index]
            if len(starting) == 1 and not running:
                (index,) = starting.values()
                finished = {index: self._run_step(values, index)}
            else:
                for index in starting.values():
                    running[self._threads().submit(self._run_step, values.copy(), index)] = index
                finished = self._finished(running)
            for index, made in finished.items():
                self._take(values, index, made)
                done.add(index)

    def _finished(self, running: dict[Future[dict[str, Data]], int]) -> dict[int, dict[str, Data]]:
        """What the next ones to finish made; the first failure, after all have ended."""
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        if any(future.exception() for future in ended):
            wait(running)  # nothing may still run on a target when the caller goes on to another
        return {running.pop(future): future.result() for future in ended}

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                devices = {step.target.device for step in self._steps}
                self._pool = ThreadPoolExecutor(len(devices), thread_name_prefix="edgert segment")
            return self._pool

    def _can_overlap(self) -> bool:
        """Whether two segments on different devices have no path between them."""
        above: list[frozenset[int]] = []
        for before in self._before:
            above.append(before.union(*(above[index] for index in before)))
        return any(
            first not in above[second] and self._steps[first].target.device != self._steps[second].target.device
            for second in range(len(self._steps))
            for first in range(second)
        )

    def _last_reads(self) -> list[tuple[str, ...]]:
        """For each step, the values that nobody needs after it."""
        dead: list[tuple[str, ...]] = []
        needed = set(self._outputs)
        for step in reversed(self._steps):
            dead.append(tuple({*step.inputs, *step.outputs} - needed))
            needed |= set(step.inputs)
        return dead[::-1]
