"""The table of blocks: what each took, what it would take elsewhere, and the op whose support would help most."""

from __future__ import annotations

import dataclasses

from edgert.partitioner.explain_blocks import block_lines, stakes
from edgert.plan import Instance, PlacedBlock, Plan, Segment
from edgert.profile import Target

FAST, SLOW = Target("fast", "gpu:0", "f32"), Target("slow", "cpu:0", "f32", 1)


def plan_of(*blocks):
    return Plan(
        "m" * 64, "f" * 16, {}, "latency", "own", "onnx", "f32", (), (),
        (Segment(FAST, ("a",)), Segment(SLOW, ("b",))), (Instance(0), Instance(1)), blocks=blocks,
    )  # fmt: skip


def block(name, segment=1, ops=("Relu",), alone=None, refused=None):
    return PlacedBlock(name, ops, len(ops), segment, "", 1e-3, alone or {str(SLOW): 2e-3}, refused or {})


def test_no_blocks_no_table():
    assert list(block_lines(plan_of())) == []


def test_each_block_has_a_row_with_its_times_and_every_other_way():
    rows = list(block_lines(plan_of(
        block("a", 0, alone={str(FAST): 1e-3, str(SLOW): 3e-3}),
        block("b", ops=("Tanh", "Det"), refused={str(FAST): "refused: no kernel for Det"}),
        block("c", alone={str(SLOW): 2e-3, str(FAST): 1e-3}),
        block("d", refused={str(FAST): "wrong: off by 3"}),
    )))  # fmt: skip
    assert [row.split()[:2] for row in rows] == [["block", "ops"], ["a", "Relu"], ["b", "Tanh+Det"], ["c", "Relu"],
                                                 ["d", "Relu"]]  # fmt: skip
    own = "1: fast@gpu:0/f32 1.00 ms 1.00 ms"
    instead = "slow@cpu:0/f32/1t: 3.00 ms alone, 3.00x: would have to be faster"
    assert " ".join(rows[1].split()) == f"a Relu {own} {instead}"
    assert rows[2].endswith("refused: no kernel for Det; its library would have to take it")
    assert "fast@gpu:0/f32: 1.00 ms alone, 0.50x: a call and the way there" in rows[3]
    assert rows[4].endswith("wrong: off by 3; its numbers would have to be right")


def test_a_long_table_says_where_the_rest_is():
    rows = list(block_lines(plan_of(*(block(f"n{number}") for number in range(450)))))
    assert len(rows) == 402
    assert rows[-1] == "and 50 more blocks (--json has them all)"


def test_support_helps_most_where_most_time_is_spent():
    refused = {str(FAST): "refused: no kernel for Det"}
    other = {str(FAST): "refused: cannot"}
    found = stakes(plan_of(
        block("a", ops=("Conv", "Det"), refused=refused), block("b", ops=("Det",), refused=refused),
        block("c", ops=("Sin", "Cos"), refused=other, alone={str(SLOW): 9e-3}), block("d", refused={"x": "wrong: off"}),
    ))  # fmt: skip
    assert found == (("Sin+Cos", 1, (FAST,), 9e-3), ("Det", 2, (FAST,), 4e-3))


def test_a_block_that_was_not_timed_counts_nothing():
    row = dataclasses.replace(block("a", refused={str(FAST): "refused: no"}), alone_s={}, predicted_s=0.0)
    assert stakes(plan_of(row))[0][3] == 0.0
    lines = list(block_lines(plan_of(row)))
    assert lines[1].split()[4:6] == ["-", "-"]
    assert lines[2].startswith("'-': not timed")


def test_a_reason_does_not_name_the_target_twice():
    reason = f"refused: {FAST} refuses the model: -- no rule for Det"
    row = list(block_lines(plan_of(block("a", refused={str(FAST): reason}))))[1]
    assert row.endswith(f"{FAST}: refused: no rule for Det; its library would have to take it")
