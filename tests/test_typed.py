"""Data that was read has the types that its dataclass promises, or is refused with the place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from edgert import typed
from edgert.devices.probe import glance


@dataclass(frozen=True, slots=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, slots=True)
class Outer:
    name: str = "x"
    share: float = 0.5
    on: bool = True
    kind: Literal["a", "b"] = "a"
    shape: tuple[int | str, ...] | None = (1, "N")
    pair: tuple[int, str] = (1, "x")
    inner: tuple[Inner, ...] = (Inner(),)
    counts: Mapping[str, int] = field(default_factory=dict)
    anything: Any = None


@pytest.mark.parametrize(
    "fields", [{}, {"share": 1}, {"shape": None}, {"shape": ()}, {"counts": {"a": 1}}, {"anything": [object]}], ids=str
)
def test_what_fits_passes(fields):
    typed.check(Outer(**fields))


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"name": 1}, "name"),
        ({"name": None}, "name"),
        ({"name": "\ud800"}, "surrogates"),
        ({"share": "0.5"}, "share"),
        ({"share": True}, "share"),
        ({"on": 1}, "on"),
        ({"kind": "c"}, "kind"),
        ({"kind": ["a"]}, "kind"),
        ({"shape": [1, 2]}, "shape"),
        ({"shape": (1, None)}, r"shape\[1\]"),
        ({"shape": (True,)}, r"shape\[0\]"),
        ({"pair": (1,)}, "pair"),
        ({"pair": ("x", 1)}, r"pair\[0\]"),
        ({"inner": (Inner("big"),)}, r"inner\[0\]\.size"),
        ({"inner": ({"size": 1},)}, r"inner\[0\]"),
        ({"counts": {1: 1}}, "counts"),
        ({"counts": {"a": 0.5}}, r"counts\['a'\]"),
        ({"counts": 3}, "counts"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(fields, place):
    with pytest.raises(ValueError, match=place):
        typed.check(Outer(**fields))


def test_an_annotation_that_cannot_be_checked_is_a_fault_of_the_program():
    with pytest.raises(TypeError, match="no sort"):
        typed.check([1], list)


def test_what_edgert_makes_itself_passes():
    typed.check(glance())
