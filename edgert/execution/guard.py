"""What must hold before a model comes into memory, so that a box degrades before its kernel kills.

| question | call |
|---|---|
| must the model take turns, and within what? | `limit_for` |
| does a remembered plan still fit beside what this process holds today? | `has_room` |
"""

from __future__ import annotations

import logging
from pathlib import Path

from edgert import formats
from edgert.devices import memory
from edgert.errors import OptionError
from edgert.plan import Plan

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
        if asked_bytes <= 0:
            raise OptionError(f"memory_limit_bytes={asked_bytes} is no limit.", "Pass a positive number, or None.")
        return asked_bytes
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
