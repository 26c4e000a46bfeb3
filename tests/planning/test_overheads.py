"""What calls and borders cost, told from stretches of blocks that were timed together."""

from __future__ import annotations

import itertools

import pytest
from onnx import TensorProto, helper, save

from edgert.devices.backend import Source
from edgert.execution.segments import Parts
from edgert.formats import open_model
from edgert.partitioner.blocks import blocks_of
from edgert.plan import Tolerance
from edgert.planning.overheads import border_bytes, flow_bytes, overhead_of, probe_pairs
from edgert.planning.quarantine import Quarantine
from edgert.planning.trials import Course
from edgert.planning.workshop import Workshop
from edgert.profile import Row, Target, Timing

SIZES = (1, 4096, 4, 1024, 16, 256, 64, 1)
"""Elements of the values along a chain of Resize nodes: blocks of their own, with borders of very different sizes."""
TARGET = Target("simulated", "npu:0", "f32")
CALL_S, BYTE_S = 2e-4, 3e-8


@pytest.fixture
def workshop(tmp_path, machine_of):
    nodes = [
        helper.make_node("Expand" if after > before else "ReduceMax", [f"v{n}", f"s{n}"], [f"v{n + 1}"], f"node{n}")
        for n, (before, after) in enumerate(itertools.pairwise(SIZES))
    ]
    for number, node in enumerate(nodes):
        if node.op_type == "ReduceMax":
            del node.input[1:]
            node.attribute.append(helper.make_attribute("keepdims", 1))
        node.output[0] = f"v{number + 1}"
    values = [helper.make_tensor_value_info(f"v{n}", TensorProto.FLOAT, (1, size)) for n, size in enumerate(SIZES)]
    shapes = [helper.make_tensor(f"s{n}", TensorProto.INT64, [2], [1, SIZES[n + 1]]) for n in range(len(nodes))]
    graph = helper.make_graph(nodes, "chain", values[:1], values[-1:], shapes, value_info=values[1:-1])
    path = tmp_path / "chain.onnx"
    save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)
    file = open_model(path)
    source = Source(path, "onnx", file.graph.inputs, file.graph.outputs, "f32")
    machine = machine_of("onnxruntime")
    course = Course(source, machine, [], tmp_path, 0.0, 0.0)
    return Workshop(
        file, blocks_of(file.graph), course, Tolerance(), Parts(source, tmp_path / "parts", lambda: file),
        Quarantine(None, machine), lambda target: pytest.fail(f"{target} was asked"), lambda target: [target],
        lambda message: None, deadline_s=float("inf"),
    )  # fmt: skip


def true_s(workshop, blocks):
    """A call, bytes at the borders, and 1 ms a block."""
    return CALL_S + BYTE_S * border_bytes(workshop, blocks) + 1e-3 * len(blocks)


def test_a_call_and_a_byte_are_told_apart(workshop):
    alone = {number: true_s(workshop, [number]) for number in range(len(workshop.blocks))}
    for low in range(0, len(workshop.blocks) - 1, 2):
        workshop.stretches[TARGET, (low, low + 1)] = true_s(workshop, [low, low + 1])
    workshop.stretches[TARGET, tuple(alone)] = true_s(workshop, tuple(alone))
    found = overhead_of(workshop, TARGET, alone)
    assert found.call_s == pytest.approx(CALL_S, rel=1e-6)
    assert found.byte_s == pytest.approx(BYTE_S, rel=1e-6)
    assert found.of(100) == pytest.approx(CALL_S + 100 * BYTE_S)


def test_without_a_stretch_a_call_takes_as_long_as_the_shortest_block(workshop):
    found = overhead_of(workshop, TARGET, {0: 2e-3, 1: 1e-3})
    assert (found.call_s, found.byte_s) == (1e-3, 0.0)


def test_stretches_that_save_nothing_make_calls_free(workshop):
    alone = dict.fromkeys(range(len(workshop.blocks)), 1e-3)
    workshop.stretches[TARGET, tuple(alone)] = 1e-3 * len(alone) + 1e-4
    found = overhead_of(workshop, TARGET, alone)
    assert (found.call_s, found.byte_s) == (0.0, 0.0)


def test_what_the_model_takes_and_gives_crosses_no_border_between_blocks(workshop):
    last = len(workshop.blocks) - 1
    assert border_bytes(workshop, [0]) - flow_bytes(workshop, [0]) == 4 * SIZES[0]
    assert border_bytes(workshop, [last]) - flow_bytes(workshop, [last]) == 4 * SIZES[-1]
    assert flow_bytes(workshop, range(last + 1)) == 0


def test_pairs_with_small_and_with_large_borders_are_timed(workshop, monkeypatch):
    asked = []

    def ask(blocks, target):
        asked.append(tuple(blocks))
        return Row(target, "ok", "", Timing(1e-3, 1e-3, 1e-3, 1, 1))

    monkeypatch.setattr(workshop, "ask", ask)
    probe_pairs(workshop, TARGET, dict.fromkeys(range(len(workshop.blocks)), 1e-3))
    saved = {pair: sum(border_bytes(workshop, [n]) for n in pair) - border_bytes(workshop, pair) for pair in asked}
    assert min(saved.values()) == 8 * min(SIZES[1:-1])
    assert max(saved.values()) == 8 * max(SIZES)
    assert all(high == low + 1 for low, high in asked)
