"""Which way to run a model on an ARM core promises most, before anything was measured there.

The order in which ways are tried, and so the one that answers at once with `budget_s=0`. It comes from counting guest
instructions per inference under emulation (cross/icount.json, docs/benchmarks.md): a way stands before another when it
takes fewer on most models of that kind. Counts are no times; whatever is measured on the board overrules them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from edgert.devices.backend import Source
from edgert.graph import Format
from edgert.machine import Device
from edgert.profile import Target

Arithmetic: TypeAlias = Literal["float", "i8", "u8"]
"""Of a model: float; signed INT8, one scale a channel; unsigned INT8, one scale a tensor (the older scheme)."""

ORDER: Mapping[tuple[Format, Arithmetic, bool], tuple[str, ...]] = {  # format, arithmetic, dot product -> ways
    ("onnx", "float", False): ("onnxruntime",),
    ("onnx", "float", True): ("onnxruntime",),
    ("onnx", "i8", False): ("onnxruntime",),
    ("onnx", "i8", True): ("onnxruntime",),
    ("tflite", "float", False): ("litert", "litert+builtin"),
    ("tflite", "float", True): ("litert", "litert+builtin"),
    ("tflite", "i8", False): ("litert", "litert+builtin"),
    ("tflite", "i8", True): ("litert", "litert+builtin"),
    ("tflite", "u8", False): ("litert", "litert+builtin"),
    # XNNPACK's unsigned kernels leave the dot product unused; the builtin ones take 0.54 of their instructions.
    ("tflite", "u8", True): ("litert+builtin", "litert"),
}


def rank(target: Target, source: Source, device: Device) -> int:
    """Place of a target's way in the order, 0 the first; 0 for every target off ARM, last for a way not counted."""
    if device.kind != "cpu" or not {"asimd", "neon"} & set(device.features):
        return 0
    way = f"{target.backend}+{target.variant}" if target.variant else target.backend
    order = ORDER.get((source.format, arithmetic(source), "asimddp" in device.features), ())
    return order.index(way) if way in order else len(order)


def arithmetic(source: Source) -> Arithmetic:
    """What a model computes with: integers are unsigned where an input or output is."""
    if source.precision != "i8":
        return "float"
    return "u8" if any(value.dtype == "uint8" for value in (*source.inputs, *source.outputs)) else "i8"
