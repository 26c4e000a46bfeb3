"""Bundles: what is in one, what damage it survives (none), and on which machine it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgert
from edgert import bundle, measure
from edgert.bundle.archive import entry
from edgert.data import path
from edgert.devices.probe import glance
from edgert.errors import EdgertError, ModelCorrupt, ModelError, ModelNotFound, ModelUnsupported, OptionError
from edgert.formats import open_model
from edgert.machine import Reach
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import Profile, Target
from edgert.unpack import unpack

pytest.importorskip("onnxruntime", reason="the bundled models run on it")

ORT = "onnxruntime@cpu:0/f32/1t"
RESORT = "reference@cpu:0/f32"


def machine_with(*backends):
    seen = glance()
    return dataclasses.replace(
        seen,
        backends=tuple(info for info in seen.backends if info.name in backends),
        reaches=tuple(reach for reach in seen.reaches if reach.backend in backends),
    )


def profile_of(plan):
    rows = tuple(row for row in plan.candidates if row.outcome != "untried")
    return Profile(plan.model, plan.machine, plan.versions, "synthesised:0", plan.verification.reference, rows)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def machine():
    return machine_with("onnxruntime", "reference")


@pytest.fixture(scope="module")
def plan(line, machine, cache):
    with edgert.load(line, machine=machine, budget_s=1, cache_dir=cache, targets=[ORT]) as model:
        return dataclasses.replace(model.plan, fallbacks=())


@pytest.fixture(scope="module")
def alone(line, machine, plan, tmp_path_factory):
    """A bundle without fallbacks."""
    return bundle.write(tmp_path_factory.mktemp("alone") / "line.edgert", line, plan, machine, profile_of(plan)).path


@pytest.fixture(scope="module")
def with_fallback(line, machine, plan, tmp_path_factory):
    pytest.importorskip("onnx", reason="the fallback is its evaluator")
    made = dataclasses.replace(plan, fallbacks=(Target.parse(RESORT),))
    return bundle.write(tmp_path_factory.mktemp("both") / "line.edgert", line, made, machine, profile_of(made)).path


# ---- what is in one


def test_a_bundle_answers_as_its_plan_says(alone, machine, plan, x, tmp_path):
    with edgert.load(alone, machine=machine, cache_dir=tmp_path) as model:
        result = model.run({"x": x})
        assert model.plan == plan
        assert np.array_equal(result["y"], 2 * x + 1)
        assert (result.receipt.plan, result.receipt.targets) == (plan.id, plan.targets)
        assert (result.receipt.degraded, result.receipt.verified, result.receipt.reason) == (False, True, "")


def test_it_is_found_by_content_whatever_it_is_called(alone, machine, x, tmp_path):
    other = tmp_path / "line.onnx"
    other.write_bytes(alone.read_bytes())
    with edgert.load(other, machine=machine, cache_dir=tmp_path / "cache") as model:
        assert np.array_equal(model.submit([x]).result()["y"], 2 * x + 1)


def test_the_machine_at_hand_is_looked_at_when_none_is_given(alone, x, tmp_path):
    with edgert.load(alone, cache_dir=tmp_path) as model:
        assert model.run([x]).receipt.verified


def test_equal_content_makes_equal_bytes(alone, line, machine, plan, tmp_path):
    again = bundle.write(tmp_path / "again.edgert", line, plan, machine, profile_of(plan)).path
    assert again.read_bytes() == alone.read_bytes()


def test_what_was_written_is_what_is_read(alone, line, machine, plan):
    found = bundle.read(alone)
    assert (found.plan, found.machine, found.profile) == (plan, machine, profile_of(plan))
    assert found.segments == (found.model,) == ("model/model.onnx",)
    assert found.members[found.model].sha256 == hashlib.sha256(line.read_bytes()).hexdigest()


def test_any_zip_tool_reads_it(alone, line):
    with zipfile.ZipFile(alone) as archive:
        assert archive.testzip() is None
        assert archive.read("model/model.onnx") == line.read_bytes()


def test_external_data_travels_with_its_model(machine, cache, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the model is written with onnx")
    helper = onnx.helper
    (tmp_path / "sub").mkdir()
    weights = onnx.numpy_helper.from_array(np.arange(1024, dtype=np.float32), "w")
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])], "g",
            [helper.make_tensor_value_info("x", 1, [1024])], [helper.make_tensor_value_info("y", 1, [1024])], [weights],
        ), ir_version=10, opset_imports=[helper.make_opsetid("", 21)],
    )  # fmt: skip
    source = tmp_path / "big.onnx"
    onnx.save_model(made, source, save_as_external_data=True, location="sub/w.bin", size_threshold=0)
    with edgert.load(source, machine=machine, budget_s=1, cache_dir=cache, targets=[ORT]) as model:
        plan = model.plan
    out = bundle.write(tmp_path / "big.edgert", source, plan, machine, profile_of(plan)).path
    source.unlink()
    (tmp_path / "sub" / "w.bin").unlink()
    with edgert.load(out, machine=machine, cache_dir=tmp_path / "cache") as model:
        assert np.array_equal(model.run([np.ones(1024, np.float32)])["y"], np.arange(1024) + 1)


def test_a_tflite_model_travels_too(cache, tmp_path):
    machine = machine_with("litert")
    if not machine.backends or not machine.backends[0].usable:
        pytest.skip("no LiteRT")
    with edgert.load(path("digits_i8.tflite"), machine=machine, budget_s=1, cache_dir=cache) as model:
        plan, value = model.plan, model.inputs[0]
        zeros = np.zeros([size if isinstance(size, int) else 1 for size in value.shape], value.dtype)
        expected = model.run([zeros])
    made = bundle.write(tmp_path / "d.edgert", path("digits_i8.tflite"), plan, machine, profile_of(plan)).path
    with edgert.load(made, machine=machine, cache_dir=tmp_path) as model:
        result = model.run([zeros])
    assert all(np.array_equal(result[name], expected[name]) for name in expected)


def test_another_model_than_the_plans_is_not_packed(machine, plan, tmp_path):
    with pytest.raises(ModelError, match="is not the model of plan"):
        bundle.write(tmp_path / "x.edgert", path("digits_f32.onnx"), plan, machine, profile_of(plan))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_option_error(line, machine, plan, tmp_path):
    with pytest.raises(OptionError, match="cannot be written"):
        bundle.write(tmp_path / "none" / "x.edgert", line, plan, machine, profile_of(plan))


BARE = """
import sys
blocked = ("onnx", "onnx_ir", "ml_dtypes", "openvino", "ai_edge_litert", "highspy", "scipy", "sklearn", "typer", "rich",
           "zmq", "edgert.planning", "edgert.partitioner", "edgert.samples", "edgert.verify", "edgert.bench")
sys.modules.update(dict.fromkeys(blocked))
import numpy as np, edgert
bundle, folder = sys.argv[1:]
with edgert.load(bundle, cache_dir=folder + "/cache") as model:
    result = model.run([np.load(folder + "/x.npy")])
assert not result.receipt.degraded, result.receipt
np.save(folder + "/y.npy", next(iter(result.values())))
print(*result.receipt.targets)
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """What hides packages from a process and its children."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("onnx", "onnx_ir", "ml_dtypes", "openvino", "highspy", "scipy", "zmq"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise ImportError('blocked by a test')\n", encoding="utf-8")
    return folder


def bare(made, folder, stubs):
    """Load and run in a process where planner, readers and solvers cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", BARE, made, folder], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(stubs), *filter(None, [os.environ.get("PYTHONPATH")])])},
    )  # fmt: skip


def test_two_processes_that_open_one_bundle_at_once_both_answer(alone, x, stubs, tmp_path):
    np.save(tmp_path / "x.npy", x)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: bare(alone, tmp_path, stubs), range(2)))
    assert [done.returncode for done in both] == [0, 0], both


def test_neither_planner_nor_reader_nor_solver_is_needed(alone, x, stubs, tmp_path):
    np.save(tmp_path / "x.npy", x)
    done = bare(alone, tmp_path, stubs)
    assert (done.returncode, done.stdout.strip()) == (0, ORT), done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), 2 * x + 1)


# ---- plans of several segments


@pytest.fixture(scope="module")
def split(machine, tmp_path_factory):
    """A bundle of a plan with two segments, and the plan."""
    pytest.importorskip("onnx", reason="the model is cut with it")
    file = open_model(path("digits_f32.onnx"))
    graph, half = file.graph, len(file.graph.nodes) // 2
    nodes = [node.name for node in graph.nodes]
    segments = []
    for own, target in ((nodes[:half], "onnxruntime@cpu:0/f32/1t"), (nodes[half:], "onnxruntime@cpu:0/f32/2t")):
        border = graph.boundary(frozenset(nodes.index(name) for name in own))
        segments.append(Segment(Target.parse(target), tuple(own), *border))
    crossing = dict.fromkeys(name for segment in segments for name in (*segment.inputs, *segment.outputs))
    plan = Plan(
        file.digest, machine.fingerprint, {"onnxruntime": machine.backend("onnxruntime").version}, "latency", "own",
        "onnx", "f32", graph.inputs, graph.outputs, tuple(segments), (Instance(0), Instance(1)),
        verification=Verification("onnx"), values=tuple(graph.values[name] for name in crossing),
    )  # fmt: skip
    out = tmp_path_factory.mktemp("split") / "split.edgert"
    bundle.write(out, file.path, plan, machine, profile_of(plan))
    return out, plan


def test_each_segment_has_its_file_and_the_model_is_there_too(split):
    found = bundle.read(split[0])
    assert found.segments == ("segments/0.onnx", "segments/1.onnx")
    assert set(found.members) >= {*found.segments, "model/model.onnx"}


def test_equal_splits_make_equal_bytes(split, machine, tmp_path):
    bundle.write(tmp_path / "again.edgert", path("digits_f32.onnx"), split[1], machine, profile_of(split[1]))
    assert (tmp_path / "again.edgert").read_bytes() == split[0].read_bytes()


def test_a_split_runs_from_its_files_without_the_package_that_cuts(split, cache, machine, stubs, tmp_path):
    image = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", image)
    with edgert.load(path("digits_f32.onnx"), machine=machine, budget_s=1, cache_dir=cache, targets=[ORT]) as model:
        expected = model.run([image])
    done = bare(split[0], tmp_path, stubs)
    assert done.returncode == 0, done.stderr
    assert np.allclose(np.load(tmp_path / "y.npy"), next(iter(expected.values())), atol=1e-5)
    assert done.stdout.split() == ["onnxruntime@cpu:0/f32/1t", "onnxruntime@cpu:0/f32/2t"]


@pytest.mark.parametrize("wrong", ["order", "value", "nodes", "output"])
def test_a_split_that_hands_over_nothing_is_refused(split, machine, tmp_path, wrong):
    plan = split[1]
    first, second = plan.segments
    changes = {
        "order": {"segments": (second, first)},
        "value": {"values": ()},
        "nodes": {"segments": (first, dataclasses.replace(second, nodes=()))},
        "output": {"segments": (first, dataclasses.replace(second, outputs=()))},
    }
    bad = dataclasses.replace(plan, **changes[wrong])
    made = bundle.write(tmp_path / "bad.edgert", path("digits_f32.onnx"), bad, machine, profile_of(bad)).path
    with pytest.raises(ModelCorrupt, match=r"plan\.json.*segment"):
        bundle.read(made)


# ---- on another machine


def on_cpu(machine, **fields):
    return dataclasses.replace(
        machine, devices=(dataclasses.replace(machine.devices[0], **fields), *machine.devices[1:])
    )


def with_version(machine, name, **fields):
    backends = tuple(
        dataclasses.replace(info, **fields) if info.name == name else info for info in machine.backends
    )  # fmt: skip
    return dataclasses.replace(machine, backends=backends)


OTHERS = {  # how the other machine differs -> what the refusal says
    "name": (lambda here: on_cpu(here, name="another CPU"), "cpu:0 name: made for .*, here another CPU"),
    "cores": (lambda here: on_cpu(here, cores=tuple(range(64))), "cpu:0 cores: made for .*, here 0 1 2"),
    "features": (lambda here: on_cpu(here, features=("sve",)), "cpu:0 features: .*sve here, not there"),
    "driver": (lambda here: on_cpu(here, driver="other 2"), "cpu:0 driver: made for none, here other 2"),
    "memory": (lambda here: on_cpu(here, memory_bytes=1 << 30), "cpu:0 memory: made for .* GiB, here 1 GiB"),
    "architecture": (lambda here: dataclasses.replace(here, architecture="riscv64"), "architecture: .* here riscv64"),
    "version": (lambda here: with_version(here, "onnxruntime", version="9.9"), "onnxruntime: made with .*, here 9.9"),
    "backend": (
        lambda here: with_version(here, "onnxruntime", version="", reason="no wheel"),
        "onnxruntime: made with .*, here it is not usable .no wheel",
    ),
    "device": (lambda here: dataclasses.replace(here, devices=()), "cpu:0: made for .*, here there is none"),
    "cluster": (
        lambda here: dataclasses.replace(here, devices=(*here.devices, *on_cpu(here, id="cpu:9").devices[:1])),
        "cpu:9: made for a machine without it",
    ),
    "health": (
        lambda here: dataclasses.replace(here, reaches=(Reach("onnxruntime", "cpu:0", "", "wrong", "off by 3"),)),
        "conformance run here ended wrong: off by 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", OTHERS)
def test_another_machine_is_refused_with_the_difference(alone, machine, tmp_path, how):
    change, told = OTHERS[how]
    with pytest.raises(ModelUnsupported, match=told) as caught:
        edgert.load(alone, machine=change(machine), cache_dir=tmp_path)
    assert len(caught.value.differences) == 1
    assert "edgert compile" in caught.value.remedy


def test_a_fallback_that_fits_answers_and_says_why(with_fallback, machine, x, tmp_path):
    other = on_cpu(machine, name="another CPU")
    with edgert.load(with_fallback, machine=other, cache_dir=tmp_path) as model:
        result = model.run([x])
        assert np.allclose(result["y"], 2 * x + 1)
        assert list(map(str, result.receipt.targets)) == [RESORT]
        assert (result.receipt.degraded, result.receipt.verified) == (True, False)
        assert "here another CPU" in result.receipt.reason
        assert "here another CPU" in model.plan.explain()
        assert model.plan.machine == other.fingerprint


def test_a_fallback_of_another_version_does_not_fit(with_fallback, machine, tmp_path):
    other = with_version(on_cpu(machine, name="another CPU"), "reference", version="0.1")
    with pytest.raises(ModelUnsupported, match=r"fallback reference@cpu:0/f32 does not fit: .* here 0\.1"):
        edgert.load(with_fallback, machine=other, cache_dir=tmp_path)


def test_on_its_own_machine_a_fallback_of_another_version_is_left_out_and_noted(with_fallback, machine, x, tmp_path):
    other = with_version(machine, "reference", version="0.1")
    with edgert.load(with_fallback, machine=other, cache_dir=tmp_path) as model:
        assert not model.run([x]).receipt.degraded
        assert model.plan.fallbacks == ()
        assert RESORT in model.plan.notes[-1]


def test_a_device_that_the_plan_does_not_use_may_differ(alone, machine, x, tmp_path):
    gpu = dataclasses.replace(machine.devices[0], id="gpu:0", kind="gpu", cores=(), name="a GPU")
    other = dataclasses.replace(machine, devices=(*machine.devices, gpu))
    with edgert.load(alone, machine=other, cache_dir=tmp_path) as model:
        assert not model.run([x]).receipt.degraded


def test_a_target_that_does_not_prepare_here_leaves_it_to_a_fallback(line, machine_of, x, tmp_path):
    machine = machine_of("crashes_in_prepare", "right")
    plan = _hand_made(line, machine, "crashes_in_prepare@cpu:0/f32", "right@cpu:0/f32")
    made = bundle.write(tmp_path / "b.edgert", line, plan, machine, profile_of(plan)).path
    with edgert.load(made, machine=machine, cache_dir=tmp_path / "cache") as model:
        result = model.run([x])
    assert np.allclose(result["y"], 2 * x + 1)
    assert result.receipt.degraded
    assert "crashes_in_prepare@cpu:0/f32" in result.receipt.reason


def _hand_made(line, machine, target, *fallbacks):
    with edgert.load(line, machine=machine, budget_s=0.1, targets=[fallbacks[0]]) as model:
        good = model.plan
    segment = dataclasses.replace(good.segments[0], target=Target.parse(target))
    return dataclasses.replace(good, segments=(segment,), fallbacks=tuple(map(Target.parse, fallbacks)))


@pytest.mark.parametrize(
    "wish",
    [{"objective": "throughput"}, {"precision": "any"}, {"tolerance": 1e-3}, {"targets": [ORT]}, {"samples": [{}]}],
    ids=lambda wish: next(iter(wish)),
)
def test_what_would_decide_a_plan_cannot_be_wished_of_a_bundle(alone, machine, wish):
    with pytest.raises(OptionError, match=f"{next(iter(wish))}= was given"):
        edgert.load(alone, machine=machine, **wish)


# ---- damage


def rebuilt(source, to, change=lambda members: members, infos=lambda info: info):
    """The bundle with its members changed and its manifest's checksums made to fit: what a forger would write."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members = change(members)
    manifest = json.loads(members["edgert.json"])
    with suppress(ValueError, KeyError, TypeError):
        manifest["plan"] = json.loads(members["plan.json"])["id"]
    for name, content in members.items():
        if name != "edgert.json":
            manifest["members"][name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    members["edgert.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in members.items():
            archive.writestr(infos(entry(name, len(content))), content)
    return to


def raw(source, to, change):
    """The bundle with its members changed and its manifest left alone."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in change(members).items():
            archive.writestr(entry(name, len(content)), content)
    return to


@pytest.mark.parametrize("member", ["plan.json", "machine.json", "profile.json", "model/model.onnx"])
def test_a_changed_member_is_named_before_anything_is_laid_down(alone, machine, tmp_path, member):
    def change(members):
        return {**members, member: members[member].replace(b"o", b"p")}

    bad = raw(alone, tmp_path / "bad.edgert", change)
    with pytest.raises(ModelCorrupt, match=rf"{member}.*SHA-256"):
        edgert.load(bad, machine=machine, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache" / "bundles").exists()


def test_a_flipped_bit_between_the_members_is_found(alone, tmp_path):
    whole, bad = alone.read_bytes(), tmp_path / "bad.edgert"
    with zipfile.ZipFile(alone) as archive:
        starts = [info.header_offset for info in archive.infolist()] + [archive.start_dir]
        places = [at for start in starts for at in range(start, start + 30)]
        places += range(archive.start_dir, len(whole))
    for at in dict.fromkeys(places):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(ModelError):
            bundle.read(bad)


@pytest.mark.parametrize("more", [b"x", b"PK\5\6" + bytes(18)])
def test_bytes_behind_the_archive_are_refused(alone, tmp_path, more):
    longer = tmp_path / "longer.edgert"
    longer.write_bytes(alone.read_bytes() + more)
    with pytest.raises(ModelError):
        bundle.read(longer)


def test_a_flipped_bit_in_the_model_is_found(alone, tmp_path):
    content = bytearray(alone.read_bytes())
    content[content.index(b"two") + 1] ^= 1
    (tmp_path / "bad.edgert").write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"model/model\.onnx"):
        bundle.read(tmp_path / "bad.edgert")


def test_every_truncation_is_refused(alone, tmp_path):
    whole = alone.read_bytes()
    bad = tmp_path / "bad.edgert"
    for length in range(0, len(whole), 97):
        bad.write_bytes(whole[:length])
        with pytest.raises(ModelCorrupt):
            edgert.load(bad, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("content", [b"not a bundle", b"PK\x03\x04" + bytes(60), b"PK\x05\x06" + bytes(18)])
def test_a_file_of_another_kind_with_its_name_is_no_bundle(tmp_path, content):
    (tmp_path / "bad.edgert").write_bytes(content)
    with pytest.raises(ModelCorrupt, match="no edgert bundle"):
        edgert.load(tmp_path / "bad.edgert", cache_dir=tmp_path)


def test_a_missing_one_is_not_found(tmp_path):
    with pytest.raises(ModelNotFound):
        edgert.load(tmp_path / "none.edgert", cache_dir=tmp_path)


def test_a_later_format_is_unsupported_and_says_who_made_it(alone, tmp_path):
    def change(members):
        manifest = {**json.loads(members["edgert.json"]), "format": bundle.FORMAT + 1, "edgert": "9.9"}
        return {**members, "edgert.json": json.dumps(manifest).encode()}

    with pytest.raises(ModelUnsupported, match=rf"edgert\.json.*format {bundle.FORMAT + 1}.*edgert 9\.9") as caught:
        bundle.read(raw(alone, tmp_path / "new.edgert", change))
    assert "upgrade" in caught.value.remedy


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "model/../../evil", "C:/evil", "model\\evil", "model//evil", "a\nb"]
)
def test_a_name_that_leads_out_is_refused(alone, tmp_path, name):
    bad = rebuilt(alone, tmp_path / "bad.edgert", lambda members: {**members, name: b"x"})
    with pytest.raises(ModelCorrupt, match="not relative and plain"):
        bundle.read(bad)


def test_a_link_is_refused(alone, tmp_path):
    def info(given):
        if given.filename == "model/model.onnx":
            given.external_attr = (stat.S_IFLNK | 0o777) << 16
        return given

    with pytest.raises(ModelCorrupt, match=r"model/model\.onnx.*link"):
        bundle.read(rebuilt(alone, tmp_path / "bad.edgert", infos=info))


def test_a_compressed_member_is_refused_so_that_none_is_larger_than_the_file(alone, tmp_path):
    def info(given):
        if given.filename == "model/bomb":
            given.compress_type = zipfile.ZIP_DEFLATED
        return given

    bomb = rebuilt(
        alone, tmp_path / "bad.edgert", lambda members: {**members, "model/bomb": bytes(10_000_000)}, infos=info
    )
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ModelCorrupt, match=r"model/bomb.*compressed"):
        bundle.read(bomb)


def test_a_member_that_is_there_twice_is_refused(alone, tmp_path):
    bad = tmp_path / "bad.edgert"
    bad.write_bytes(alone.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("plan.json", b"{}")
    with pytest.raises(ModelCorrupt, match=r"plan\.json.*twice"):
        bundle.read(bad)


@pytest.mark.parametrize("name", ["plan.json", "machine.json", "profile.json", "model/model.onnx"])
def test_a_missing_member_is_named(alone, tmp_path, name):
    def change(members):
        return {other: content for other, content in members.items() if other != name}

    with pytest.raises(ModelCorrupt, match=name):
        bundle.read(raw(alone, tmp_path / "bad.edgert", change))


def test_a_member_that_the_manifest_does_not_know_is_refused(alone, tmp_path):
    bad = raw(alone, tmp_path / "bad.edgert", lambda members: {**members, "model/more.bin": b"x"})
    with pytest.raises(ModelCorrupt, match=r"model/more\.bin.*not in the manifest"):
        bundle.read(bad)


FORGED = {  # what is put in place with checksums that fit -> what is said
    "model": (lambda old: {"model/model.onnx": old["model/model.onnx"] + b"\0"}, "model"),
    "machine": (lambda old: {"machine.json": old["machine.json"].replace(b"cpu", b"gpu")}, "machine"),
    "plan": (lambda old: {"plan.json": old["plan.json"].replace(b"onnxruntime@", b"openvino@")}, "plan.json"),
    "not json": (lambda _: {"plan.json": b"\xff\xfe"}, "plan.json"),
    "no object": (lambda _: {"profile.json": b"[]"}, "profile.json.*no JSON object"),
    "deep": (lambda _: {"machine.json": b"[" * 100_000}, "machine.json"),
    "empty": (lambda _: {"plan.json": b"{}"}, "plan.json"),
}


@pytest.mark.parametrize("what", FORGED)
def test_parts_that_do_not_belong_together_are_refused(alone, tmp_path, what):
    change, told = FORGED[what]
    bad = rebuilt(alone, tmp_path / "bad.edgert", lambda members: {**members, **change(members)})
    with pytest.raises(ModelCorrupt, match=told):
        bundle.read(bad)


@pytest.mark.parametrize(
    "fields",
    [{"instances": [{"segment": 7, "cores": []}]}, {"instances": []}, {"segments": []}, {"format": "pickle"},
     {"instances": [{"segment": 0, "cores": ["x"]}]}, {"measured_s": "now"}, {"own_precision": "f1"}],
    ids=str,
)  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused(alone, tmp_path, fields, plan):
    text = json.dumps(_with_id({**plan.to_json(), **fields})).encode()
    bad = rebuilt(alone, tmp_path / "bad.edgert", lambda members: {**members, "plan.json": text})
    with pytest.raises(ModelCorrupt, match=r"plan\.json"):
        bundle.read(bad)


def _with_id(content):
    """The id that such a plan would have, so that only its sense is wrong."""
    try:
        Plan.from_json(content)
    except (KeyError, TypeError, AttributeError, EdgertError):
        return content
    except ValueError as error:
        said = str(error).split()[-1]
        return {**content, "id": said} if len(said) == 12 else content
    return content


STRANGE = (None, True, -1, 10**30, float("nan"), "", "x", "../x", "\ud800", [], {}, [None], [[1]], {"a": 1}, "9" * 99)


def leaves(document, place=()):
    """The place of everything in a JSON document, as keys and indices."""
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield (*place, key)
            yield from leaves(document[key], (*place, key))


@settings(max_examples=200)
@given(data=st.data())
def test_a_forged_document_is_refused_or_runs(split, machine, data, tmp_path_factory):
    """Checksums fit, and something in the plan, the machine or the profile is not what it should be."""
    bad = tmp_path_factory.getbasetemp() / "forged.edgert"

    def change(members):
        name = data.draw(st.sampled_from(["plan.json", "machine.json", "profile.json"]))
        document = json.loads(members[name])
        *way, last = data.draw(st.sampled_from(sorted(leaves(document), key=str)))
        parent = document
        for key in way:
            parent = parent[key]
        parent[last] = data.draw(st.sampled_from(STRANGE))
        if name == "plan.json":
            document = _with_id(document)
        return {**members, name: json.dumps(document).encode()}

    rebuilt(split[0], bad, change)
    try:
        found = unpack(bad, machine, None, apart=False)
    except ModelError:
        return
    found.plan.explain()
    found.release()


@settings(max_examples=300)
@given(data=st.data())
def test_a_mutated_bundle_is_refused_or_the_same(alone, plan, machine, data, tmp_path_factory):
    whole = alone.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "put", "cut", "insert", "copy", "near the end"])):
            case "flip":
                content[at] ^= 1 << data.draw(st.integers(0, 7))
            case "put":
                content[at : at + 4] = data.draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"PK\1\2"]))
            case "cut":
                del content[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            case "copy":
                begin = data.draw(st.integers(0, len(content) - 1))
                content[at : at + 50] = content[begin : begin + 50]
            case "near the end":  # the archive's directory is there
                content[-data.draw(st.integers(1, 400))] = data.draw(st.integers(0, 255))
        if not content:
            break
    bad = tmp_path_factory.getbasetemp() / "mutant.edgert"
    bad.write_bytes(content)
    try:
        found = bundle.read(bad)
    except ModelError:
        return
    assert (found.plan, found.machine, found.profile) == (plan, machine, profile_of(plan))
    assert found.files == bundle.read(alone).files
    with_files = tmp_path_factory.mktemp("mutant")
    found.extract(with_files)
    assert hashlib.sha256((with_files / found.model).read_bytes()).hexdigest() == found.members[found.model].sha256


# ---- files on disk


def laid_down(folder):
    return next((folder / "bundles").rglob("model.onnx"))


def test_a_damaged_copy_in_the_cache_is_replaced(alone, line, machine, x, tmp_path):
    edgert.load(alone, machine=machine, cache_dir=tmp_path).close()
    for damage in (b"", line.read_bytes()[::-1]):
        laid_down(tmp_path).write_bytes(damage)
        with edgert.load(alone, machine=machine, cache_dir=tmp_path) as model:
            assert np.array_equal(model.run([x])["y"], 2 * x + 1)
        assert laid_down(tmp_path).read_bytes() == line.read_bytes()


def test_a_second_load_starts_no_child(alone, machine, tmp_path, monkeypatch):
    edgert.load(alone, machine=machine, cache_dir=tmp_path).close()
    names = []
    monkeypatch.setattr(measure.Remotes, "borrow", lambda _, name, *_at: names.append(name))
    edgert.load(alone, machine=machine, cache_dir=tmp_path).close()
    assert not names


def test_without_a_writable_cache_a_temporary_folder_serves_until_close(
    alone, machine, x, tmp_path, caplog, monkeypatch
):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bundles").touch()  # a file where a folder should be
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with (
        caplog.at_level(logging.WARNING, "edgert"),
        edgert.load(alone, machine=machine, cache_dir=tmp_path / "cache") as model,
    ):
        assert model.path.is_relative_to(tmp_path / "tmp")
        assert np.array_equal(model.run([x])["y"], 2 * x + 1)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "cannot be written" in caplog.text


def test_a_refused_bundle_leaves_no_temporary_folder(alone, machine, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bundles").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with pytest.raises(ModelUnsupported):
        edgert.load(alone, machine=on_cpu(machine, name="x"), cache_dir=tmp_path / "cache")
    assert list((tmp_path / "tmp").iterdir()) == []
