"""Whether data that was read has the types that its dataclass promises: annotations, checked at run time.

For files that others may have written. `from_json` builds the objects; a number where a name should be would then
surface far from its cause.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check(thing: object, kind: Any = None, where: str = "") -> None:
    """Check a dataclass, and all in it, against its annotations.

    Args:
        thing: what was read.
        kind: an annotation: a dataclass, str, bool, int, float (which takes int), None, Any, Literal, a union,
            `tuple[X, ...]`, `tuple[X, Y]` or `Mapping[K, V]`; else the type of `thing`.
        where: path to it, for the message.

    Raises:
        ValueError: something has another type; names its place.
        TypeError: `kind` is an annotation of another sort.
    """
    kind = type(thing) if kind is None else kind
    origin = get_origin(kind)
    if kind is Any:
        return
    if origin in (Union, types.UnionType):
        _check_union(thing, get_args(kind), where)
    elif origin is Literal:
        _require(isinstance(thing, str) and thing in get_args(kind), thing, kind, where)
    elif origin is tuple:
        _check_tuple(thing, get_args(kind), where)
    elif origin is not None and issubclass(origin, Mapping):
        _require(isinstance(thing, Mapping), thing, kind, where)
        assert isinstance(thing, Mapping)
        for key, value in thing.items():
            check(key, get_args(kind)[0], where)
            check(value, get_args(kind)[1], f"{where}[{key!r}]")
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        _require(type(thing) is kind, thing, kind, where)
        for name, hint in _hints(kind).items():
            check(getattr(thing, name), hint, f"{where}.{name}" if where else name)
    else:
        _check_plain(thing, kind, where)


def _check_union(thing: object, kinds: Iterable[Any], where: str) -> None:
    reasons = []
    for kind in kinds:
        try:
            check(thing, kind, where)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return
    raise ValueError(reasons[0])


def _check_tuple(thing: object, kinds: tuple[Any, ...], where: str) -> None:
    _require(isinstance(thing, tuple), thing, tuple, where)
    assert isinstance(thing, tuple)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(thing)
    _require(len(kinds) == len(thing), thing, f"{len(kinds)} items", where)
    for number, (item, kind) in enumerate(zip(thing, kinds, strict=True)):
        check(item, kind, f"{where}[{number}]")


def _check_plain(thing: object, kind: Any, where: str) -> None:
    if kind is type(None):
        fits = thing is None
    elif kind is float:
        fits = isinstance(thing, int | float) and not isinstance(thing, bool)
    elif kind in (str, int, bool):
        fits = type(thing) is kind
    else:
        raise TypeError(f"{where}: annotation {kind!r} is of no sort that can be checked")
    _require(fits, thing, kind, where)
    if isinstance(thing, str):
        thing.encode()  # raises UnicodeEncodeError, a ValueError, for half of a surrogate pair


def _require(fits: bool, thing: object, kind: Any, where: str) -> None:
    if not fits:
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        raise ValueError(f"{where or 'it'} is {thing!r:.60}, no {wanted}")


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    hints = get_type_hints(kind)
    return {name: hints[name] for name in names}
