"""What must hold before a model comes into memory, so that a box degrades before its kernel kills.

| question | call |
|---|---|
| must the model take turns, and within what? | `limit_for` |
| does a remembered plan still fit beside what this process holds today? | `has_room` |
| what of a plan fits into what is left: all, fewer instances, a fallback? | `fitted` |
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

from edgert import formats, options
from edgert.devices import memory
from edgert.errors import NotEnoughMemory
from edgert.plan import Instance, Plan, Segment

_log = logging.getLogger(__name__)
_COPIES = 1.25
"""What the leanest way to hold a model whole takes, times its weights: values and code with it."""
_SHARE = 0.8
"""Of what is left, the part that a model may take: the rest is for whoever else grows."""
_CERTAIN = 4.0
"""A box that has so many times the size of everything beside the model file needs no closer look."""
_BASE_BYTES = 64 << 20
"""What a library takes beside the model."""
_GROWN = 1.1
"""A process that holds so many times what a plan reckoned with has no room for it any more."""
_RUN = 1.1
"""What a prepared target takes once it ran, times what it took when it was prepared."""
_STEPS = 8
"""Limits are rounded down to an eighth of a power of two: today's plan is found again tomorrow."""


def limit_for(model: Path, asked_bytes: int | None, root: Path = Path("/")) -> int:
    """The limit within which to plan: the one asked for, else what is left where that would not hold the model.

    Args:
        model: the model file.
        asked_bytes: for the whole process; None for no wish.
        root: as for `memory.available`.

    Returns:
        Bytes for the whole process; 0 for no limit.

    Raises:
        OptionError: `asked_bytes` is not positive.
        ModelError: the model refers to a file that cannot be read.
    """
    if asked_bytes is not None:
        remedy = "Pass a positive number of bytes, or None."
        return int(options.number("memory_limit_bytes", asked_bytes, remedy, lambda value: 1 <= value < math.inf))
    left = memory.available(root)
    if left is None or _most_bytes(model) * _CERTAIN + _BASE_BYTES <= left.size_bytes:
        return 0
    size_bytes = sum(path.stat().st_size for path in {model, *(path for _, path in formats.companions(model))})
    if size_bytes * _COPIES + _BASE_BYTES <= left.size_bytes:
        return 0
    limit_bytes = rounded(int(memory.resident().now_bytes + _SHARE * left.size_bytes))
    _log.warning(
        "%s has %d bytes, %s has %d left: it will run in turns within %d bytes",
        model.name, size_bytes, left.cause, left.size_bytes, limit_bytes,
    )  # fmt: skip
    return limit_bytes


def has_room(plan: Plan) -> bool:
    """Whether a plan whose segments take turns still fits beside what this process holds; any other does."""
    residency = plan.residency
    if residency is None:
        return True
    now_bytes = memory.resident().now_bytes
    fits = now_bytes <= residency.base_bytes * _GROWN
    if not fits:
        _log.info("plan %s was made beside %d bytes, now there are %d", plan.id, residency.base_bytes, now_bytes)
    return fits


def fitted(plan: Plan, limit_bytes: int = 0, root: Path = Path("/")) -> tuple[Plan, str]:
    """The plan, or as much of it as fits into the memory that is left.

    1. The plan itself where its targets' measured memory fits, or where nobody measured it.
    2. Else with as many instances as fit.
    3. Else the first of its fallbacks that fits.

    Args:
        plan: to be prepared now.
        limit_bytes: for the whole process; 0 for what the box has left alone.
        root: as for `memory.available`.

    Returns:
        The plan to prepare, and why it is another one; '' when it is not.

    Raises:
        NotEnoughMemory: not even a fallback fits; says what is needed, what is left, and how much is missing.
    """
    left = _left(limit_bytes, root)
    if left is None:
        return plan, ""
    if plan.residency is not None:
        return _turns_fitted(plan, left)
    needs = {row.target: int(row.memory_bytes * _RUN) for row in plan.candidates}
    # What was measured is the whole model on each target; a segment holds its part of that.
    need_bytes = sum(needs.get(plan.segments[instance.segment].target, 0) for instance in plan.instances)
    need_bytes //= len(plan.segments)
    if need_bytes <= left.size_bytes:
        return plan, ""
    why = f"{left.cause} has {_mb(left.size_bytes)} left, the plan needs {_mb(need_bytes)}"
    if len(plan.segments) == 1:
        each_bytes = need_bytes // len(plan.instances)
        fit = left.size_bytes // each_bytes
        if fit:
            return _fewer(plan, fit), f"{why}: {fit} of {len(plan.instances)} instances run"
    for number, target in enumerate(plan.fallbacks):
        if 0 < needs.get(target, 0) <= left.size_bytes:
            return _fallback(plan, number), f"{why}: {target}, which needs {_mb(needs[target])}, runs instead"
    least = min(need for need in (need_bytes, *needs.values()) if need)
    raise NotEnoughMemory(
        f"model {plan.model[:12]}: {why}; the least that a target needs is {_mb(least)}: "
        f"{_mb(least - left.size_bytes)} are missing.",
        "Free memory, or give a memory limit: the model is then run in segments.",
        needed_bytes=least, left_bytes=left.size_bytes,
    )  # fmt: skip


def within_reach(root: Path = Path("/")) -> int:
    """A limit for the whole process that leaves something for others, for a plan whose segments take turns."""
    left = memory.available(root)
    return rounded(int(memory.resident().now_bytes + _SHARE * left.size_bytes)) if left else 0


def _left(limit_bytes: int, root: Path) -> memory.Available | None:
    found = [memory.available(root)]
    if limit_bytes:
        found.append(memory.Available(max(0, limit_bytes - memory.resident().now_bytes), "the memory limit"))
    return min((each for each in found if each), key=lambda each: each.size_bytes, default=None)


def _turns_fitted(plan: Plan, left: memory.Available) -> tuple[Plan, str]:
    """A plan in turns keeps to what it measured: it fits or it does not."""
    need_bytes = plan.residency.peak_bytes if plan.residency else 0
    if need_bytes <= left.size_bytes:
        return plan, ""
    raise NotEnoughMemory(
        f"model {plan.model[:12]}: {left.cause} has {_mb(left.size_bytes)} left, its segments in turn need "
        f"{_mb(need_bytes)}, {_mb(need_bytes - left.size_bytes)} more than that.",
        "Free memory, or plan again with a lower memory limit.",
        needed_bytes=need_bytes, left_bytes=left.size_bytes,
    )  # fmt: skip


def _fewer(plan: Plan, count: int) -> Plan:
    note = f"{count} of {len(plan.instances)} instances: the others did not fit into memory"
    return replace(plan, instances=plan.instances[:count], items_per_s=0.0, notes=(*plan.notes, note))


def _fallback(plan: Plan, number: int) -> Plan:
    """The plan of one of the fallbacks, with those after it as its own."""
    target = plan.fallbacks[number]
    names = [tuple(value.name for value in values) for values in (plan.inputs, plan.outputs)]
    row = next(row for row in plan.candidates if row.target == target)
    return replace(
        plan,
        segments=(Segment(target, (), names[0], names[1], cause="the planned targets did not fit into memory"),),
        instances=(Instance(0),), transfers=(), values=(), predicted_s=0.0, items_per_s=0.0,
        measured_s=row.timing.p50_s if row.timing else 0.0, fallbacks=plan.fallbacks[number + 1 :],
        notes=(*plan.notes, f"a fallback of plan {plan.id}, which did not fit into memory"),
    )  # fmt: skip


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def rounded(size_bytes: int) -> int:
    """Down to an eighth of a power of two."""
    step = max(1, (1 << max(0, size_bytes.bit_length() - 1)) // _STEPS)
    return size_bytes // step * step


def _most_bytes(model: Path) -> int:
    """No less than the model with all that it may refer to: every file in its folder, without opening one."""
    try:
        return sum(path.stat().st_size for path in model.parent.iterdir() if path.is_file())
    except OSError:  # the reader will say what is wrong with it
        return 0
