"""Differences between plans."""

from __future__ import annotations

import dataclasses

from edgert.partitioner.compare import compare
from edgert.plan import Verification
from tests.partitioner.pictures import CPU, GPU, NPU, chain, plan_of, row

GRAPH = chain(6)
PLAN = plan_of(
    GRAPH, (2,), (CPU, GPU), versions={"openvino": "1"}, candidates=(row(CPU, p50_s=0.004), row(NPU, p50_s=0.2))
)


def changed(**fields):
    return {change.what: (change.before, change.after) for change in compare(PLAN, dataclasses.replace(PLAN, **fields))}


def test_a_plan_does_not_differ_from_itself():
    assert compare(PLAN, PLAN) == ()


def test_versions_machine_and_times_are_told():
    found = changed(versions={"openvino": "2", "litert": "3"}, machine="e" * 16, measured_s=0.006)
    assert found == {
        "machine": ("f" * 16, "e" * 16),
        "version openvino": ("1", "2"),
        "version litert": ("", "3"),
        "time measured": ("4.00 ms", "6.00 ms (1.50x)"),
    }


def test_nodes_that_moved_are_named_and_counted():
    other = plan_of(GRAPH, (4,), (CPU, NPU), versions=PLAN.versions, candidates=PLAN.candidates)
    found = {change.what: (change.before, change.after) for change in compare(PLAN, other)}
    assert found["node 2 (n2, n3)"] == (str(GPU), str(CPU))
    assert found["node 2 (n4, n5)"] == (str(GPU), str(NPU))


def test_a_plan_that_no_longer_splits_is_told_by_node():
    whole = plan_of(GRAPH, versions=PLAN.versions, candidates=PLAN.candidates)
    found = {change.what: (change.before, change.after) for change in compare(PLAN, whole)}
    assert found["segments"] == ("2", "1")
    assert found["node 4 (n2, n3, n4, ...)"] == (str(GPU), str(CPU))
    assert found["transfer"] == ("1, 32 B", "none")


def test_a_candidate_that_left_says_why():
    rows = (row(CPU, p50_s=0.004), row(NPU, "refused", reason="no Conv"))
    assert changed(candidates=rows) == {f"candidate {NPU}": ("ok 200 ms", "refused: no Conv")}
    assert changed(candidates=rows[:1]) == {f"candidate {NPU}": ("ok 200 ms", "not considered")}


def test_a_plan_that_is_no_longer_verified_is_told():
    found = changed(verification=Verification("onnx", disputed="two others"))
    assert found == {"check": ("verified, onnx", "not verified, onnx")}
