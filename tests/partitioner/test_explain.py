"""Explanations: the cause of each choice, and what would have to change for another."""

from __future__ import annotations

import math

import pytest

from edgert.partitioner.explain import Known, explain, most_wanted
from edgert.profile import OutputError
from tests.partitioner.pictures import CPU, GPU, chain, graph_of, plan_of, row

BODY = graph_of([[], [0], [1]], ["Conv", "Relu", "StringNormalizer"])


def plan_with(*rows, **fields):
    return plan_of(BODY, candidates=(row(CPU, p50_s=0.004), *rows), **fields)


def test_the_cause_is_the_race():
    text = explain(plan_with(row("openvino@cpu:0/f32/2t", p50_s=0.006)), BODY)
    assert "fastest of 2 that are right; next is openvino@cpu:0/f32/2t, 1.50x the time" in text


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (row("openvino@cpu:0/f32/2t", p50_s=0.006), "6.00 ms, 1.50x the time; wins below 4.00 ms"),
        (row(GPU, "refused", reason="no StringNormalizer"), "refused: no StringNormalizer; its library would have to"),
        (row(GPU, "wrong", reason="far off", errors=(OutputError("y", 0.2, 0, 10.0, True),)), "by --tolerance 0.21"),
        (row(GPU, "wrong", reason="NaN", errors=(OutputError("y", math.inf, 0, 0, True),)), "no tolerance admits it"),
        (row(GPU, "untried", reason="the budget ran out"), "untried: the budget ran out"),
        (row(GPU, "crashed", reason="signal 11"), "another version is tried afresh"),
    ],
)
def test_each_other_way_says_what_would_have_to_change(other, words):
    assert words in explain(plan_with(other), BODY)


def test_thread_counts_of_one_way_are_one_line():
    rows = [row(f"openvino@cpu:0/f32/{threads}t", p50_s=0.006 * threads) for threads in (1, 2, 4)]
    text = explain(plan_with(*rows), BODY)
    assert text.count("wins below") == 1
    assert "openvino@cpu:0/f32/1t: 6.00 ms" in text


def test_the_op_with_most_time_at_stake_is_wanted_first():
    graph = graph_of([[], [0], [1], [2]], ["Conv", "Rare", "Conv", "Odd"])
    plan = plan_of(graph, (2,), (CPU, GPU))
    known = (
        Known((row(GPU, "refused", reason="cannot convert op 'Rare'"),), measured_s=0.001),
        Known((row(CPU, "refused", reason="x::Odd(1) is not implemented"),), measured_s=0.003),
    )
    wanted = most_wanted(graph, plan, known)
    assert [(each.op, each.nodes, each.targets, each.stake_s) for each in wanted] == [
        ("Odd", 1, (CPU,), 0.003),
        ("Rare", 1, (GPU,), 0.001),
    ]
    assert "most wanted support for Odd (1 node)" in explain(plan, graph, known)


def test_a_refusal_that_names_a_node_or_a_value_wants_its_op():
    for reason in ("'v2' is a string", "node 'n2' is not known"):
        plan = plan_with(row(GPU, "refused", reason=reason))
        assert [each.op for each in most_wanted(BODY, plan, (Known(),))] == ["StringNormalizer"]


def test_a_split_is_held_against_the_best_whole():
    plan = plan_of(BODY, (2,), (GPU, CPU), candidates=(row(CPU, p50_s=0.010),), measured_s=0.004)
    assert f"not split   {CPU} takes 10.0 ms, 2.50x the time of this plan" in explain(plan, BODY)


def test_a_word_of_a_sentence_is_no_op():
    graph = graph_of([[], [0]], ["If", "Add"])
    plan = plan_of(graph, candidates=(row(GPU, "refused", reason="If it fails, Add memory"),))
    assert most_wanted(graph, plan, (Known(plan.candidates),)) == ()
    plan = plan_of(graph, candidates=(row(GPU, "refused", reason="no kernel for 'Add'"),))
    assert [each.op for each in most_wanted(graph, plan, (Known(plan.candidates),))] == ["Add"]


def test_segments_tell_predicted_and_measured_time_and_what_they_hand_on():
    graph = chain(6)
    plan = plan_of(graph, (2,), (CPU, GPU))
    text = explain(plan, graph, (Known(predicted_s=0.002, measured_s=0.0021), Known()))
    assert "2.10 ms measured, 2.00 ms predicted" in text
    assert "1 value, 32 B, to segment 2" in text
    assert "segment 2 of 2: openvino@gpu:0/f16" in text
