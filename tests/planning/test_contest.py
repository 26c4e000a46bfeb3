"""Splits against whole models: what falls out of the race was not beaten."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgert.errors import ChildDied
from edgert.planning.contest import _faster_before
from edgert.profile import Row, Target, Timing

NPU, CPU = Target("simulated", "npu:0", "i8"), Target("simulated", "cpu:0", "i8")


def plan(**seconds):
    rows = []
    for target in (NPU, CPU):
        time_s = seconds[target.device[:3]]
        rows.append(Row(target, "ok", "", Timing(time_s, time_s, time_s, 1, 1)))
    return SimpleNamespace(candidates=tuple(rows))


@pytest.mark.parametrize(("split_s", "won"), [(0.076, False), (0.05, True)])
def test_a_split_is_no_faster_than_a_whole_model_that_fell_out(split_s, won):
    runners = {NPU: SimpleNamespace(failure=ChildDied("npu: killed.")), CPU: SimpleNamespace(failure=None)}
    reason = _faster_before(plan(npu=0.066, cpu=0.11), runners, split_s)
    assert (reason == "") is won
    if not won:
        assert reason == f"{NPU} fell out of the race (npu: killed.); it took 66 ms before, the split 76"


def test_who_stayed_in_the_race_is_judged_by_the_race():
    runners = {NPU: SimpleNamespace(failure=None), CPU: SimpleNamespace(failure=None)}
    assert _faster_before(plan(npu=0.066, cpu=0.11), runners, 0.2) == ""
