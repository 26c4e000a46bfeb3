"""Which blocks a target takes, asked of the real backend on the real pieces."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, field, replace

from edgert.planning.workshop import Workshop
from edgert.profile import Row, Target

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Capability:
    """What one target takes of a model."""

    target: Target
    taken: set[int] = field(default_factory=set)
    """Numbers of blocks that it ran with the right numbers, alone or as part of a longer stretch."""
    refused: dict[int, Row] = field(default_factory=dict)
    """Numbers of blocks that it refuses, or gets wrong, each alone; with what came of it."""


def everything(target: Target, blocks: int) -> Capability:
    """For a target that ran the whole model right."""
    return Capability(target, set(range(blocks)))


def capability(workshop: Workshop, target: Target, kin: Capability | None = None) -> Capability:
    """What a target takes of a model that it refuses as a whole.

    Stretches of blocks in their order are tried, and halved where they are refused: r culprits among n blocks cost
    about 2 r log2(n / r) preparations (adaptive group testing; Hwang, Journal of the American Statistical Association
    67, 1972). Stretches are convex, since blocks are in topological order. What is not known when the time is over
    counts as refused.

    Args:
        workshop: asks.
        target: which refused the whole.
        kin: what the same library takes on the same device at another precision: what it refuses there is not asked
            again, and the stretches between are tried first.
    """
    found = Capability(target)
    total = len(workshop.blocks)
    waiting = [(0, total // 2), (total // 2, total)] if total > 1 else [(0, total)]
    if kin is not None:
        found.refused = {n: replace(row, target=target) for n, row in kin.refused.items() if row.outcome == "refused"}
        edges = [-1, *sorted(found.refused), total]
        waiting = [(low + 1, high) for low, high in itertools.pairwise(edges)]
    while waiting:
        low, high = waiting.pop(0)
        if low == high:
            continue
        if not workshop.in_time:
            for number in range(low, high):
                found.refused[number] = Row(target, "untried", "the time to ask was over")
            continue
        workshop.say(f"asking {target} for blocks {low + 1} to {high} of {total}")
        row = workshop.ask(range(low, high), target)
        if row.outcome == "ok":
            found.taken.update(range(low, high))
        elif high - low == 1:
            found.refused[low] = row
            workshop.convict(low, row)
        else:
            middle = (low + high) // 2
            waiting += [(low, middle), (middle, high)]
    return found
