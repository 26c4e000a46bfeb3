"""Settings that callers choose, checked before anything is done with them: whatever makes no sense is an `OptionError`
that names the setting, never a TypeError from somewhere inside.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from edgert.errors import OptionError


def number(name: str, value: Any, remedy: str, fits: Callable[[float], bool] = lambda value: value >= 0) -> float:
    """The setting as a float.

    Args:
        name: of the setting, as the caller wrote it.
        value: what the caller passed: any real number, numpy's too, that is not NaN.
        remedy: what to pass.
        fits: whether the number makes sense; by default zero and more do.

    Raises:
        OptionError: it is no such number.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or math.isnan(value) or not fits(float(value)):
        raise OptionError(f"{name}={_shown(value)} is no such number.", remedy)
    return float(value)


def seconds(name: str, value: Any) -> float:
    """A number of seconds, 0 or more and finite. Raises OptionError."""
    return number(name, value, "Pass seconds, 0 or more.", lambda value: 0 <= value < math.inf)


def one_of(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of some words. Raises OptionError."""
    if not isinstance(value, str) or value not in allowed:
        words = ", ".join(map(repr, allowed))
        raise OptionError(f"{name} {_shown(value)} is unknown.", f"Use one of {words}.")
    return str(value)


def instance(name: str, value: Any, kind: Any, remedy: str) -> None:
    """Refuse what is neither None nor of a class. Raises OptionError."""
    if value is not None and not isinstance(value, kind):
        raise OptionError(f"{name}={_shown(value)} makes no sense.", f"Pass {remedy}, or None.")


def is_list(value: Any) -> bool:
    """Whether it is a list, a tuple or another sequence, and no text: what may be gone through twice."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def path_of(name: str, value: Any) -> Path:
    """The path of a file or folder, absolute, with a leading ~ resolved; text, bytes or anything that is `os.PathLike`.

    Raises:
        OptionError: it is none of these, holds a NUL, or names a home that is not known.
    """
    try:
        text = os.fsdecode(value)
        if "\0" not in text:
            return Path(text).expanduser().absolute()
        reason = "it holds a NUL"
    except (TypeError, RuntimeError) as error:  # RuntimeError: no home
        reason = str(error)
    raise OptionError(f"{name}={_shown(value)} is no path: {reason}.", "Pass text or a pathlib.Path.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
