"""`edgert.load` from file to answer: remembered plans, background search, threads, processes, and bad arguments."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import edgert
from edgert import measure
from edgert.devices.probe import glance
from edgert.errors import (
    CacheUnwritable,
    Closed,
    InputError,
    ModelCorrupt,
    ModelNotFound,
    OptionError,
    ShapeMismatch,
    UnknownInput,
    UnknownTarget,
)
from edgert.plan import Tolerance

pytest.importorskip("onnxruntime", reason="loads .onnx files with it")


@pytest.fixture
def machine():
    """This box with ONNX Runtime and the evaluator alone, so that a load is quick."""
    seen = glance()
    kept = ("onnxruntime", "reference")
    return dataclasses.replace(
        seen,
        backends=tuple(info for info in seen.backends if info.name in kept),
        reaches=tuple(reach for reach in seen.reaches if reach.backend in kept),
    )


@pytest.fixture
def settings(machine, tmp_path):
    return {"machine": machine, "cache_dir": tmp_path / "cache", "budget_s": 1.0}


@pytest.fixture
def spied(monkeypatch):
    """Names of the children that are started or reused from now on."""
    names = []
    borrow = measure.Remotes.borrow
    monkeypatch.setattr(
        measure.Remotes, "borrow", lambda self, name, *at: names.append(name) or borrow(self, name, *at)
    )
    return names


def test_an_answer_carries_its_receipt(line, settings, x):
    with edgert.load(line, **settings) as model:
        result = model.run({"x": x})
        receipt = result.receipt
        assert np.allclose(result["y"], 2 * x + 1)
        assert receipt.plan == model.plan.id
        assert receipt.targets == model.plan.targets
        assert receipt.verified
        assert not receipt.degraded
        assert not receipt.reason
        assert receipt.run_s > 0


def test_a_result_is_a_mapping_that_names_its_outputs(line, settings, x):
    with edgert.load(line, **settings) as model:
        result = model.run({"x": x})
    assert (list(result), len(result), "y" in result, "z" in result) == (["y"], 1, True, False)
    with pytest.raises(KeyError, match="the model has y"):
        result["z"]


def test_the_second_load_tries_nothing_and_has_the_same_plan(line, settings, x, spied):
    with edgert.load(line, **settings) as first:
        plan = first.plan
    assert spied
    spied.clear()
    with edgert.load(line, **settings) as second:
        assert second.plan == plan
        assert second.plan.id == plan.id
        assert second.run({"x": x}).receipt.verified
    assert not spied


@pytest.mark.parametrize(
    "change",
    [{"tolerance": 1e-3}, {"tolerance": Tolerance(lsb=2)}, {"precision": "f32"}, {"targets": ["onnxruntime@*"]},
     {"objective": "throughput"}, {"samples": [{"x": np.ones((3, 4), np.float32)}]}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_another_wish_is_measured_anew(line, settings, spied, change):
    edgert.load(line, **settings).close()
    spied.clear()
    edgert.load(line, **settings, **change).close()
    assert spied


def test_another_machine_or_version_is_measured_anew(line, settings, spied):
    edgert.load(line, **settings).close()
    machine = settings["machine"]
    cpu = machine.devices[0]
    cooler = dataclasses.replace(machine, devices=(dataclasses.replace(cpu, name="another CPU"), *machine.devices[1:]))
    newer = dataclasses.replace(
        machine, backends=tuple(dataclasses.replace(info, version="999") for info in machine.backends if info.usable)
    )
    for other in (cooler, newer):
        spied.clear()
        edgert.load(line, **{**settings, "machine": other}).close()
        assert spied


def test_a_model_that_changed_is_measured_anew(line, settings, spied, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(line.read_bytes())
    edgert.load(path, **settings).close()
    import onnx

    proto = onnx.load(path)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32([3]), "two"))
    path.write_bytes(proto.SerializeToString())
    spied.clear()
    with edgert.load(path, **settings) as model:
        assert np.allclose(model.run([[1, 1, 1, 1]])["y"], 4)
    assert spied


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 9, None], ids=["empty", "hollow", "binary", "cut"])
def test_a_damaged_cache_is_reported_and_measured_anew(line, settings, x, spied, caplog, damage):
    edgert.load(line, **settings).close()
    entries = [path for path in settings["cache_dir"].rglob("*.json") if path.is_file()]
    assert entries
    for path in entries:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    spied.clear()
    with caplog.at_level(logging.WARNING, "edgert"), edgert.load(line, **settings) as model:
        assert np.allclose(model.run({"x": x})["y"], 2 * x + 1)
    assert spied
    assert "damaged" in caplog.text
    spied.clear()
    edgert.load(line, **settings).close()
    assert not spied


def test_a_cache_folder_that_cannot_be_written_is_refused(line, settings, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(CacheUnwritable):
        edgert.load(line, **{**settings, "cache_dir": tmp_path / "file" / "cache"})
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheUnwritable):
        edgert.load(line, **{**settings, "cache_dir": None})


def test_a_cache_that_breaks_later_costs_only_the_memory_of_it(line, settings, x, caplog):
    cache = settings["cache_dir"]
    cache.mkdir()
    for name in ("plans", "profiles", "compiled"):
        (cache / name).touch()  # files where folders should be
    with caplog.at_level(logging.WARNING, "edgert"), edgert.load(line, **settings) as model:
        assert np.allclose(model.run({"x": x})["y"], 2 * x + 1)
    assert "will be measured again" in caplog.text


LOADER = """
import sys, dataclasses, numpy as np, edgert
from edgert.devices.probe import glance
seen, kept = glance(), ("onnxruntime", "reference")
machine = dataclasses.replace(
    seen,
    backends=tuple(info for info in seen.backends if info.name in kept),
    reaches=tuple(reach for reach in seen.reaches if reach.backend in kept),
)
with edgert.load(sys.argv[1], machine=machine, cache_dir=sys.argv[2], budget_s=1) as model:
    y = model.run({"x": np.ones((1, 4), np.float32)})["y"]
print(y.tolist())
"""


def test_two_processes_that_fill_one_cache_both_answer_right(line, settings, spied):
    command = [sys.executable, "-c", LOADER, line, settings["cache_dir"]]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.strip()) == (0, "[[3.0, 3.0, 3.0, 3.0]]"), err
    edgert.load(line, **settings).close()
    assert not spied  # what they left is whole


def test_without_budget_the_first_answer_comes_before_anything_was_compared(line, machine_of, x, tmp_path):
    here = tmp_path / "line.onnx"
    here.write_bytes(line.read_bytes())
    machine = machine_of("onnxruntime", "waits", "right", "reference")
    with edgert.load(here, machine=machine, budget_s=0, cache_dir=tmp_path / "cache") as model:
        first = model.run({"x": x})
        assert np.array_equal(first["y"], 2 * x + 1)
        assert model.plan.measured_s == 0.0
        assert not first.receipt.verified
        assert not model.wait_improved(0.0)  # `waits` is still preparing
        (tmp_path / "go").touch()
        assert model.wait_improved(60)
        better = model.run({"x": x})
        assert better.receipt.verified
        assert better.receipt.plan != first.receipt.plan
        assert better.receipt.targets[0].backend in ("right", "waits")
        assert model.plan.measured_s > 0


def test_every_answer_is_right_while_a_better_plan_is_swapped_in(line, machine_of, tmp_path):
    here = tmp_path / "line.onnx"
    here.write_bytes(line.read_bytes())
    machine = machine_of("onnxruntime", "right", "waits", "reference")
    swapped, plans, wrong = threading.Event(), set(), []

    def hammer(mark):
        x = np.full((2, 4), mark, np.float32)
        left = 200
        while left:
            result = model.run({"x": x})
            plans.add(result.receipt.plan)
            if not np.array_equal(result["y"], 2 * x + 1):
                wrong.append(result)
            left -= swapped.is_set()

    with (
        edgert.load(here, machine=machine, budget_s=0, cache_dir=tmp_path / "cache") as model,
        ThreadPoolExecutor(4) as pool,
    ):
        work = [pool.submit(hammer, mark) for mark in range(4)]
        (tmp_path / "go").touch()
        assert model.wait_improved(120)
        swapped.set()
        for future in work:
            future.result(60)
    assert not wrong
    assert len(plans) == 2


def test_closing_calls_the_background_search_off(line, machine_of, x, tmp_path):
    here = tmp_path / "line.onnx"
    here.write_bytes(line.read_bytes())
    model = edgert.load(here, machine=machine_of("onnxruntime", "waits"), budget_s=0, cache_dir=tmp_path / "cache")
    model.run({"x": x})
    model.close()
    (tmp_path / "go").touch()
    assert model.wait_improved(60)
    with pytest.raises(Closed):
        model.run({"x": x})


def test_a_process_that_ends_during_the_search_ends(line, tmp_path):
    script = (
        LOADER.replace("budget_s=1", "budget_s=0").replace("with edgert", "if model := edgert").replace(" as model", "")
    )
    done = subprocess.run(
        [sys.executable, "-c", script, line, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[[3.0, 3.0, 3.0, 3.0]]", "")


def test_submitted_requests_answer_and_check_their_inputs_at_once(line, settings, x):
    with edgert.load(line, **settings) as model:
        futures = [model.submit({"x": x + n}) for n in range(20)]
        for n, future in enumerate(futures):
            result = future.result(60)
            assert np.allclose(result["y"], 2 * (x + n) + 1)
            assert result.receipt.plan == model.plan.id
        with pytest.raises(UnknownInput):
            model.submit({"z": x})


def test_threads_may_share_a_model(line, settings):
    def work(mark):
        x = np.full((2, 4), mark, np.float32)
        return all(np.allclose(model.run({"x": x})["y"], 2 * x + 1) for _ in range(100))

    with edgert.load(line, **settings) as model, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_throughput_is_measured_with_instances_on_cores_of_their_own(line, settings, x):
    with edgert.load(line, **settings, objective="throughput", targets=["onnxruntime@cpu:0/f32/1t"]) as model:
        plan = model.plan
        assert len(plan.instances) == len(settings["machine"].devices[0].cores)
        cores = [set(instance.cores) for instance in plan.instances]
        assert all(cores)
        assert sum(map(len, cores)) == len(set.union(*cores))
        assert plan.items_per_s > 0
        futures = [model.submit({"x": x + n}) for n in range(40)]
        assert all(np.allclose(future.result(60)["y"], 2 * (x + n) + 1) for n, future in enumerate(futures))


def test_a_device_lost_at_run_time_degrades_and_says_so(line, machine_of, x, tmp_path, foreign):
    machine = machine_of("fickle", "onnxruntime", "reference")
    with edgert.load(line, machine=machine, budget_s=1, cache_dir=tmp_path) as model:
        assert model.run({"x": x}).receipt.targets[0].backend == "fickle"
        foreign.FAIL.set()
        degraded = model.run({"x": x})
        foreign.FAIL.clear()
        after = model.run({"x": x})
    for result in (degraded, after):
        assert np.array_equal(result["y"], 2 * x + 1)
        assert result.receipt.degraded
        assert "fell off the bus" in result.receipt.reason
        assert result.receipt.targets[0].backend == "onnxruntime"
        assert result.receipt.verified


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [({"targets": ["tensorfast@*"]}, UnknownTarget, "tensorfast"),
     ({"targets": ["nonsense"]}, UnknownTarget, "nonsense"),
     ({"targets": ["onnxruntime@gpu:7/f32"]}, UnknownTarget, "gpu:7"), ({"targets": []}, OptionError, "targets"),
     ({"targets": "onnxruntime@*"}, OptionError, "targets"), ({"precision": "f31"}, OptionError, "f31"),
     ({"objective": "speed"}, OptionError, "speed"), ({"budget_s": -1}, OptionError, "budget_s"),
     ({"budget_s": float("nan")}, OptionError, "budget_s"), ({"tolerance": float("nan")}, OptionError, "tolerance"),
     ({"tolerance": -1e-3}, OptionError, "tolerance"), ({"samples": {"x": 1}}, OptionError, "samples"),
     ({"samples": [3]}, OptionError, "samples"), ({"samples": [{"z": np.ones(4)}]}, InputError, "'z'"),
     ({"samples": [{"x": np.ones((1, 5), np.float32)}]}, ShapeMismatch, "axis 1"),
     ({"isolation": "maybe"}, OptionError, "isolation"),
     ({"tolerance": Tolerance(range_fraction=float("nan"))}, OptionError, "Tolerance.range_fraction")],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_refused_by_name(line, settings, arguments, error, words):
    with pytest.raises(error) as caught:
        edgert.load(line, **{**settings, **arguments}).close()
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, ModelNotFound), (b"", ModelCorrupt), (b"\x00" * 64, ModelCorrupt),
     (b"PK\x03\x04" + bytes(64), ModelCorrupt)],
    ids=["missing", "empty", "zeros", "zip"],
)  # fmt: skip
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, settings, content, error):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        edgert.load(path, **settings)
    assert "model.onnx" in str(caught.value)


def test_a_folder_is_no_model(tmp_path, settings):
    with pytest.raises(ModelNotFound):
        edgert.load(tmp_path, **settings)


def test_a_truncated_model_is_refused(line, tmp_path, settings):
    path = tmp_path / "model.onnx"
    path.write_bytes(line.read_bytes()[:-20])
    with pytest.raises(ModelCorrupt):
        edgert.load(path, **settings)


def test_a_closed_model_refuses_everything_and_closes_twice(line, settings, x):
    model = edgert.load(line, **settings)
    model.close()
    model.close()
    for call in (lambda: model.run({"x": x}), lambda: model.submit({"x": x}), lambda: model.plan, lambda: model.inputs):
        with pytest.raises(Closed, match="Load it again"):
            call()
    assert "closed" in repr(model)


def test_progress_is_told_what_goes_on(line, settings):
    told = []
    edgert.load(line, **settings, progress=lambda words, share: told.append((words, share))).close()
    assert any("onnxruntime" in words for words, _ in told)
    assert all(0 <= share <= 1 for _, share in told)
