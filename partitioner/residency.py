"""Which pieces of a model are in memory when, where not all of them fit at once.

| stage | call | gives |
|---|---|---|
| blocks, budget -> segments | `take_turns` | consecutive blocks, none more than its share of the budget |
| segments -> who is held when | `Turns.held` | for each segment what is in memory while it runs |

While a segment runs, the next one is read ahead where the budget has room for both. Where a good part of the model
fits, some segments stay: every one that stays is one fewer to load for each request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgert.errors import Infeasible

__all__ = ["Load", "Turns", "take_turns"]

_SHARES = (2, 4, 8)
"""A segment's share of the budget, as 1/n: two must fit for reading ahead; smaller ones leave room for some to stay."""
_WORTH_KEEPING = 4.0
"""A model of more than this many budgets is cut into the largest segments: what could stay is too little to matter."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one block takes."""

    id: str
    weights_bytes: int
    """While its segment is held, as the target holds them (which may copy)."""
    values_bytes: int
    """While it runs: what it reads, makes and what waits for later blocks."""

    @property
    def alone_bytes(self) -> int:
        """What must fit for it to run at all."""
        return self.weights_bytes + self.values_bytes


@dataclass(frozen=True, slots=True)
class Turns:
    """Segments in the order in which they run, and who is held while each does."""

    segments: tuple[tuple[int, int], ...]
    """First block and the one after the last."""
    held: tuple[tuple[int, ...], ...]
    """Indices into `segments`, rising; of each segment itself and of all that is held beside it."""
    held_bytes: int
    """The most that is ever needed: weights of what is held, and the values of what runs."""

    @property
    def kept(self) -> frozenset[int]:
        """Segments that are never released."""
        return frozenset(range(len(self.segments))).intersection(*map(frozenset, self.held))


def take_turns(blocks: Sequence[Load], budget_bytes: int, most_bytes: int | None = None) -> Turns:
    """Cut blocks, in their order, into segments that run one after another within a budget.

    Requires blocks in an order in which they can run; ensures that at no time more than `budget_bytes` is needed.

    1. A block that does not fit alone is refused.
    2. All that fits at once is one segment, and stays.
    3. Else segments are filled with consecutive blocks up to a share of the budget; of the shares the one under which
       most stays, and of those the one with the fewest segments.

    Args:
        blocks: what each takes.
        budget_bytes: for all that is held.
        most_bytes: of weights in one segment of several blocks; None for no such limit.

    Raises:
        Infeasible: some block alone needs more than the budget; says which, how much, and by how much too much.
    """
    worst = max(blocks, key=lambda block: block.alone_bytes)
    if worst.alone_bytes > budget_bytes:
        left = (
            f"{budget_bytes} are left for it" if budget_bytes > 0
            else f"nothing is left for it: what runs it takes {-budget_bytes} more than the limit by itself"
        )  # fmt: skip
        raise Infeasible(
            f"block {worst.id!r} alone needs {worst.alone_bytes} bytes ({worst.weights_bytes} of weights, "
            f"{worst.values_bytes} of values), {left}: "
            f"{worst.alone_bytes - budget_bytes} too few.",
            f"Raise the memory limit by {worst.alone_bytes - budget_bytes} bytes, or use smaller weights (int8).",
            block=worst.id, limit="memory", excess=float(worst.alone_bytes - budget_bytes),
        )  # fmt: skip
    total = sum(block.weights_bytes for block in blocks)
    room = budget_bytes - max(block.values_bytes for block in blocks)
    if total <= room:
        return _turns(blocks, [(0, len(blocks))], (0,), budget_bytes)
    shares = _SHARES if total <= _WORTH_KEEPING * room else _SHARES[:1]
    tried = []
    for share in shares:
        segments = _filled(blocks, max(1, min(room // share, most_bytes or room)))
        sizes = [_weights(blocks, segment) for segment in segments]
        tried.append(_turns(blocks, segments, _staying(sizes, room), budget_bytes))
    return max(tried, key=lambda turns: (_kept_bytes(blocks, turns), -len(turns.segments)))


def _filled(blocks: Sequence[Load], cap_bytes: int) -> list[tuple[int, int]]:
    """Consecutive blocks together while their weights stay under the cap; a larger block stands alone."""
    segments, low, size = [], 0, 0
    for index, block in enumerate(blocks):
        if index > low and size + block.weights_bytes > cap_bytes:
            segments.append((low, index))
            low, size = index, 0
        size += block.weights_bytes
    return [*segments, (low, len(blocks))]


def _staying(sizes: Sequence[int], room_bytes: int) -> tuple[int, ...]:
    """Segments that may stay beside any two others, spread evenly: reading ahead then has time while they run."""
    left = room_bytes - 2 * max(sizes)
    chosen: list[int] = []
    for index in _spread(len(sizes)):
        if sizes[index] <= left:
            chosen.append(index)
            left -= sizes[index]
    return tuple(sorted(chosen))


def _spread(count: int) -> list[int]:
    """0..count-1 so that any first few lie evenly: by the binary digits of the index in reverse (van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    return [index for number in range(1 << bits) if (index := int(f"{number:0{bits}b}"[::-1], 2)) < count]


def _turns(
    blocks: Sequence[Load], segments: Sequence[tuple[int, int]], stay: Sequence[int], budget_bytes: int
) -> Turns:
    sizes = [_weights(blocks, segment) for segment in segments]
    held, most = [], 0
    for index, (low, high) in enumerate(segments):
        values = max(block.values_bytes for block in blocks[low:high])
        own = {*stay, index}
        following = (*range(index + 1, len(segments)), *range(index))  # after the last comes the next request's first
        ahead = next((other for other in following if other not in own), index)
        if sum(sizes[each] for each in own | {ahead}) + values <= budget_bytes:
            own.add(ahead)
        held.append(tuple(sorted(own)))
        most = max(most, sum(sizes[each] for each in own) + values)
    return Turns(tuple(segments), tuple(held), most)


def _weights(blocks: Sequence[Load], segment: tuple[int, int]) -> int:
    return sum(block.weights_bytes for block in blocks[slice(*segment)])


def _kept_bytes(blocks: Sequence[Load], turns: Turns) -> int:
    return sum(_weights(blocks, turns.segments[index]) for index in turns.kept)
