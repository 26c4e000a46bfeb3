"""What a planning learned of each block: where it runs, what it takes on every target, who does not take it and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgert.partitioner.blocks import Block, signature
from edgert.plan import PlacedBlock, Plan
from edgert.planning.capability import Capability
from edgert.planning.workshop import Workshop, seconds
from edgert.profile import Row

__all__ = ["entries"]


def entries(plan: Plan, workshop: Workshop, found: Sequence[Capability]) -> tuple[PlacedBlock, ...]:
    """A row for each block of the workshop's model, placed as the plan places it.

    Args:
        plan: of that model, whole or in segments.
        workshop: was asked for pieces of it.
        found: what each target takes.
    """
    home = {name: number for number, segment in enumerate(plan.segments) for name in segment.nodes}
    graph = workshop.file.graph
    answers: dict[str, dict[str, Row]] = {}
    for (work, target), row in workshop.answers.items():
        answers.setdefault(work, {})[target] = row
    refusals = {
        number: {str(each.target): each.refused[number] for each in found if number in each.refused}
        for number in range(len(workshop.blocks))
    }
    return tuple(
        _entry(workshop, block, plan, home.get(graph.nodes[block.nodes[0]].name, 0),
               {**refusals[number], **answers.get(signature(graph, block.nodes), {})})
        for number, block in enumerate(workshop.blocks)
    )  # fmt: skip


def _entry(workshop: Workshop, block: Block, plan: Plan, segment: int, rows: Mapping[str, Row]) -> PlacedBlock:
    graph = workshop.file.graph
    alone = {target: seconds(row) for target, row in rows.items() if row.outcome == "ok" and row.timing is not None}
    target = plan.segments[segment].target
    return PlacedBlock(
        block.id, tuple(dict.fromkeys(graph.nodes[index].op for index in block.nodes)), len(block.nodes), segment,
        block.cause, max(0.0, alone.get(str(target), 0.0) - workshop.calls.get(target, 0.0)), alone,
        {name: f"{row.outcome}: {row.reason}" for name, row in rows.items() if row.outcome not in ("ok", "untried")},
    )  # fmt: skip
