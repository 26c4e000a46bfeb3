"""The blocks of a plan, one by one: where each runs, what it took, and what would have to change for another choice."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgert.plan import PlacedBlock, Plan
from edgert.profile import Target
from edgert.units import time_text

__all__ = ["block_lines", "stakes"]

_MOST_LINES = 400
"""Blocks that are shown; the plan's JSON has them all."""
_SAYS_WHO = re.compile(r"\S+@\S+ refuses the model: (-- )?")
"""What a backend's refusal begins with; the row names the target already."""
_LONGEST_NAME, _LONGEST_OPS, _LONGEST_REASON = 32, 28, 120


def block_lines(plan: Plan) -> Iterator[str]:
    """A table for people; nothing where the model was not looked at in pieces.

    'alone' is the fastest run of the block by itself, 'predicted' its share of its segment, without the call.
    """
    if not plan.blocks:
        return
    name = max(5, *(len(_short(block.name, _LONGEST_NAME)) for block in plan.blocks))
    ops = max(3, *(len(_ops(block)) for block in plan.blocks))
    where = max(6, *(len(_where(plan, block)) for block in plan.blocks))
    yield f"{'block':<{name}}  {'ops':<{ops}}  {'target':<{where}}  {'alone':>9}  {'predicted':>9}  instead"
    for block in plan.blocks[:_MOST_LINES]:
        first, *others = _instead(plan, block) or [""]
        own = block.alone_s.get(str(plan.segments[block.segment].target), 0.0)
        yield (
            f"{_short(block.name, _LONGEST_NAME):<{name}}  {_ops(block):<{ops}}  {_where(plan, block):<{where}}  "
            f"{time_text(own):>9}  {time_text(block.predicted_s):>9}  {first}"
        ).rstrip()
        yield from (f"{'':<{name + ops + where + 28}}{other}" for other in others)
    if any(str(plan.segments[block.segment].target) not in block.alone_s for block in plan.blocks):
        yield "'-': not timed by itself, for want of time (--budget)"
    if len(plan.blocks) > _MOST_LINES:
        yield f"and {len(plan.blocks) - _MOST_LINES} more blocks (--json has them all)"


def stakes(plan: Plan) -> tuple[tuple[str, int, tuple[Target, ...], float], ...]:
    """(op, nodes, targets that refused blocks for it, seconds at stake), most at stake first.

    At stake is what these blocks take where they run now: no support can win more, but for the way to another target.
    """
    nodes: dict[str, int] = {}
    targets: dict[str, dict[Target, None]] = {}
    seconds: dict[str, float] = {}
    for block in plan.blocks:
        refused = {name: reason for name, reason in block.refused.items() if reason.startswith("refused")}
        own = block.alone_s.get(str(plan.segments[block.segment].target), 0.0)
        for op in {op for reason in refused.values() for op in _blamed(block, reason)}:
            nodes[op] = nodes.get(op, 0) + 1
            seconds[op] = seconds.get(op, 0.0) + own
            targets.setdefault(op, {}).update(
                dict.fromkeys(Target.parse(name) for name, reason in refused.items() if op in _blamed(block, reason))
            )
    ordered = sorted(nodes, key=lambda op: (-seconds[op], -len(targets[op]), op))
    return tuple((op, nodes[op], tuple(targets[op]), seconds[op]) for op in ordered)


def _blamed(block: PlacedBlock, reason: str) -> tuple[str, ...]:
    """The op that a refusal names; all of the block together where it names none of them."""
    named = tuple(op for op in block.ops if re.search(rf"(?<!\w){re.escape(op.rpartition('::')[2])}(?!\w)", reason))
    return named or ("+".join(block.ops),)


def _instead(plan: Plan, block: PlacedBlock) -> list[str]:
    """For each other target: what it takes there, and what would have to change for it to run there."""
    own = str(plan.segments[block.segment].target)
    mine = block.alone_s.get(own, 0.0)
    lines = []
    for target, alone_s in sorted(block.alone_s.items(), key=lambda item: item[1]):
        if target != own:
            lines.append(f"{target}: {time_text(alone_s)} alone, {_change(mine, alone_s)}")
    for target, reason in block.refused.items():
        if target == own:
            continue
        what = _short(_SAYS_WHO.sub("", reason), _LONGEST_REASON)
        if reason.startswith("refused"):
            lines.append(f"{target}: {what}; its library would have to take it")
        elif reason.startswith("wrong"):
            lines.append(f"{target}: {what}; its numbers would have to be right")
        else:
            lines.append(f"{target}: {what}")
    return lines


def _change(mine_s: float, alone_s: float) -> str:
    if not mine_s > 0:
        return "not compared"
    ratio = f"{alone_s / mine_s:.2f}x"
    if alone_s >= mine_s:
        return f"{ratio}: would have to be faster"
    return f"{ratio}: a call and the way there would have to cost less than that saves"


def _where(plan: Plan, block: PlacedBlock) -> str:
    target = str(plan.segments[block.segment].target)
    return f"{block.segment + 1}: {target}" if len(plan.segments) > 1 else target


def _ops(block: PlacedBlock) -> str:
    return _short("+".join(block.ops), _LONGEST_OPS)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
