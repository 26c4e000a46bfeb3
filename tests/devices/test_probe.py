"""What `probe` and `glance` say: of this machine, of backends that misbehave, and out of caches in every state."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgert import devices
from edgert.devices import cpu, probe
from edgert.errors import CacheUnwritable
from edgert.machine import BackendInfo, Device, Machine, Reach
from tests.devices import bad_backends
from tests.devices.boards import Board

CPU = cpu.discover()[0]
GPU = Device("gpu:0", "gpu", "Some GPU", 0)


@pytest.fixture(scope="module")
def _installed(tmp_path_factory):
    """`bad_backends` as another package would bring them."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(Path(bad_backends.__file__), site / "edgert_bad_backends.py")
    info = site / "edgert_bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgert-bad\nVersion: 1.0\n")
    points = [f"{name} = edgert_bad_backends:{kind.__name__}" for name, kind in bad_backends.BY_NAME.items()]
    (info / "entry_points.txt").write_text("\n".join(["[edgert.backends]", *points, ""]))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        devices.backend.cache_clear()
        yield
    devices.backend.cache_clear()
    sys.modules.pop("edgert_bad_backends", None)


def examined(*names: str, found=(CPU,), limit_s: float = 60.0):
    infos = [BackendInfo(name, "1.0") for name in names]
    return probe.examine(found, infos, lambda _message, _share: None, limit_s)


def verdict(name: str, limit_s: float = 60.0) -> Reach:
    _, (reach,) = examined(name, limit_s=limit_s)
    return reach


pytestmark = pytest.mark.usefixtures("_installed")
onnx = pytest.mark.skipif(not devices.probe.installed("reference").usable, reason="the package onnx is not installed")


@onnx
def test_a_backend_with_right_numbers_is_ok():
    assert verdict("honest") == Reach("honest", "cpu:0", "", "ok")


@onnx
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("liar", "numbers are off by"),
        ("halver", "onnx f32: numbers are off by"),
        ("stale", "numbers are off by"),
        ("nans", "numbers are off by nan"),
        ("shapeless", "answered float32 (10,), expected float32 (1, 10)"),
        ("elsewhere", "asked for cpu:0, ran on cpu:7"),
    ],
)
def test_a_backend_that_lies_is_shown_as_wrong(name, words):
    reach = verdict(name)
    assert reach.health == "wrong"
    assert words in reach.detail


@onnx
def test_a_backend_that_hangs_is_killed_and_shown_as_failed():
    reach = verdict("hanger", limit_s=5.0)
    assert (reach.health, reach.detail) == ("failed", "onnx f32: hung: no answer within 5 s")


@onnx
def test_a_backend_that_crashes_is_shown_as_failed_with_its_signal():
    reach = verdict("crasher")
    assert reach.health == "failed"
    assert "died of SIGSEGV" in reach.detail


@onnx
def test_a_driver_that_crashes_its_library_leaves_it_the_cpu():
    (info,), reaches = examined("looker", found=(CPU, GPU))
    assert info.usable
    assert [(reach.device, reach.health) for reach in reaches] == [("cpu:0", "ok"), ("gpu:0", "failed")]
    assert "SIGABRT" in reaches[1].detail


def test_a_backend_whose_library_does_not_load_gives_the_reason_and_the_remedy():
    (info,), reaches = examined("absent")
    assert info == BackendInfo("absent", "", "package libabsent does not load.", "pip install absent")
    assert reaches == ()


@onnx
def test_bad_backends_do_not_disturb_a_good_one():
    infos, reaches = examined("crasher", "honest", "absent", "liar")
    assert [info.name for info in infos] == ["crasher", "honest", "absent", "liar"]
    assert {reach.backend: reach.health for reach in reaches} == {"crasher": "failed", "honest": "ok", "liar": "wrong"}


def test_a_device_that_no_backend_mentions_says_what_it_lacks():
    lacking = Device("npu:0", "npu", "Hailo", 0, attributes={"lacks": "no backend drives it: HailoRT"})
    rows = list(probe.nobody((CPU, lacking, GPU), [Reach("honest", "cpu:0")]))
    assert rows == [
        Reach("none", "npu:0", "", "failed", "no backend drives it: HailoRT"),
        Reach("none", "gpu:0", "", "failed", "no backend that is installed drives it"),
    ]


def test_a_glance_runs_nothing_and_believes_nothing():
    machine = probe.glance()
    assert {device.kind for device in machine.devices} == {"cpu"}
    assert {reach.health for reach in machine.reaches} == {"untested"}
    assert "honest" not in {reach.backend for reach in machine.reaches}, "another's package is left to a child"
    assert machine.backend("honest") == BackendInfo("honest", "1.0")


def test_a_glance_shows_the_board_that_it_is_given(tmp_path):
    machine = probe.glance(Board(tmp_path).server(4).root)
    assert [(device.name, device.cores) for device in machine.devices] == [("AMD EPYC 7B13", (0, 1, 2, 3))]


def test_a_glance_imports_no_backend():
    heavy = ("onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "onnx", "zmq")
    code = (
        "import sys; from edgert.devices.probe import glance; glance(); "
        f"print(*set({heavy!r}) & {{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.fixture
def looks(monkeypatch):
    """Counts how often `probe` really looks, in place of the seconds that it takes."""
    seen = []

    def look(machine: Machine, say: probe.Progress) -> Machine:
        seen.append(machine)
        say("looking", 0.5)
        return machine

    monkeypatch.setattr(probe, "_look", look)
    return seen


def entry(folder: Path) -> Path:
    (path,) = (folder / "machines").glob("*.json")
    return path


def test_the_second_probe_comes_from_the_cache(tmp_path, looks):
    first = probe.probe(cache_dir=tmp_path)
    assert probe.probe(cache_dir=tmp_path) == first
    assert probe.known_or_glance(tmp_path) == first
    assert len(looks) == 1


def test_refresh_looks_again(tmp_path, looks):
    probe.probe(cache_dir=tmp_path)
    probe.probe(cache_dir=tmp_path, refresh=True)
    assert len(looks) == 2


def test_a_changed_environment_is_not_answered_from_the_cache(tmp_path, looks, monkeypatch):
    probe.probe(cache_dir=tmp_path)
    monkeypatch.setenv("VK_ICD_FILENAMES", "/somewhere/else.json")
    probe.probe(cache_dir=tmp_path)
    assert len(looks) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"content": {}, "sha256": "0"}', "\0" * 100])
def test_a_damaged_cache_is_reported_and_made_anew(tmp_path, looks, damage, caplog):
    probe.probe(cache_dir=tmp_path)
    entry(tmp_path).write_text(damage)
    with caplog.at_level(logging.WARNING):
        probe.probe(cache_dir=tmp_path)
    assert len(looks) == 2
    assert "damaged" in caplog.text
    assert "content" in json.loads(entry(tmp_path).read_text())


def test_a_cached_machine_of_another_format_is_made_anew(tmp_path, looks):
    from edgert import store

    machine = probe.probe(cache_dir=tmp_path)
    store.write_json(entry(tmp_path), {**machine.to_json(), "format": 99})
    assert probe.probe(cache_dir=tmp_path) == machine
    assert len(looks) == 2


def test_a_cache_folder_that_was_asked_for_and_cannot_be_written_is_an_error(tmp_path, looks):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CacheUnwritable, match="file"):
        probe.probe(cache_dir=tmp_path / "file")


def test_without_a_writable_cache_of_its_own_probe_works_and_says_so(tmp_path, looks, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.delenv("EDGERT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert probe.probe() == probe.probe()
    assert len(looks) == 2
    assert "working without a cache" in caplog.text


def test_progress_is_told(tmp_path, looks):
    told = []
    probe.probe(cache_dir=tmp_path, progress=lambda message, share: told.append((message, share)))
    assert told == [("looking", 0.5)]


@onnx
def test_a_cluster_whose_check_crashes_leaves_the_others_theirs():
    """Both clusters are checked in one child: what the first does to it must not be charged to the second."""
    little = dataclasses.replace(CPU, id="cpu:1")
    _, reaches = examined("choosy", found=(CPU, little))
    assert [(reach.device, reach.health) for reach in reaches] == [("cpu:0", "failed"), ("cpu:1", "ok")]


@pytest.mark.parametrize(
    ("kernel", "pointer_bytes", "runs_as"),
    [("aarch64", 8, "aarch64"), ("aarch64", 4, "armv7l"), ("armv8l", 4, "armv7l"), ("armv7l", 4, "armv7l"),
     ("armv6l", 4, "armv6l"), ("x86_64", 4, "i686"), ("x86_64", 8, "x86_64")],
)  # fmt: skip
def test_a_32_bit_system_on_a_64_bit_kernel_is_not_taken_for_what_the_kernel_is(kernel, pointer_bytes, runs_as):
    assert probe.architecture(kernel, pointer_bytes) == runs_as


def test_people_are_told_that_programs_are_narrower_than_the_kernel(monkeypatch):
    monkeypatch.setattr(probe.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(probe, "architecture", lambda: "armv7l")
    seen = probe.glance()
    assert seen.architecture == "armv7l"
    assert "(aarch64, running armv7l programs)" in seen.system
