"""Segments of a model that is larger than its memory limit: loaded, run and released in turn.

`Plan.residency` says for each segment who is in memory while it runs. A segment that is needed next is prepared in a
thread of its own meanwhile, and its file is read into the kernel's cache.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from edgert import store
from edgert.devices import memory
from edgert.errors import CacheCorrupt, EdgertError, RunFailed
from edgert.execution.segments import Parts, Relay, Step, seal
from edgert.plan import Segment
from edgert.profile import Target
from edgert.tensor import Data

_log = logging.getLogger(__name__)
LEAN_FOLDER = "segments-lean"
"""Of a model's folder: where the files of `LeanParts` lie."""


class Extent(NamedTuple):
    """A part of a file."""

    path: Path
    offset: int
    length: int
    """0: all that follows."""


class Loaded(Protocol):
    """What a segment is while it is in memory."""

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment that can be loaded."""

    target: Target
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: tuple[Extent, ...]
    """What loading or running it reads."""
    load: Callable[[], Loaded]
    """Makes it ready on its target; raises `TargetError`."""


class Streamed:
    """Runs pieces in their order, each loaded when its turn comes and released when it is over. Thread-safe: requests
    take turns, too, since two at once would hold twice as much.
    """

    width = 1
    """Requests that can be at work at once."""

    def __init__(self, pieces: Sequence[Piece], outputs: Sequence[str], held: Sequence[Sequence[int]]) -> None:
        """Args:
        pieces: all on one device, in an order in which they can run.
        outputs: the model's, by name.
        held: for each piece the indices of those in memory while it runs, as in `Residency.held`.
        """
        self._pieces, self._held = tuple(pieces), tuple(frozenset(own) for own in held)
        self.targets = tuple(dict.fromkeys(piece.target for piece in pieces))
        self.name = " and ".join(map(str, self.targets))
        steps = [
            Step(piece.target, piece.inputs, piece.outputs, partial(self._turn, index))
            for index, piece in enumerate(pieces)
        ]
        self._relay = Relay(steps, outputs)
        self._loading: dict[int, Future[Loaded]] = {}
        """By index: what is in memory, or on its way there."""
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="edgert reads ahead")
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """One request.

        Raises:
            RunFailed: a segment could not be loaded or failed; says which, on which target.
        """
        with self._lock:
            return self._relay.run(inputs)

    def run_pinned(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """As `run`: a segment that comes and goes has no cores of its own."""
        return self.run(inputs)

    def begin(self) -> None:
        """Load the first piece now.

        Raises:
            TargetError: it cannot be.
        """
        with self._lock:
            self._loaded(0)

    def rest(self) -> None:
        """Release everything until the next request."""
        with self._lock:
            self._release(list(self._loading))

    def close(self) -> None:
        """Release everything and end the thread."""
        self.rest()
        self._reader.shutdown()
        self._relay.close()

    def _turn(self, index: int, inputs: Mapping[str, Data]) -> dict[str, Data]:
        return self._loaded(index).run(inputs)

    def _loaded(self, index: int) -> Loaded:
        """The piece whose turn it is; who is not held beside it is released before, who is comes in meanwhile."""
        wanted = self._held[index]
        self._release([other for other in self._loading if other not in wanted])
        if index not in self._loading:
            self._begin(index)
        try:
            loaded = self._loading[index].result()
        except BaseException:
            del self._loading[index]  # the next request tries again
            raise
        for other in sorted(wanted, key=lambda each: (each <= index, each)):
            if other not in self._loading:
                self._begin(other)
        return loaded

    def _begin(self, index: int) -> None:
        piece = self._pieces[index]
        self._loading[index] = self._reader.submit(_load, piece)

    def _release(self, indices: Sequence[int]) -> None:
        for index in indices:
            try:
                self._loading.pop(index).result().close()
            except EdgertError as error:  # it never came in, or was gone already: which is what was wanted
                _log.info("segment %d was not in memory: %s", index + 1, error.message)
        if indices:
            memory.give_back()


def _load(piece: Piece) -> Loaded:
    for extent in piece.reads:
        memory.read_ahead(*extent)
    try:
        return piece.load()
    except EdgertError:
        raise
    except Exception as error:  # a backend of another package may raise anything
        raise RunFailed(f"{piece.target}: {type(error).__name__}: {error}.") from error


class LeanParts(Parts):
    """Segments whose files are written without ever holding the weights, and recognised without reading them again.

    The tables of an .onnx are checked by their digest. Weights were copied from the model, whose digest names this
    folder; they are recognised by size and time, since to read them again would take as long as to run them.
    """

    def file(self, nodes: Sequence[str], keep: Sequence[str] = ()) -> Path:
        path = self._path(nodes, keep)
        with self._lock:
            if not _is_whole(path):
                self._write(nodes, keep, path)
        return path

    def prune(self, kept: Sequence[Segment]) -> None:
        keep = {self._path(segment.nodes, ()) for segment in kept}
        with self._lock:
            for path in self._written - keep:
                for each in (seal(path), path):
                    each.unlink(missing_ok=True)
            self._written &= keep

    def _store(self, nodes: Sequence[str], keep: Sequence[str], path: Path) -> None:
        if self._file is None:
            self._file = self._read()
        self._file.write(nodes, path, keep, lean=True)
        ranges: list[tuple[str, int, int]] = []
        if path.suffix == ".onnx":
            from edgert.formats.onnx_write import external_ranges

            ranges = external_ranges(path)
        files = dict.fromkeys(name for name, _, _ in ranges)
        store.write_json(seal(path), {**_facts(path, list(files)), "ranges": [list(each) for each in ranges]})


def files_of(path: Path) -> tuple[Path, ...]:
    """A segment's file and those that it reads."""
    return tuple(dict.fromkeys(extent.path for extent in extents_of(path)))


def extents_of(path: Path) -> tuple[Extent, ...]:
    """What running a segment reads: of what `LeanParts` wrote its own part of the shared weights, else all files."""
    try:
        known = store.read_json(seal(path))
    except CacheCorrupt:  # it only says what to read ahead
        known = None
    if known is None or "ranges" not in known:
        return tuple(Extent(each, 0, 0) for each in (path, *sorted(path.parent.glob(f"{path.name}*.data"))))
    parts = [Extent(path.with_name(name), offset, length) for name, offset, length in known["ranges"]]
    return (Extent(path, 0, 0), *parts)


def _is_whole(path: Path) -> bool:
    try:
        known = store.read_json(seal(path))
        if known is None:
            return False
        found = _facts(path, [name for name, _, _ in known["data"]])
        return all(known[key] == found[key] for key in found)
    except (CacheCorrupt, OSError, KeyError, TypeError, ValueError) as error:
        _log.warning("segment %s is written again: %s", path, error)
        return False


def _facts(path: Path, beside: Sequence[str]) -> dict[str, object]:
    """What a segment's files are recognised by."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".onnx" else ""
    files = [path.with_name(name) for name in beside] if digest else [path]
    return {"tables": digest, "data": [[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in files]}
