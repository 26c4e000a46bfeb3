"""A quantised .tflite that LiteRT refuses because one operator has no integer kernel: that operator alone in floats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edgert.devices.backend import Source
from edgert.devices.litert import MIXED
from edgert.profile import Row, Target


def mixed(source: Source, rows: Iterable[Row]) -> list[Target]:
    """What to try after the integer kernels alone were refused, or failed as they ran; empty where they were not.

    It is offered nowhere else: a model that has all its kernels gains nothing by it.
    """
    if source.format != "tflite" or source.precision != "i8":
        return []
    refused = [row.target for row in rows if row.outcome == "refused" and row.target.backend == "litert"]
    return [replace(target, variant=MIXED) for target in refused if not target.variant]
