"""The best classes of a classifier's answer, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgert.errors import InputError, OptionError
from edgert.graph import Value
from edgert.tensor import Data
from edgert.transforms import RANKED, Dequantise, Labels, Softmax, TopK


@dataclass(frozen=True, slots=True)
class Class:
    """One class of an answer."""

    index: int
    label: str
    """Its name, or 'class N' without labels."""
    score: float


def read_labels(path: Path) -> tuple[str, ...]:
    """Names of the classes, from a JSON list or one a line (empty lines at the end do not count).

    Raises:
        InputError: the file is missing or is no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            return tuple(str(name) for name in json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"labels file {path} cannot be read: {error}.", "Give one name a line, or a JSON list."
        ) from error
    return tuple(line.strip() for line in text.rstrip().splitlines())


def best_classes(
    outputs: Mapping[str, Data], values: Sequence[Value], labels: Sequence[str] | None, k: int, *, softmax: bool
) -> list[Class]:
    """The k best classes, best first.

    Raises:
        OptionError: no output has one score a class, or there are not as many labels.
    """
    name, scores = _scores(outputs)
    quantization = next((value.quantization for value in values if value.name == name), None)
    if quantization is not None and scores.dtype.kind in "iu":
        scores = Dequantise(quantization)(scores)
    if softmax:
        scores = Softmax()(scores)
    if labels is not None and len(labels) != len(scores):
        raise OptionError(
            f"there are {len(labels)} labels, output {name!r} has {len(scores)} classes.",
            "Use the labels of this model.",
        )
    ranked = TopK(k)(scores)
    names = [f"class {item['index']}" for item in ranked] if labels is None else Labels(tuple(labels))(ranked)
    return [
        Class(int(item["index"]), str(label), float(item["score"])) for item, label in zip(ranked, names, strict=True)
    ]


def _scores(outputs: Mapping[str, Data]) -> tuple[str, np.ndarray[tuple[int], np.dtype[np.generic]]]:
    """The first output that is a row of numbers (axes of 1 aside)."""
    for name, data in outputs.items():
        if isinstance(data, np.ndarray) and data.dtype.kind in "iuf" and data.dtype != RANKED:
            row = data.reshape(-1)
            if len(row) > 1 and max(data.shape) == len(row):
                return name, row
    shapes = ", ".join(f"{name} {getattr(data, 'shape', '')}" for name, data in outputs.items())
    raise OptionError(f"no output is a row of class scores: {shapes}.", "Leave out --labels and --top-k.")
