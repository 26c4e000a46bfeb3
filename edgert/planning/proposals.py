"""Ways to split a model that may pay: from what targets take, and what blocks cost, to pieces measured as a whole."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgert.errors import Infeasible
from edgert.machine import Link
from edgert.partitioner.cuts import flows_of
from edgert.partitioner.evaluate import evaluate
from edgert.partitioner.problem import BlockSpec, DeviceSpec, Problem, TargetSpec
from edgert.partitioner.solve import solve
from edgert.planning.capability import Capability
from edgert.planning.costs import Costs, net_s, problem_of
from edgert.planning.overheads import Overhead, flow_bytes, overhead_of
from edgert.planning.predict import with_links
from edgert.planning.workshop import Workshop, seconds
from edgert.profile import Row, Target

_log = logging.getLogger(__name__)
_SOLVE_S = 2.0
_LONGEST_NAME = 48
_ROUNDS = 3
"""How often costs are corrected by what whole segments took, and solved again."""
_FEW = 3
"""Segments of a simple split."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks that run as one segment."""

    target: Target
    blocks: tuple[int, ...]
    """Numbers, rising."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A model in pieces."""

    pieces: tuple[Piece, ...]
    """In an order in which they can run; at least two."""
    rows: tuple[Row, ...] = field(compare=False)
    """What came of each piece as one segment."""
    predicted_s: float = field(compare=False)
    """Of one request; for throughput the time between requests."""
    cause: str = field(compare=False)
    """Where it comes from, and why the pieces are where they are."""

    def __str__(self) -> str:
        return " -> ".join(f"{piece.target} ({len(piece.blocks)} blocks)" for piece in self.pieces)


Placement = Mapping[int, Target]
"""Number of a block -> where it runs."""


def by_capability(workshop: Workshop, found: Sequence[Capability]) -> list[tuple[Placement, str]]:
    """For each target that takes a part of the model: that part there, every other block where it is fastest alone."""
    placements = []
    for each in found:
        if not each.refused or not each.taken:
            continue
        own = each.taken - _with_group(workshop, each.refused.keys())
        placement: dict[int, Target] = dict.fromkeys(own, each.target)
        for number in range(len(workshop.blocks)):
            if number not in placement:
                others = [other.target for other in found if other is not each and number in other.taken]
                best = _fastest(workshop, number, others)
                if best is None:
                    break
                placement[number] = best
        else:
            names = ", ".join(short(workshop.blocks[number].id) for number in sorted(each.refused)[:3])
            more = f" and {len(each.refused) - 3} more" if len(each.refused) > 3 else ""
            placements.append((_one_target_a_group(workshop, placement), f"{each.target} takes all but {names}{more}"))
    return placements


def _with_group(workshop: Workshop, numbers: Collection[int]) -> set[int]:
    """The blocks, and those that share a target with one of them."""
    chosen = set(numbers)
    groups = {workshop.blocks[number].group for number in chosen} - {""}
    return chosen | {number for number, block in enumerate(workshop.blocks) if block.group in groups}


def _one_target_a_group(workshop: Workshop, placement: Mapping[int, Target]) -> Placement:
    """Blocks that share a large constant go where the first of them is."""
    first: dict[str, Target] = {}
    for number, block in enumerate(workshop.blocks):
        if block.group:
            first.setdefault(block.group, placement[number])
    return {n: first.get(workshop.blocks[n].group, target) for n, target in placement.items()}


def _fastest(workshop: Workshop, number: int, targets: Sequence[Target]) -> Target | None:
    rows = [workshop.ask([number], target) for target in targets]
    right = [row for row in rows if row.outcome == "ok"]
    return min(right, key=workshop.price).target if right else None


def pieces_of(workshop: Workshop, placement: Placement) -> tuple[Piece, ...]:
    """A placement as convex pieces in an order in which they can run.

    Raises:
        Infeasible: blocks of one group are on different targets.
    """
    targets = {str(target): target for target in placement.values()}
    names = {block.id: number for number, block in enumerate(workshop.blocks)}
    rules = Problem(
        tuple(BlockSpec(b.id, {str(placement[n]): 1.0}, group=b.group) for n, b in enumerate(workshop.blocks)),
        (DeviceSpec("any"),), tuple(TargetSpec(name, "any") for name in targets),
        flows_of(workshop.file.graph, workshop.blocks),
    )  # fmt: skip
    found = evaluate(rules, {block.id: str(placement[number]) for number, block in enumerate(workshop.blocks)})
    return tuple(
        Piece(targets[piece.target], tuple(sorted(names[name] for name in piece.blocks))) for piece in found.pieces
    )


def by_cost(workshop: Workshop, costs: Costs, links: Sequence[Link]) -> list[Proposal]:
    """Solved on measured costs, then on costs corrected by what the pieces took; from two sides.

    With costs by which long stretches take what they took, fused kernels do not look slow; but the bytes of the model's
    own inputs shrink with them, which no fusion spares. With costs as measured it is the other way round.
    """
    made: list[Proposal] = []
    whole = None
    for factors in (_calibrated(workshop, costs), {}):
        if workshop.in_time:
            whole = _improve(workshop, costs, links, factors, made) or whole
    if whole and not made:
        workshop.note(f"don't split: by measured costs the whole is best on {whole}")
    return made


def _improve(
    workshop: Workshop, costs: Costs, links: Sequence[Link], factors: Mapping[Target, float], made: list[Proposal]
) -> Target | None:
    """Add to those made what is best by these costs, and by each correction of them; the target that is best for all.

    A placement in many segments is tried in at most `_FEW` too: fewer costs can be wrong there.
    """
    for _ in range(_ROUNDS):
        problem = problem_of(workshop, costs, _overheads(workshop, costs), factors, links)
        found, whole = _solved(workshop, costs, problem, links)
        if len(found) and len(found[0].pieces) > _FEW and workshop.in_time:
            found += _solved(workshop, costs, replace(problem, most_segments=_FEW), links)[0]
        if not found or found[0] in made:
            return whole
        made += found
        if not workshop.in_time:
            break
        factors = _corrected(workshop, found[0], costs, factors)
    return None


def _overheads(workshop: Workshop, costs: Costs) -> dict[Target, Overhead]:
    return {target: overhead_of(workshop, target, known) for target, known in costs.seconds.items() if known}


def _solved(
    workshop: Workshop, costs: Costs, problem: Problem, links: Sequence[Link]
) -> tuple[list[Proposal], Target | None]:
    """The solver's placement in pieces that were measured, or the one target that it puts all on."""
    workshop.say("solving the placement")
    try:
        solution = solve(problem, _SOLVE_S)
    except Infeasible as error:
        workshop.note(f"no split keeps every limit: {error.message}")
        return [], None
    targets = {str(target): target for target in costs.seconds}
    placement = {n: targets[solution.placement[block.id]] for n, block in enumerate(workshop.blocks)}
    if len(set(placement.values())) == 1:
        return [], placement[0]
    few = f", at most {problem.most_segments} segments" if problem.most_segments else ""
    cause = f"cheapest by measured costs ({solution.solver}{few}, gap {100 * solution.gap:.1g}%)"
    proposals = measured(workshop, placement, cause)
    if workshop.objective == "latency":
        proposals = [with_links(workshop, each, links) for each in proposals]
    return proposals, None


def _calibrated(workshop: Workshop, costs: Costs) -> dict[Target, float]:
    """For each target: what its longest stretch took over what the blocks of that took alone."""
    longest: dict[Target, tuple[tuple[int, ...], float]] = {}
    for (target, blocks), whole_s in workshop.stretches.items():
        known = costs.seconds.get(target, {})
        if len(blocks) > len(longest.get(target, ((), 0.0))[0]) and known.keys() >= set(blocks):
            longest[target] = blocks, whole_s
    return _factors(workshop, costs, {target: [stretch] for target, stretch in longest.items()})


def _corrected(
    workshop: Workshop, proposal: Proposal, costs: Costs, before: Mapping[Target, float]
) -> dict[Target, float]:
    """For each target: what its pieces took over what their blocks took alone."""
    pieces: defaultdict[Target, list[tuple[Sequence[int], float]]] = defaultdict(list)
    for piece, row in zip(proposal.pieces, proposal.rows, strict=True):
        if piece.target in costs.seconds:
            pieces[piece.target].append((piece.blocks, seconds(row)))
    return {**before, **_factors(workshop, costs, pieces)}


def _factors(
    workshop: Workshop, costs: Costs, stretches: Mapping[Target, Sequence[tuple[Sequence[int], float]]]
) -> dict[Target, float]:
    """For each target: time of its stretches over that of their blocks, calls and borders left out of both."""
    factors = {}
    overheads = _overheads(workshop, costs)
    for target, pieces in stretches.items():
        overhead = overheads[target]
        whole = sum(max(0.0, time_s - overhead.of(flow_bytes(workshop, blocks))) for blocks, time_s in pieces)
        parts = sum(net_s(workshop, costs, target, overhead, number) for blocks, _ in pieces for number in blocks)
        if parts > 0:
            factors[target] = max(0.05, whole / parts)
    return factors


def measured(workshop: Workshop, placement: Placement, cause: str) -> list[Proposal]:
    """The placement in pieces, each asked for as one segment; none when it is no split, or a piece is not to be had.

    The second proposal has the costliest piece with its second best number of threads: alone they are timed with the
    caches to themselves, and the race end to end decides.
    """
    try:
        pieces = pieces_of(workshop, placement)
    except Infeasible as error:
        _log.info("a placement was dropped: %s", error.message)
        return []
    if len(pieces) < 2:
        return []
    found: list[list[Row]] = []
    for number, piece in enumerate(pieces, 1):
        workshop.say(f"measuring segment {number} of {len(pieces)} on {piece.target}")
        rows = workshop.with_threads(piece.blocks, piece.target)
        if rows[0].outcome != "ok":
            workshop.note(_blame(workshop, number, piece, rows[0]))
            return []
        found.append(rows)
    best = [rows[0] for rows in found]
    costliest = max(range(len(found)), key=lambda number: seconds(best[number]))
    choices = [best]
    if len(found[costliest]) > 1:
        choices.append([*best[:costliest], found[costliest][1], *best[costliest + 1 :]])
    return [
        Proposal(
            tuple(Piece(row.target, piece.blocks) for piece, row in zip(pieces, rows, strict=True)), tuple(rows),
            _predicted(workshop, rows), cause,
        )
        for rows in choices
    ]  # fmt: skip


def _predicted(workshop: Workshop, rows: Sequence[Row]) -> float:
    """Of a chain of segments: their sum for one request, the most loaded device for throughput."""
    load: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        load[row.target.device] += workshop.price(row)
    return sum(load.values()) if workshop.objective == "latency" else max(load.values())


def short(name: str) -> str:
    """A name for people: TFLite's converter joins those of all that it fused."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _blame(workshop: Workshop, number: int, piece: Piece, row: Row) -> str:
    """Who is at fault when a segment is wrong or refused; a block that is wrong by itself goes into quarantine."""
    first, last = (short(workshop.blocks[end].id) for end in (piece.blocks[0], piece.blocks[-1]))
    text = f"a split was dropped: its segment {number} ({first!r} to {last!r}) on {piece.target} is {row.outcome}: "
    if row.outcome != "wrong" or row.reason.startswith("in quarantine"):
        return text + row.reason
    for block in piece.blocks:
        alone = workshop.ask([block], piece.target)
        if alone.outcome == "wrong":
            workshop.convict(block, alone)
            return f"{text}block {short(workshop.blocks[block].id)!r}: {alone.reason}"
    return text + row.reason
