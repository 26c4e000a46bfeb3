"""Why a plan is as it is: for each segment the cause, the times, and what would have to change for another choice."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgert.graph import Graph, Node
from edgert.partitioner.explain_blocks import block_lines, stakes
from edgert.partitioner.outline import running_order, segment_of
from edgert.partitioner.scene import weight_bytes
from edgert.plan import Plan, Residency
from edgert.profile import Row, Target
from edgert.units import size_text, time_text

__all__ = ["Known", "Wanted", "explain", "known_of", "most_wanted"]

_ENGLISH = frozenset(
    {"Add", "And", "Cast", "Equal", "Expand", "Greater", "If", "Less", "Loop", "Max", "Mean", "Min", "Mod", "Not", "Or",
     "Range", "Round", "Scan", "Shape", "Sign", "Size", "Split", "Sum", "Unique", "Where"}
)  # fmt: skip
"""Operations whose name may be a word of a sentence: these count only in quotes or behind a domain."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one segment of a plan."""

    rows: tuple[Row, ...] = ()
    """The segment on each target that was considered, the chosen one among them."""
    predicted_s: float = 0.0
    """By the solver, from the costs of its blocks; 0 when nothing was predicted."""
    measured_s: float = 0.0
    """Median of one run of it; 0 when not measured apart from the plan."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An operation that a target would have to take."""

    op: str
    nodes: int
    """How many nodes of the refused segments are of it."""
    targets: tuple[Target, ...]
    """That refused because of it."""
    stake_s: float
    """Time of the segments that they refused, where they run now: no support can win more. 0 when not measured."""


def known_of(plan: Plan) -> tuple[Known, ...]:
    """What a plan itself tells of its segments; its candidates and predictions are for one segment that is all."""
    if len(plan.segments) == 1:
        return (Known(plan.candidates, plan.predicted_s, plan.measured_s),)
    return tuple(Known(measured_s=segment.measured_s) for segment in plan.segments)


def explain(plan: Plan, graph: Graph, known: Sequence[Known] | None = None) -> str:
    """The reasons for people: a paragraph for the plan, one for each segment, the op whose support would help most.

    Args:
        plan: what to explain.
        graph: of the model that the plan is for.
        known: one for each segment; `known_of(plan)` when None.

    Raises:
        OptionError: the plan is not one of this graph.
    """
    known = known_of(plan) if known is None else known
    runs = running_order(segment_of(graph, plan))
    runs += ((),) * (len(plan.segments) - len(runs))
    lines = [*_head(plan), *([plan.residency.text()] if plan.residency else [])]
    for number, run in enumerate(runs):
        lines += ["", f"segment {number + 1} of {len(runs)}: {plan.segments[number].target}"]
        lines += [f"  {what:<9} {text}" for what, text in _segment(plan, graph, number, run, known[number])]
        lines += [f"  in memory {_turn(plan.residency, number)}"] if plan.residency else []
    lines += ["", *block_lines(plan)] if plan.blocks else []
    lines += ["", *_whole_lines(plan), *_wanted_lines(most_wanted(graph, plan, known))]
    lines += [f"falls to    {', '.join(map(str, plan.fallbacks)) or 'nothing: the plan has no fallback'}"]
    lines += [f"note        {note}" for note in plan.notes]
    lines += ["", "candidates, each for the whole model:", *map(_candidate, plan.candidates)] if plan.candidates else []
    return "\n".join(lines)


def _turn(residency: Residency, number: int) -> str:
    """Who is held while a segment runs."""
    size = size_text(residency.weights_bytes[number])
    others = [str(each + 1) for each in residency.held[number] if each != number]
    return f"{size}, beside {', '.join(others)}" if others else f"{size}, alone"


def _candidate(row: Row) -> str:
    time = time_text(row.timing.p50_s) if row.timing else ""
    return f"  {row.target!s:<36} {time:>9}  {row.outcome:<8} {row.reason}".rstrip()


def most_wanted(graph: Graph, plan: Plan, known: Sequence[Known]) -> tuple[Wanted, ...]:
    """Operations that refusals name, the one with most time at stake first, then with most targets.

    Counts refusals of blocks where the model was looked at in pieces; else those of a segment, and those of the whole
    model because of an operation that the segment holds.
    """
    if plan.blocks:
        return tuple(Wanted(*each) for each in stakes(plan))
    runs = running_order(segment_of(graph, plan))
    targets: dict[str, dict[Target, None]] = {}
    segments: dict[str, dict[int, None]] = {}
    for number, run in enumerate(runs):
        nodes = list(_deep(graph.nodes[index] for index in run))
        for row in (*known[number].rows, *plan.candidates):
            for op in _named_ops(nodes, row.reason) if row.outcome == "refused" else ():
                targets.setdefault(op, {})[row.target] = None
                segments.setdefault(op, {})[number] = None
    found = [
        Wanted(
            op,
            sum(node.op == op for number in segments[op] for node in _deep(graph.nodes[i] for i in runs[number])),
            tuple(refusing),
            sum(known[number].measured_s for number in segments[op]),
        )
        for op, refusing in targets.items()
    ]
    return tuple(sorted(found, key=lambda wanted: (-wanted.stake_s, -len(wanted.targets), wanted.op)))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _deep(nodes: Iterator[Node] | Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for body in node.subgraphs:
            yield from _deep(body.nodes)


def _named_ops(nodes: Sequence[Node], reason: str) -> set[str]:
    """Operations that a refusal names, or of whose nodes it names one, or a value that one makes."""
    quoted = set(re.findall(r"""['"`]([^'"`]+)['"`]""", reason))
    ops = {node.op for node in nodes if node.name in quoted or any(name in quoted for name in node.writes)}
    return ops | {op for op in {node.op for node in nodes} if _names(reason, op)}


def _names(reason: str, op: str) -> bool:
    short = re.escape(op.rpartition("::")[2])
    before = r"""['"`:]""" if op in _ENGLISH else r"(?<![A-Za-z0-9_])"
    return re.search(f"{before}{short}(?![A-Za-z0-9_])", reason) is not None


def _head(plan: Plan) -> Iterator[str]:
    count = len(plan.segments)
    speed = f"{time_text(plan.measured_s)} a request" if plan.measured_s else "not timed"
    if plan.items_per_s:
        speed += f", {plan.items_per_s:.0f} items/s with {_count(len(plan.instances), 'instance')}"
    if plan.predicted_s:
        speed += f", {time_text(plan.predicted_s)} predicted"
    yield f"plan {plan.id} for {plan.objective}, precision {plan.precision}: {_count(count, 'segment')}, {speed}"
    check = plan.verification
    yield f"checked     {check.reference or 'no'}{f' ({check.reason})' if check.reason else ''}"
    if check.disputed:
        yield f"disputed    {check.disputed}"


def _segment(plan: Plan, graph: Graph, number: int, run: Sequence[int], known: Known) -> Iterator[tuple[str, str]]:
    segment = plan.segments[number]
    counts = Counter(graph.nodes[node].op for node in run).most_common()
    ops = ", ".join(f"{count} {op}" for op, count in counts[:5]) + (", ..." if len(counts) > 5 else "")
    weights = weight_bytes(graph, run)
    amount = f"{size_text(weights)} of weights" if weights else "no weights"
    yield "holds", f"{_count(len(run), 'node')}{f' ({ops})' if ops else ''}, {amount}"
    for what, names in (("reads", segment.inputs), ("makes", segment.outputs)):
        if names:
            shown = ", ".join(str(graph.values.get(name, name)) for name in names[:4])
            yield what, shown + (f", and {len(names) - 4} more" if len(names) > 4 else "")
    times = [f"{time_text(time_s)} {how}" for time_s, how in
             ((known.measured_s, "measured"), (known.predicted_s, "predicted")) if time_s]  # fmt: skip
    yield "time", ", ".join(times) or "not measured by itself"
    yield "cause", segment.cause or _cause(segment.target, known.rows)
    if segment.errors:
        yield "checked", f"off by at most {max(error.range_fraction for error in segment.errors):.2g} of the range"
    for what, text in zip(("instead", *[""] * len(known.rows)), _others(segment.target, known.rows), strict=False):
        yield what, text
    for transfer in plan.transfers:
        if transfer.source == number:
            size = size_text(transfer.size_bytes)
            yield "hands on", f"{_count(len(transfer.values), 'value')}, {size}, to segment {transfer.sink + 1}"


def _cause(target: Target, rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row.outcome == "ok" and row.timing is not None]
    own = next((row for row in rows if row.target == target), None)
    if own is None or own.timing is None or not timed:
        return (own.reason if own else "") or "chosen by the solver; it was not timed on its own"
    faster = [row for row in timed if _p50(row) < _p50(own)]
    if faster:
        best = min(faster, key=_p50)
        why = own.reason or "the plan as a whole is better so"
        return f"{best.target} takes {time_text(_p50(best))} alone; {why}"
    others = [row for row in timed if row.target != target]
    if not others:
        return "the only one that is right and was timed"
    second = min(others, key=_p50)
    return f"fastest of {len(timed)} that are right; next is {second.target}, {_p50(second) / _p50(own):.2f}x the time"


def _others(target: Target, rows: Sequence[Row]) -> Iterator[str]:
    """Each other way's best row, and what would have to change for it to be chosen."""
    own = next((row for row in rows if row.target == target), None)
    seen: set[tuple[str, ...]] = {_way(target)}
    for row in sorted(rows, key=lambda row: (row.outcome != "ok", _p50(row))):
        if _way(row.target) not in seen:
            seen.add(_way(row.target))
            yield f"{row.target}: {_change(row, own)}"


def _way(target: Target) -> tuple[str, ...]:
    return target.backend, target.variant, target.device, target.precision


def _p50(row: Row) -> float:
    return row.timing.p50_s if row.timing else math.inf


def _change(row: Row, own: Row | None) -> str:
    if row.outcome == "ok" and row.timing and own and own.timing:
        ratio = _p50(row) / _p50(own)
        return f"{time_text(_p50(row))}, {ratio:.2f}x the time; wins below {time_text(_p50(own))}"
    if row.outcome == "wrong":
        return f"wrong numbers: {row.reason}; {_tolerance(row)}"
    after: Mapping[str, str] = {
        "refused": "its library would have to take the segment",
        "crashed": "another version is tried afresh",
        "timeout": "another version is tried afresh",
        "out of memory": "more would have to be free",
        "slow": "its first calls would have to be faster",
        "untried": "",
    }
    return "; ".join(text for text in (f"{row.outcome}: {row.reason}", after.get(row.outcome, "")) if text)


def _tolerance(row: Row) -> str:
    share = max((error.range_fraction for error in row.errors), default=math.inf)
    if any(error.mismatch for error in row.errors) or not math.isfinite(share):
        return "no tolerance admits it"
    return f"it is let in by --tolerance {float(f'{share * 1.05:.2g}'):g} or more"


def _whole_lines(plan: Plan) -> Iterator[str]:
    """What the best plan that does not split would take."""
    timed = [row for row in plan.candidates if row.outcome == "ok" and row.timing]
    if len(plan.segments) > 1 and timed and plan.measured_s:
        best = min(timed, key=_p50)
        # The race's own words hold its paired ratio; that of two medians from different rounds is only the next best.
        words = best.reason or f"{_p50(best) / plan.measured_s:.2f}x the time of this plan"
        yield f"not split   {best.target} takes {time_text(_p50(best))}, {words}"


def _wanted_lines(wanted: Sequence[Wanted]) -> Iterator[str]:
    for number, each in enumerate(wanted[:3]):
        stake = (
            f"; it can win the {time_text(each.stake_s)} of its segments and their transfers, at most"
            if each.stake_s
            else ""
        )
        refusing = ", ".join(map(str, each.targets[:3])) + (", ..." if len(each.targets) > 3 else "")
        head = "most wanted" if not number else "           "
        yield f"{head} support for {each.op} ({_count(each.nodes, 'node')}), for which {refusing} refused{stake}"
