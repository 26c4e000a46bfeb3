"""What a segment costs on a target besides its blocks: its call, and the bytes that it reads and hands out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgert.planning.workshop import Workshop
from edgert.profile import Target

__all__ = ["Overhead", "border_bytes", "flow_bytes", "overhead_of", "probe_pairs"]

_PAIRS = 5
"""How many pairs of neighbours are timed on a target: their borders from the smallest to the largest."""
_NOISE = 0.02
"""Of what blocks and stretches take, how much their times differ by chance: what an equation is weighted with."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """Of every segment on one target."""

    call_s: float
    """Whatever is in it."""
    byte_s: float
    """Each byte that enters or leaves it: copies, changed layouts, and memory that fused kernels do without."""

    def of(self, size_bytes: float) -> float:
        """Of a segment with so many bytes at its borders."""
        return self.call_s + self.byte_s * size_bytes


def border_bytes(workshop: Workshop, blocks: Sequence[int]) -> int:
    """Bytes of all that these blocks as one piece read and hand out, the model's own inputs and outputs among them."""
    graph = workshop.file.graph
    inputs, outputs = graph.boundary(frozenset(workshop.nodes(blocks)))
    return sum(workshop.size(graph.values[name]) for name in (*inputs, *outputs) if name in graph.values)


def flow_bytes(workshop: Workshop, blocks: Sequence[int]) -> int:
    """Of those, what comes from other blocks or goes to them."""
    graph = workshop.file.graph
    sides = {value.name for value in (*graph.inputs, *graph.outputs)}
    inputs, outputs = graph.boundary(frozenset(workshop.nodes(blocks)))
    names = (name for name in (*inputs, *outputs) if name in graph.values and name not in sides)
    return sum(workshop.size(graph.values[name]) for name in names)


def probe_pairs(workshop: Workshop, target: Target, alone: Mapping[int, float]) -> None:
    """Time a few pairs of neighbours as one piece: what they save tells what a border costs.

    Args:
        workshop: asks, while there is time.
        target: where.
        alone: number of a block -> its time there.
    """
    saved = [
        (border_bytes(workshop, [low]) + border_bytes(workshop, [high]) - border_bytes(workshop, [low, high]), low)
        for low, high in _neighbours(workshop)
        if low in alone and high in alone
    ]
    by_size = sorted(dict(saved).items())
    picked = {round(step * (len(by_size) - 1) / (_PAIRS - 1)) for step in range(_PAIRS)} if by_size else set()
    for number in sorted(picked):
        if workshop.in_time:
            low = by_size[number][1]
            workshop.ask([low, low + 1], target)


def _neighbours(workshop: Workshop) -> Iterator[tuple[int, int]]:
    """Blocks next to each other in the order, so that the pair is convex, the second reading what the first makes."""
    graph = workshop.file.graph
    for low, high in itertools.pairwise(range(len(workshop.blocks))):
        made = {name for node in workshop.blocks[low].nodes for name in graph.nodes[node].writes}
        if any(name in made for node in workshop.blocks[high].nodes for name in graph.nodes[node].reads):
            yield low, high


def overhead_of(workshop: Workshop, target: Target, alone: Mapping[int, float]) -> Overhead:
    """What calls and borders cost on a target, by all stretches of blocks that were timed there.

    Blocks that take c_1 + ... + c_n one by one take T as one piece, which saves n - 1 calls and the bytes B that only
    stood at the borders between them: c_1 + ... + c_n - T = (n - 1) call_s + B byte_s, solved over all stretches by
    weighted least squares, neither below 0. What fusion saves is in it too, so a call takes no more than the shortest
    block; with no stretch it takes as long as that.

    Args:
        workshop: knows the stretches.
        target: where.
        alone: number of a block -> its time there; at least one.
    """
    shortest_s = min(alone.values())
    rows = list(_equations(workshop, target, alone))
    if not rows:
        return Overhead(shortest_s, 0.0)
    kk, kb, bb, kx, bx = (
        sum(weight * one * other for weight, one, other in terms)
        for terms in (
            [(w, k, k) for w, k, _, _ in rows], [(w, k, b) for w, k, b, _ in rows], [(w, b, b) for w, _, b, _ in rows],
            [(w, k, x) for w, k, _, x in rows], [(w, b, x) for w, _, b, x in rows],
        )
    )  # fmt: skip
    determinant = kk * bb - kb * kb
    call_s = (bb * kx - kb * bx) / determinant if determinant > 1e-9 * kk * bb else kx / kk
    call_s = min(shortest_s, max(0.0, call_s))
    byte_s = max(0.0, (bx - kb * call_s) / bb) if bb > 0 else 0.0
    if byte_s <= 0.0:
        call_s = min(shortest_s, max(0.0, kx / kk))
    return Overhead(call_s, byte_s)


def _equations(
    workshop: Workshop, target: Target, alone: Mapping[int, float]
) -> Iterator[tuple[float, float, float, float]]:
    """(weight, calls saved, bytes saved, seconds saved) of each stretch."""
    for (where, blocks), whole_s in workshop.stretches.items():
        if where != target or len(blocks) < 2 or not alone.keys() >= set(blocks):
            continue
        parts_s = sum(alone[number] for number in blocks)
        parts_bytes = sum(border_bytes(workshop, [number]) for number in blocks)
        saved_bytes = parts_bytes - border_bytes(workshop, blocks)
        yield 1.0 / (_NOISE * (parts_s + whole_s)) ** 2, len(blocks) - 1, saved_bytes, parts_s - whole_s
