"""Where a graph of blocks may be cut, and the bytes that cross."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edgert.graph import Graph, Value
from edgert.partitioner.blocks import Block
from edgert.partitioner.problem import Flow

__all__ = ["Cut", "SizeOf", "cuts_of", "flows_of", "is_segment", "nodes_of", "weights_of"]

SizeOf: TypeAlias = Callable[[Value], int]
"""Bytes of a value at the planned shapes."""
UNKNOWN_BYTES = 1 << 20
"""What `size_at` assumes where the file gives neither rank nor type: large enough that such a cut is not free."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A border between blocks: those before it in the order, and the rest."""

    after: int
    """How many blocks come before it, at least 1 and fewer than all."""
    values: tuple[str, ...]
    """What crosses: made before it, read after it. Empty between parts that have nothing to do with each other."""
    size_bytes: int
    """Sum over the values."""


def size_at(free: int = 1) -> SizeOf:
    """Bytes of a value with every free dimension at that size."""

    def size(value: Value) -> int:
        found = value.size_bytes(free)
        return UNKNOWN_BYTES if found is None else found

    return size


def flows_of(graph: Graph, blocks: Sequence[Block], size: SizeOf | None = None) -> tuple[Flow, ...]:
    """Each value that crosses between blocks, as a solver wants it. `size` defaults to free dimensions of 1."""
    size = size or size_at()
    owner = {node: block.id for block in blocks for node in block.nodes}
    flows = []
    for name, maker in graph.producers.items():
        sinks = dict.fromkeys(owner[reader] for reader in graph.consumers.get(name, ()))
        sinks.pop(owner[maker], None)
        if sinks:
            flows.append(
                Flow(owner[maker], tuple(sinks), size(graph.values[name]) if name in graph.values else UNKNOWN_BYTES)
            )
    return tuple(flows)


def cuts_of(graph: Graph, blocks: Sequence[Block], size: SizeOf | None = None) -> tuple[Cut, ...]:
    """The cuts along the blocks' order. Each is legal: the blocks before it, and those after it, are convex."""
    size = size or size_at()
    position = {node: number for number, block in enumerate(blocks) for node in block.nodes}
    begins: dict[int, list[str]] = {}
    ends: dict[int, list[str]] = {}
    for name, maker in graph.producers.items():
        last = max((position[reader] for reader in graph.consumers.get(name, ())), default=position[maker])
        if last > position[maker]:
            begins.setdefault(position[maker] + 1, []).append(name)
            ends.setdefault(last + 1, []).append(name)
    alive: dict[str, int] = {}
    cuts = []
    for after in range(1, len(blocks)):
        for name in ends.get(after, ()):
            del alive[name]
        for name in begins.get(after, ()):
            alive[name] = size(graph.values[name]) if name in graph.values else UNKNOWN_BYTES
        cuts.append(Cut(after, tuple(alive), sum(alive.values())))
    return tuple(cuts)


def nodes_of(blocks: Sequence[Block], ids: Iterable[str]) -> frozenset[int]:
    """Node indices of the blocks with those ids."""
    by_id = {block.id: block for block in blocks}
    return frozenset(node for name in ids for node in by_id[name].nodes)


def is_segment(graph: Graph, blocks: Sequence[Block], ids: Iterable[str]) -> bool:
    """Whether those blocks can run as one piece: no path leaves them and comes back."""
    return graph.is_convex(nodes_of(blocks, ids))


def weights_of(graph: Graph, block: Block) -> int:
    """Bytes of the constants that a block reads, those in its control-flow bodies included."""
    names = {name for node in block.nodes for name in graph.nodes[node].reads if name in graph.constants}
    inner = sum(body.weight_bytes for node in block.nodes for body in graph.nodes[node].subgraphs)
    return sum(graph.constants[name].size_bytes for name in names) + inner
