"""How long a model in pieces takes end to end, from what each piece took as a whole and what links take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgert.machine import Link
from edgert.partitioner.evaluate import evaluate
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Flow, Problem, TargetSpec
from edgert.planning.workshop import Workshop, seconds

if TYPE_CHECKING:
    from edgert.planning.proposals import Proposal

__all__ = ["with_links"]


def with_links(workshop: Workshop, proposal: Proposal, links: Sequence[Link]) -> Proposal:
    """The proposal with `predicted_s` anew: pieces on different devices overlap, and what crosses takes its link.

    Costs of blocks do not add up to that of a segment, so this goes by the segments; what they take from each other
    while they overlap is not in it.

    Raises:
        Infeasible: two devices that hand over a value have no link.
    """
    if len({piece.target.device for piece in proposal.pieces}) < 2:
        return replace(proposal, predicted_s=sum(map(seconds, proposal.rows)))
    names = [f"piece {number}" for number in range(len(proposal.pieces))]
    targets = list(dict.fromkeys(piece.target for piece in proposal.pieces))
    problem = Problem(
        tuple(
            BlockSpec(name, {str(piece.target): seconds(row)})
            for name, piece, row in zip(names, proposal.pieces, proposal.rows, strict=True)
        ),
        tuple(DeviceSpec(device) for device in dict.fromkeys(target.device for target in targets)),
        tuple(TargetSpec(str(target), target.device) for target in targets),
        _flows(workshop, proposal, names),
        tuple(links),
    )
    placed = {name: str(piece.target) for name, piece in zip(names, proposal.pieces, strict=True)}
    return replace(proposal, predicted_s=evaluate(problem, placed).latency)


def _flows(workshop: Workshop, proposal: Proposal, names: Sequence[str]) -> tuple[Flow, ...]:
    graph = workshop.file.graph
    owner = {node: n for n, piece in enumerate(proposal.pieces) for node in workshop.nodes(piece.blocks)}
    flows = []
    for value, maker in graph.producers.items():
        home = owner[maker]
        sinks = {owner[reader] for reader in graph.consumers.get(value, ())} - {home}
        if sinks:
            size = workshop.size(graph.values[value])
            flows.append(Flow(names[home], tuple(names[sink] for sink in sorted(sinks)), size))
    return tuple(flows)
