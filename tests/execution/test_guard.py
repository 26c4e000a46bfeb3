"""What fits into the memory that is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import edgert
from edgert.devices import memory
from edgert.errors import NotEnoughMemory, OptionError
from edgert.execution import guard
from edgert.execution.guard import fitted, limit_for, rounded
from edgert.plan import Instance, Plan, Residency, Segment
from edgert.profile import Row, Target

FAST, LEAN, UNKNOWN = (
    Target.parse(text) for text in ("openvino@cpu:0/f32/1t", "litert@cpu:0/f32/1t", "reference@cpu:0/f32")
)


def _box(root, left_mb, cgroup=""):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {left_mb * 1000} kB\n")
    if cgroup:
        (root / "proc/self/cgroup").write_text("0::/app\n")
        (root / "proc/self/mountinfo").write_text("24 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        folder = root / "sys/fs/cgroup/app"
        folder.mkdir(parents=True)
        limit, used, droppable = cgroup.split()
        (folder / "memory.max").write_text(f"{limit}000000\n")
        (folder / "memory.current").write_text(f"{used}000000\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {droppable}000000\nslab 7\n")
    return root


def _plan(instances=1, residency=None):
    rows = (Row(FAST, "ok", memory_bytes=100_000_000), Row(LEAN, "ok", memory_bytes=20_000_000))
    return Plan(
        "digest", "machine", {}, "throughput", "own", "onnx", "f32", (), (), (Segment(FAST),),
        tuple(Instance(0, (number,)) for number in range(instances)), fallbacks=(LEAN, UNKNOWN), candidates=rows,
        residency=residency,
    )  # fmt: skip


def test_a_plan_that_fits_is_left_alone(tmp_path):
    plan = _plan(instances=2)
    assert fitted(plan, root=_box(tmp_path, 1000)) == (plan, "")


def test_only_as_many_instances_run_as_fit(tmp_path):
    plan, why = fitted(_plan(instances=4), root=_box(tmp_path, 250))
    assert len(plan.instances) == 2
    assert "2 of 4 instances run" in why


def test_the_segments_of_a_split_hold_a_part_each(tmp_path):
    plan = replace(_plan(), segments=(Segment(FAST), Segment(LEAN)), instances=(Instance(0), Instance(1)))
    assert fitted(plan, root=_box(tmp_path, 70)) == (plan, "")  # (110 + 22) / 2 MB


def test_a_fallback_that_needs_less_runs_where_not_one_instance_fits(tmp_path):
    plan, why = fitted(_plan(), root=_box(tmp_path, 50))
    assert plan.targets == (LEAN,)
    assert plan.fallbacks == (UNKNOWN,)
    assert why.startswith("the box has 51.2 MB left, the plan needs 110.0 MB")


def test_what_does_not_fit_at_all_is_refused_with_the_figures(tmp_path):
    with pytest.raises(NotEnoughMemory, match=r"needs 110\.0 MB; .* is 22\.0 MB: 11\.8 MB are missing") as caught:
        fitted(_plan(), root=_box(tmp_path, 10))
    assert (caught.value.needed_bytes, caught.value.left_bytes) == (22_000_000, 10_240_000)


def test_a_control_group_counts_without_the_files_that_it_can_drop(tmp_path):
    left = memory.available(_box(tmp_path, 1000, cgroup="300 280 60"))
    assert left == memory.Available(80_000_000, "the control group")


def test_segments_in_turn_that_do_not_fit_are_refused(tmp_path):
    residency = Residency(1, 1, ((0,),), (1,), peak_bytes=60_000_000)
    with pytest.raises(NotEnoughMemory, match="its segments in turn need 60"):
        fitted(_plan(residency=residency), root=_box(tmp_path, 50))


def test_a_model_larger_than_what_is_left_gets_a_limit(tmp_path):
    model = tmp_path / "model.tflite"
    model.write_bytes(b"\0\0\0\0TFL3" + bytes(90_000_000))
    assert limit_for(model, None, _box(tmp_path / "large", 10_000)) == 0
    here = memory.resident().now_bytes
    found = limit_for(model, None, _box(tmp_path / "small", 100))
    assert 0.8 * (here + 0.8 * 102_400_000) <= found <= here + 0.8 * 102_400_000


def test_a_limit_that_is_none_is_refused(tmp_path):
    with pytest.raises(OptionError, match="memory_limit_bytes=0"):
        limit_for(tmp_path / "x.onnx", 0)


def test_limits_are_rounded_so_that_a_plan_is_found_again():
    assert rounded(1_000_000) == rounded(990_000) == 983_040


def test_a_model_is_loaded_in_less_when_less_is_left(line, x, machine_of, monkeypatch, tmp_path):
    machine = machine_of("onnxruntime", "openvino", "reference")
    with edgert.load(line, machine=machine, budget_s=1, cache_dir=tmp_path) as model:
        expected = model.run(x)["y"]
    rows = tuple(replace(row, memory_bytes=10**15) for row in model_rows(tmp_path, machine))
    real = guard.fitted
    monkeypatch.setattr(guard, "fitted", lambda plan, *rest: real(_needing(plan, rows), *rest))
    with edgert.load(line, machine=machine, budget_s=1, cache_dir=tmp_path) as model:
        result = model.run(x)
        np.testing.assert_array_equal(result["y"], expected)
        assert result.receipt.degraded
        assert "left, the plan needs" in result.receipt.reason


def model_rows(folder, machine):
    """What the plan that was remembered measured."""
    import json

    (path,) = folder.glob("plans/*/*.json")
    return Plan.from_json(json.loads(path.read_text())["content"]).candidates


def _needing(plan, rows):
    """The plan, its own target needing more than there is."""
    own = plan.targets[0]
    large = {row.target: row for row in rows}
    changed = tuple(large[row.target] if row.target == own else replace(row, memory_bytes=max(row.memory_bytes, 1000))
                    for row in plan.candidates)  # fmt: skip
    return replace(plan, candidates=changed)


def test_a_bundle_s_fallback_takes_turns_in_the_same_segments_each_alone():
    from edgert.machine import Machine
    from edgert.unpack import _fallback_plan

    residency = Residency(10, 5, ((0, 1), (0, 1)), (1, 1), peak_bytes=4)
    plan = replace(_plan(residency=residency), segments=(Segment(FAST, ("a",)), Segment(FAST, ("b",))))
    made = _fallback_plan(plan, LEAN, (), Machine("x86_64", (), (), ()), "elsewhere")
    assert made.targets == (LEAN, LEAN)
    assert made.residency is not None
    assert made.residency.held == ((0,), (1,))
    assert [segment.nodes for segment in made.segments] == [("a",), ("b",)]
