"""What gave wrong numbers: ops of certain element types on a target, until its library or driver changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgert import store
from edgert.errors import CacheUnwritable
from edgert.graph import Graph
from edgert.machine import Machine
from edgert.profile import Target

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One op (or fused group of ops) on one way to run."""

    target: str
    """Without its threads, such as 'onnxruntime+webgpu@gpu:0/f32'."""
    ops: tuple[str, ...]
    """Of the block, sorted, each once."""
    dtypes: tuple[str, ...]
    """Element types of all that the block reads and makes, sorted, each once."""
    version: str
    """Of the backend's library."""
    driver: str
    """Of the device."""
    reason: str = ""
    """How far the numbers were off."""
    model: str = ""
    """Digest of the model that showed it."""

    @property
    def key(self) -> tuple[object, ...]:
        """What must be equal for the entry to hold."""
        return self.target, self.ops, self.dtypes, self.version, self.driver

    def __str__(self) -> str:
        return f"{'+'.join(self.ops)} ({', '.join(self.dtypes)}) on {self.target} {self.version}: {self.reason}"


class Quarantine:
    """The entries of one machine. Kept on disk where there is a cache."""

    def __init__(self, folder: Path | None, machine: Machine) -> None:
        self._machine = machine
        self._path = folder / "quarantine" / f"{machine.fingerprint}.json" if folder else None
        self._entries = {entry.key: entry for entry in self._read()}

    def entries(self) -> tuple[Entry, ...]:
        """All that are known, those of other versions included."""
        return tuple(self._entries.values())

    def find(self, graph: Graph, nodes: Sequence[int], target: Target) -> Entry | None:
        """The entry that keeps these nodes from that target, or None."""
        return self._entries.get(self._entry(graph, nodes, target).key)

    def add(self, graph: Graph, nodes: Sequence[int], target: Target, reason: str, model: str) -> Entry:
        """Remember that these nodes gave wrong numbers there."""
        entry = self._entry(graph, nodes, target, reason, model)
        # Another process may have added some meanwhile.
        self._entries = {entry.key: entry for entry in self._read()} | self._entries | {entry.key: entry}
        _log.warning("in quarantine: %s", entry)
        if self._path is not None:
            try:
                store.write_json(self._path, {"entries": [asdict(each) for each in self._entries.values()]})
            except CacheUnwritable as error:
                _log.warning("the quarantine is forgotten with this process: %s", error.message)
        return entry

    def _entry(self, graph: Graph, nodes: Sequence[int], target: Target, reason: str = "", model: str = "") -> Entry:
        chosen = [graph.nodes[index] for index in nodes]
        names = {name for node in chosen for name in (*node.reads, *node.writes)}
        dtypes = {graph.values[name].dtype or "?" for name in names if name in graph.values}
        library = self._machine.backend(target.backend)
        variant = f"+{target.variant}" if target.variant else ""
        return Entry(
            f"{target.backend}{variant}@{target.device}/{target.precision}",
            tuple(sorted({node.op for node in chosen})), tuple(sorted(dtypes)),
            library.version if library else "", self._machine.device(target.device).driver, reason, model,
        )  # fmt: skip

    def _read(self) -> list[Entry]:
        content = store.read_or_drop(self._path) if self._path else None
        try:
            return [_entry_from_json(item) for item in (content or {"entries": []})["entries"]]
        except (KeyError, TypeError) as error:
            _log.warning("the quarantine %s is of another form (%s) and starts anew", self._path, error)
            return []


def _entry_from_json(item: dict[str, Any]) -> Entry:
    return Entry(**{**item, "ops": tuple(item["ops"]), "dtypes": tuple(item["dtypes"])})
