"""What differs between two plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from edgert.plan import Plan
from edgert.profile import Row
from edgert.units import size_text, time_text

__all__ = ["Change", "compare"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that two plans say differently."""

    what: str
    """Of 'model', 'machine', 'version', 'wish', 'target', 'node', 'transfer', 'time', 'check', 'fallback',
    'candidate', with the name of the thing where there are several."""
    before: str
    """For people; '' when the first plan has nothing of the kind."""
    after: str


def compare(before: Plan, after: Plan) -> tuple[Change, ...]:
    """Everything that differs: model, machine, versions, wish, then placement, times and checks, then candidates.

    Times are always told when both were measured and differ: that they differ says nothing of their noise.
    """
    return tuple(change for part in (_grounds, _placement, _costs, _candidates) for change in part(before, after))


def _differ(what: str, before: object, after: object) -> Iterator[Change]:
    if before != after:
        yield Change(what, str(before), str(after))


def _grounds(before: Plan, after: Plan) -> Iterator[Change]:
    yield from _differ("model", before.model[:16], after.model[:16])
    yield from _differ("machine", before.machine, after.machine)
    for name in sorted({*before.versions, *after.versions}):
        yield from _differ(f"version {name}", before.versions.get(name, ""), after.versions.get(name, ""))
    for name in ("objective", "precision", "own_precision", "format"):
        yield from _differ(f"wish {name}" if name in ("objective", "precision") else f"model {name}",
                           getattr(before, name), getattr(after, name))  # fmt: skip


def _placement(before: Plan, after: Plan) -> Iterator[Change]:
    targets = [", ".join(map(str, plan.targets)) for plan in (before, after)]
    yield from _differ("target", *targets)
    moved: dict[tuple[str, str], list[str]] = {}
    places, others = _places(before), _places(after)
    for name in dict.fromkeys((*places, *others)):
        # A plan of one segment names no nodes: they are all there.
        move = places.get(name, places.get("", "")), others.get(name, others.get("", ""))
        if name and move[0] != move[1]:
            moved.setdefault(move, []).append(name)
    for move, names in moved.items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        yield Change(f"node {len(names)} ({shown})", *move)
    yield from _differ("segments", len(before.segments), len(after.segments))
    yield from _differ("instances", len(before.instances), len(after.instances))
    yield from _differ("transfer", _transfers(before), _transfers(after))


def _places(plan: Plan) -> dict[str, str]:
    return {name: str(segment.target) for segment in plan.segments for name in segment.nodes or ("",)}


def _transfers(plan: Plan) -> str:
    if not plan.transfers:
        return "none"
    return f"{len(plan.transfers)}, {size_text(sum(transfer.size_bytes for transfer in plan.transfers))}"


def _costs(before: Plan, after: Plan) -> Iterator[Change]:
    for what, one, other in (
        ("measured", before.measured_s, after.measured_s), ("predicted", before.predicted_s, after.predicted_s),
    ):  # fmt: skip
        if one != other:
            yield Change(f"time {what}", time_text(one), time_text(other) + _ratio(one, other))
    if before.items_per_s != after.items_per_s:
        yield Change("items/s", f"{before.items_per_s:.1f}", f"{after.items_per_s:.1f}")
    yield from _differ("check", _check(before), _check(after))
    fallbacks = [", ".join(map(str, plan.fallbacks)) or "none" for plan in (before, after)]
    yield from _differ("fallback", *fallbacks)


def _check(plan: Plan) -> str:
    check = plan.verification
    return f"{'verified' if check.verified else 'not verified'}, {check.reference or 'no reference'}"


def _ratio(before_s: float, after_s: float) -> str:
    return f" ({after_s / before_s:.2f}x)" if before_s > 0 and after_s > 0 else ""


def _candidates(before: Plan, after: Plan) -> Iterator[Change]:
    rows, others = ({str(row.target): row for row in plan.candidates} for plan in (before, after))
    for target in dict.fromkeys((*rows, *others)):
        one, other = rows.get(target), others.get(target)
        if (one and one.outcome) != (other and other.outcome):
            yield Change(f"candidate {target}", _row(one), _row(other))
        elif one and other and one.timing and other.timing and one.timing != other.timing:
            ratio = _ratio(one.timing.p50_s, other.timing.p50_s)
            yield Change(f"candidate {target}", time_text(one.timing.p50_s), time_text(other.timing.p50_s) + ratio)


def _row(row: Row | None) -> str:
    if row is None:
        return "not considered"
    time = f" {time_text(row.timing.p50_s)}" if row.timing else ""
    return f"{row.outcome}{time}{f': {row.reason}' if row.reason else ''}"


def to_json(changes: tuple[Change, ...]) -> list[Mapping[str, str]]:
    """JSON-able form."""
    return [asdict(change) for change in changes]
