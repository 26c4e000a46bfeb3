"""edgert on emulated boards: real ARM binaries, each board's own instructions, its /proc and /sys. `make test-cross`.

No claim about time is made here, and none can be: see docs/boards.md.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from packaging.utils import canonicalize_name

import edgert
from cross import board as boards
from cross import sysroot
from cross.golden import GOLDEN
from cross.sysroot import cache
from tests.cross.conftest import known_for
from tests.cross.visits import DATA, EXECUTORS, LACKING, LIMITS, ORPHANS, TINY

ARM64 = tuple(name for name in boards.names() if boards.load(name).architecture == "arm64")
WITHOUT_DOT = ("pi3", "pi4", "zero2w")
"""The old ONNX Runtime uses instructions that came with the dot product's generation of cores."""


def each(*names):
    """A test for each board; `conftest.group_of` says which of them share a worker."""
    return pytest.mark.parametrize("name", names)


ROUNDED_OTHERWISE = {("cortex-a53", "mnv2-u8"): 3}
"""Steps between LiteRT's answer and the known one: both XNNPACK's kernels for that core (3) and the builtin ones (2)
round otherwise than the machine on which the answer was made. Such an answer must not be called verified.
"""


def assert_known(board, target, record, label):
    """Every INT8 model of EDGERT_MODELS within a step of its known answer; tflite-runtime exactly on its own."""
    known = known_for(board.environment)
    if not known:
        pytest.skip("EDGERT_MODELS is not set: the real models with known answers are not here")
    own = board.environment in ("armhf", "arm64-tflite-runtime")
    said = []
    for model in known:
        steps, verified = board.check("known", *known[model], target)[target]
        usual = 0 if own else 1
        most = ROUNDED_OTHERWISE.get((board.board.emulated_cpu, model), usual)
        assert steps <= most, (model, steps)
        assert steps <= usual or not verified, (model, steps)
        said.append(f"{model} {_distance(steps)}{'' if steps <= usual else ', not called verified'}")
    record(board.board.name, label, "; ".join(said))


def _distance(steps):
    return "exact" if steps == 0 else f"{steps:.0f} LSB"


def assert_as_golden(model, rows, targets):
    """Exact but for the float softmax at the end of the ONNX model, which no step of an integer could hide behind."""
    expected = np.load(GOLDEN / "digits.npz")[model]
    if model.endswith(".onnx"):
        np.testing.assert_allclose(rows, expected, rtol=1e-5)
        return 0
    distance = int(np.abs(rows.astype(int) - expected.astype(int)).max())
    assert distance <= 1, (targets, distance)
    return distance


# ---- every board


@each(*boards.names())
def test_the_cpu_is_seen_as_the_board_has_it(on_board, record, name):
    board = on_board(name)
    seen = board.check("clusters")
    assert [tuple(device["cores"]) for device in seen] == [cluster.cores for cluster in board.board.clusters]
    assert [device["name"].split(",")[0] for device in seen] == [cluster.design for cluster in board.board.clusters]
    record(name, "cores", " + ".join(f"{cluster.count} {cluster.design}" for cluster in board.board.clusters))


@each(*boards.names())
def test_probe_finds_backends_that_count_right(on_board, record, name):
    board = on_board(name)
    seen = board.check("probe")
    assert seen["architecture"] == {"arm64": "aarch64", "armhf": "armv7l"}[board.board.architecture]
    assert seen["memory_bytes"] == [board.board.memory_bytes]
    wanted = {"litert"} if board.board.architecture == "armhf" else {"litert", "onnxruntime", "reference"}
    right = {way for way, (health, _) in seen["reaches"].items() if health == "ok"}
    assert wanted <= right, seen["reaches"]
    assert all(health == "ok" for health, _ in seen["reaches"].values()), seen["reaches"]
    record(name, "probe", ", ".join(f"{way} {seen['backends'][way]['version']}" for way in sorted(wanted)))


@each(*boards.names())
@pytest.mark.parametrize("model", ["digits_i8.tflite", "digits_i8.onnx"])
def test_an_int8_model_is_planned_and_right(on_board, record, name, model):
    board = on_board(name)
    if board.board.architecture == "armhf" and model.endswith(".onnx"):
        refused = board.check("refusal", f"{DATA}/{model}")
        assert refused["kind"] == "MissingPackage"
        assert "pip install" in refused["remedy"]
        record(name, model, "refused: no reader, no runtime for 32 bits")
        return
    answer = board.check("digits", model)
    assert answer["right"] == answer["of"]
    assert not answer["degraded"]
    distance = assert_as_golden(model, np.load(board.folder / f"out/{model}.npy"), answer["targets"])
    record(name, model, f"{', '.join(answer['targets'])}: {_distance(distance)}")


@each(*boards.names())
def test_known_models_give_known_answers(on_board, record, name):
    assert_known(on_board(name), "litert@*", record, "known models")


@each(*boards.names())
def test_a_killed_child_is_told_and_replaced(on_board, record, name):
    answer = on_board(name).check("recovery")
    assert answer["told"]["kind"] == "ChildDied"
    assert re.search("SIGKILL|is gone", answer["told"]["message"])  # a call made while it dies, or the next one
    assert answer["same"]
    record(name, "kill -9 of a child", "told as ChildDied, next answer the same")


@each(*EXECUTORS)
def test_an_executor_answers_over_ipc_and_loses_no_request_when_it_is_killed(on_board, record, name):
    answer = on_board(name).check("executor")
    assert answer["same"]
    assert answer["first"]
    assert answer["second"]
    assert not set(answer["first"]) & set(answer["second"])
    before, during, after = answer["reasons"]
    assert (before, after) == ("", "")
    assert "died of SIGKILL" in during
    record(name, "executor over ipc, kill -9", "answered as a fallback that says why, then restored")


@each(*ORPHANS)
def test_no_child_outlives_its_parent(on_board, record, name):
    assert on_board(name).check("orphan")["gone"]
    record(name, "kill -9 of the parent", "child gone too")


# ---- other sets of packages


@each("pi4")
def test_an_operator_without_an_integer_kernel_alone_runs_in_floats(on_board, record, tmp_path, name):
    answer = on_board(name).check("lacking", LACKING)
    assert answer["outcomes"]["litert@cpu:0/i8/1t"] == "refused"
    assert answer["targets"] == ["litert+mixed@cpu:0/i8/1t"]
    path = on_board(name).folder / "out" / Path(LACKING).name
    with edgert.load(path, budget_s=0, cache_dir=tmp_path, targets=["litert@*/1t"]) as here:
        expected = next(iter(here.run([np.arange(64, dtype=np.int8)[None] * 2]).values()))
    distance = np.abs(np.int64(answer["values"]) - expected.astype(int)).max()
    assert distance <= 1
    record(name, "an op without an INT8 kernel", f"refused in integers, alone in floats: {_distance(distance)}")


@each("zero2w", "pi4", "pi5")
def test_the_smallest_set_of_packages_is_exact(on_board, record, name):
    board = on_board(name, "arm64-tflite-runtime")
    answer = board.check("digits", "digits_i8.tflite")
    assert answer["right"] == answer["of"]
    rows = np.load(board.folder / "out/digits_i8.tflite.npy")
    assert assert_as_golden("digits_i8.tflite", rows, answer["targets"]) == 0
    assert_known(board, "litert@*", record, "tflite-runtime")


@each(*ARM64)
def test_a_backend_that_dies_on_this_core_is_named_and_another_answers(on_board, record, name):
    board = on_board(name, "arm64-control")
    seen = board.check("probe")["backends"]["onnxruntime"]
    if name in WITHOUT_DOT:
        assert seen["version"] == ""
        assert "died of SIGILL" in seen["reason"]
    else:
        assert (seen["version"], seen["reason"]) == ("1.21.0", "")
    answer = board.check("digits", "digits_i8.tflite")
    assert answer["right"] == answer["of"]
    assert answer["targets"][0].startswith("litert")
    record(name, "onnxruntime 1.21.0", "dies of SIGILL, LiteRT answers" if seen["reason"] else "usable")


@each("pi4", "pi2")
def test_the_extra_for_a_pi_brings_one_backend_and_no_more(on_board, record, name, tmp_path):
    """By the board's own pip, from an index that has much more; numpy and pyzmq are Debian's on 32 bits."""
    architecture = boards.load(name).architecture
    board = on_board(name, sysroot.BARE, binds={sysroot.index(architecture): "/srv/models"}, folder=tmp_path,
                     variables={"PYTHONPATH": "/srv/models"})  # fmt: skip
    # pip looks into its interpreter for the kind of 32-bit ARM, and a board's python3 is the program that starts QEMU.
    program = "import sys; sys.executable = '/usr/bin/python3.11'; from pip._internal.cli.main import main; main()"
    done = board.run("-c", program, "--disable-pip-version-check", "install", "--dry-run", "--no-index",
                     "--find-links", "/srv/models", "edgert[pi]")  # fmt: skip
    assert "Would install " in done.stdout, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("Would install "))
    brought = {canonicalize_name(item.rpartition("-")[0]) for item in line.split()[2:]}
    backends = brought & {"ai-edge-litert", "tflite-runtime", "onnxruntime", "openvino"}
    assert backends == ({"tflite-runtime"} if architecture == "armhf" else {"ai-edge-litert"})
    debians = {"numpy", "pyzmq"} if architecture == "armhf" else set()
    assert {"edgert", "numpy", "pyzmq", "typer", "rich"} - debians <= brought
    assert not brought & (debians | {"onnx", "onnx-ir", "ortools", "scipy", "pandas"})
    record(name, 'pip install "edgert[pi]"', f"{', '.join(sorted(backends))} and {len(brought) - 2} packages for it")


# ---- memory


@each("pi4")
@pytest.mark.parametrize(
    ("target", "file", "most_mb"),
    [("litert@*", "known", 90), ("onnxruntime@*", "zoo", 120)],
)
def test_an_int8_mobilenet_leaves_room_on_a_small_board(on_board, record, int8_mobilenet, name, target, file, most_mb):
    """Resident pages of the guest, counted in QEMU's smaps where the guest's own maps are."""
    path, binds = int8_mobilenet(file)
    board = on_board(name, binds=binds)
    board.check("resident", path, target)  # plans; the next finds the plan
    seen = board.check("resident", path, target)
    assert seen["readers"] == []
    megabytes = seen["bytes"] / 1e6
    assert 15 < megabytes <= most_mb
    record(name, f"resident, INT8 MobileNetV2, {target.partition('@')[0]}", f"{megabytes:.0f} MB")


@each(*LIMITS)
def test_a_limit_that_nothing_fits_in_is_refused_with_the_figures(on_board, record, name):
    refused = on_board(name).check(*TINY)
    assert refused["kind"] == "Infeasible"
    assert "1000000 bytes" in refused["message"]
    assert "Raise the memory limit by" in refused["remedy"]
    record(name, "memory limit, too small", "Infeasible, with the figures")


@each("zero2w")
def test_where_little_memory_is_left_the_guard_steps_in_unasked(on_board, record, name, tmp_path):
    """QEMU's own memory counts as the process's, so that nothing fits here; on a board this model would take turns."""
    board = on_board(name, folder=tmp_path)
    files = dict(boards.overlay(board.board))
    files["proc/meminfo"] = "MemTotal: 524288 kB\nMemFree: 30720 kB\nMemAvailable: 61440 kB\n"
    boards.write(files, tmp_path / "overlay")
    refused = board.check("refusal", "/srv/product/edgert/data/digits_i8.tflite")
    assert refused["kind"] == "Infeasible"
    assert "Raise the memory limit by" in refused["remedy"]
    record(name, "60 MB left", "Infeasible, with the figures, before anything is loaded")


@pytest.fixture
def int8_mobilenet(known_models):
    """Where a board finds it: the .tflite of EDGERT_MODELS, or the zoo's .onnx."""

    def find(kind):
        if kind == "known":
            return "/srv/known/mobilenet_v2_1.0_224_quant.tflite", {}
        zoo = pytest.importorskip("bench.zoo", reason="the zoo is built with onnx")
        built = zoo.build("mobilenet_v2", "i8", cache() / "zoo")
        return f"/srv/models/{built.name}", {built.parent: "/srv/models"}

    return find


# ---- bad input and bad times


@pytest.fixture(scope="module")
def bundle_of_a_pi4(on_board, tmp_path_factory):
    """A folder with a bundle that was compiled on a Pi 4."""
    board = on_board("pi4")
    made = board.check("compile_bundle", "digits_i8.tflite")
    assert made["architecture"] == "aarch64"
    return Path(shutil.copy(board.folder / "out/digits.edgert", tmp_path_factory.mktemp("bundle"))).parent


@each("pi4")
def test_a_bundle_runs_where_it_was_made(on_board, record, bundle_of_a_pi4, name):
    board = on_board(name, binds={bundle_of_a_pi4: "/srv/models"})
    answer = board.check("run_bundle", "/srv/models/digits.edgert")
    assert not answer["degraded"]
    assert answer["readers"] == []
    record(name, "own bundle", "runs, no reader of models loaded")


@each("pi2")
def test_a_bundle_of_64_bits_is_refused_on_32(on_board, record, bundle_of_a_pi4, name):
    board = on_board(name, binds={bundle_of_a_pi4: "/srv/models"})
    refused = board.check("refusal", "/srv/models/digits.edgert")
    assert refused["kind"] == "ModelUnsupported"
    assert "architecture: made for aarch64, here armv7l" in refused["message"]
    assert "edgert compile" in refused["remedy"]
    record(name, "bundle of a pi4", "ModelUnsupported, with the differences")


@each("pi4")
def test_a_cache_on_a_full_disk_is_refused_by_name(on_board, record, name):
    board = on_board(name, tmpfs={"/srv/cache": "4k"})
    refused = board.check("refusal", "/srv/product/edgert/data/digits_i8.tflite")
    assert refused["kind"] == "CacheUnwritable"
    assert "/srv/cache" in refused["message"]
    assert "space" in refused["remedy"]
    record(name, "full disk", "CacheUnwritable")


@each("pi4")
def test_a_read_only_root_needs_a_named_cache_or_none(on_board, record, name):
    named = on_board(name, variables={"EDGERT_CACHE": "/var/edgert"})
    refused = named.check("refusal", "/srv/product/edgert/data/digits_i8.tflite")
    assert refused["kind"] == "CacheUnwritable"
    assert "Read-only file system" in refused["message"]
    unnamed = on_board(name, variables={"EDGERT_CACHE": "", "XDG_CACHE_HOME": "/var/cache"})
    answer = unnamed.check("digits", "digits_i8.tflite")
    assert answer["right"] == answer["of"]
    record(name, "read-only root", "runs without a cache; a cache asked for is CacheUnwritable")


@each("pi4")
def test_a_clock_at_1970_changes_nothing(on_board, record, name, tmp_path):
    faked = {
        "QEMU_SET_ENV": "LD_PRELOAD=/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
        "FAKETIME": "@1970-01-01 00:00:10",
        "DONT_FAKE_MONOTONIC": "1",
    }
    board = on_board(name, variables=faked, folder=tmp_path)
    answer = board.check("clock")
    assert answer["year"] == 1970
    assert answer["same"]
    record(name, "clock at 1970", "loads, remembers, loads again")
