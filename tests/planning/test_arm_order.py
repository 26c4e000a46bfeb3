"""The order of ways on ARM before anything was measured, against the counts that it comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cross import board as boards
from edgert.devices import cpu
from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.graph import Value
from edgert.machine import Reach
from edgert.planning import arm_order
from edgert.planning.candidates import candidates
from edgert.profile import Target

COUNTS = json.loads((Path(boards.__file__).parent / "icount.json").read_text(encoding="utf-8"))
CORES = {False: ("pi3", "pi4"), True: ("pi5",)}
"""Dot product or not -> boards that were counted, each for its kind of core."""
EXAMPLES = {"float": ("f32", "float32"), "i8": ("i8", "int8"), "u8": ("i8", "uint8")}


def source(format, arithmetic):
    precision, dtype = EXAMPLES[arithmetic]
    value = Value("x", dtype, (1, 4))
    return Source(Path(f"model.{format}"), format, (value,), (value,), precision)


def device(name, folder):
    boards.write(boards.overlay(boards.load(name)), folder)
    return cpu.discover(folder)[0]


def arithmetic_of(model):
    return "u8" if "quant" in model else "i8" if "i8" in model or "int8" in model else "float"


@pytest.mark.parametrize("key", [key for key, ways in arm_order.ORDER.items() if len(ways) > 1], ids=str)
def test_each_way_takes_fewer_instructions_than_the_next_on_most_models(key):
    format, arithmetic, dot = key
    fewer = []
    for row, count in COUNTS.items():
        board, model, *way = row.split()
        if board in CORES[dot] and model.endswith(format) and arithmetic_of(model) == arithmetic and len(way) == 1:
            ways = arm_order.ORDER[key]
            later = ways[ways.index(way[0]) + 1 :] if way[0] in ways else ()
            fewer += [count < COUNTS[f"{board} {model} {other}"] for other in later]
    assert fewer
    assert sum(fewer) > len(fewer) / 2


def test_unsigned_int8_starts_with_the_kernels_that_use_the_dot_product(tmp_path):
    pi5 = device("pi5", tmp_path)
    machine = replace(
        glance(), devices=(pi5,), reaches=(Reach("litert", "cpu:0"), Reach("litert", "cpu:0", "builtin")),
    )  # fmt: skip
    firsts = {
        arithmetic: candidates(source("tflite", arithmetic), machine).targets[0].variant for arithmetic in EXAMPLES
    }
    assert firsts == {"float": "", "i8": "", "u8": "builtin"}


def test_off_arm_nothing_is_ranked(tmp_path):
    pi5 = device("pi5", tmp_path)
    way = Target("litert", "cpu:0", "i8", 1, "builtin")
    assert arm_order.rank(way, source("tflite", "i8"), pi5) == 1
    assert arm_order.rank(way, source("tflite", "i8"), replace(pi5, features=("avx2",))) == 0


def test_a_way_that_was_not_counted_comes_last(tmp_path):
    other = Target("openvino", "cpu:0", "i8", 1)
    assert arm_order.rank(other, source("tflite", "i8"), device("pi4", tmp_path)) == 2
