"""What a result looks like: for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape

from edgert.cli.classes import Class
from edgert.cli.views import receipt_line, table
from edgert.plan import Receipt
from edgert.tensor import Data, dtype_of, shape_text
from edgert.units import three_digits

MOST_VALUES = 1000
"""Larger outputs appear in JSON by their summary alone."""
_BAR = 30
_MOST_TEXTS = 8
"""Of one output that people are shown; JSON has more of them, and whole."""
_LONGEST_TEXT = 60


def view(
    outputs: Mapping[str, Data], receipt: Receipt, inputs: Sequence[str], top: Sequence[Class] | None
) -> Iterator[RenderableType]:
    """Inputs, outputs with the beginning of the texts and maps in them, best classes, receipt."""
    for line in inputs:
        yield f"[dim]input[/]    {escape(line)}"
    made = table("output", "dtype", "shape", "least", "mean", "largest", right=("least", "mean", "largest"))
    for name, data in outputs.items():
        about = summary(data)
        made.add_row(f"[bold]{escape(name)}[/]", about["dtype"], about["shape_text"],
                     *(_number(about[key]) for key in ("min", "mean", "max")))  # fmt: skip
    yield made
    for name, data in outputs.items():
        if shown := _texts(data):
            yield f"[dim]text[/]     [bold]{escape(name)}[/]: {escape(shown)}"
    if top is not None:
        yield classes_table(top)
    yield receipt_line(receipt)


def classes_table(top: Sequence[Class]) -> RenderableType:
    """Best classes with bars; the longest bar is the best."""
    made = table("", "class", "score", " ", right=("", "score"))
    best = max((each.score for each in top), default=0.0)
    for each in top:
        length = round(_BAR * each.score / best) if best > 0 and each.score > 0 else 0
        made.add_row(str(each.index), f"[bold]{escape(each.label)}[/]", f"{each.score:.4g}", f"[cyan]{'━' * length}[/]")
    return made


def document(
    outputs: Mapping[str, Data], receipt: Receipt, inputs: Sequence[str], top: Sequence[Class] | None
) -> dict[str, Any]:
    """The JSON form: `receipt`, `inputs` in words, `outputs` by name, `classes` (or null)."""
    return {
        "receipt": {**asdict(receipt), "targets": [str(target) for target in receipt.targets]},
        "inputs": list(inputs),
        "outputs": {name: _for_json(data) for name, data in outputs.items()},
        "classes": None if top is None else [asdict(each) for each in top],
    }


def summary(data: Data) -> dict[str, Any]:
    """dtype, shape and range of one output; of a sequence or map only what it is."""
    if not isinstance(data, np.ndarray):
        length = "" if data is None else f" of {len(data)}"
        return {"dtype": type(data).__name__, "shape": None, "shape_text": length.strip(), "min": None, "mean": None,
                "max": None}  # fmt: skip
    about: dict[str, Any] = {"dtype": dtype_of(data), "shape": list(data.shape), "shape_text": shape_text(data.shape)}
    if data.size and data.dtype.kind not in "OUSTc":
        real = data.astype(np.float64)
        return {**about, "min": float(real.min()), "mean": float(real.mean()), "max": float(real.max())}
    return {**about, "min": None, "mean": None, "max": None}


def _texts(data: Data) -> str:
    """The first texts and map entries, each shortened, quoted so that nothing in them steers a terminal; '' of numbers
    alone.
    """
    pieces = _pieces(data)
    shown = list(islice(pieces, _MOST_TEXTS))
    more = sum(1 for _ in pieces)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def _pieces(data: Data) -> Iterator[str]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield f"{_quoted(key)}: {_quoted(value)}"
    elif isinstance(data, list):
        for item in data:
            yield from _pieces(item)
    elif isinstance(data, np.ndarray) and data.dtype.kind in "OSUT":
        yield from (_quoted(item) for item in data.flat)


def _quoted(thing: Any) -> str:
    """A text as Python writes it, shortened; a number of a map in four digits; of anything else its form."""
    if isinstance(thing, str | bytes):
        short = thing if len(thing) <= _LONGEST_TEXT else thing[:_LONGEST_TEXT]
        return repr(short) + ("" if short is thing else f"... ({len(thing)} long)")
    if isinstance(thing, np.ndarray) and thing.size != 1:
        return f"{dtype_of(thing)} {shape_text(thing.shape)}"
    item = thing.item() if isinstance(thing, np.ndarray | np.generic) else thing
    return f"{item:.4g}" if isinstance(item, float) else repr(item)


def _for_json(data: Data) -> dict[str, Any]:
    about = {key: value for key, value in summary(data).items() if key != "shape_text"}
    return {**about, "values": _values(data)}


def _values(data: Data) -> Any:
    """The numbers themselves, null where they are too many; complex ones as [real, imaginary]."""
    if isinstance(data, Mapping):
        return {str(key): _values(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_values(item) for item in data]
    if not isinstance(data, np.ndarray):
        return data.item() if isinstance(data, np.generic) else data
    if data.size > MOST_VALUES:
        return None
    if data.dtype.kind == "c":
        return np.stack([data.real, data.imag], axis=-1).tolist()
    return (data if data.dtype.kind in "biufOUS" else data.astype(np.float32)).tolist()


def _number(number: float | None) -> str:
    return (
        "" if number is None else three_digits(number) if 1e-3 <= abs(number) < 1e5 or number == 0 else f"{number:.2e}"
    )
