"""`edgert compile` and `edgert profile` as people call them, and what `plan` and `run` do with a bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgert.bundle import read, write
from edgert.cli.console import FAILED, OK, PARTIAL
from edgert.data import path
from edgert.machine import Machine

pytest.importorskip("onnxruntime", reason="the bundled .onnx models need it")
pytest.importorskip("onnx", reason="the bundled .onnx models need it")

MODEL = path("digits_f32.onnx")
TARGET = "onnxruntime@cpu:0/f32/1t"
ORT = ("--targets", TARGET)
BOOT = "from edgert.cli import main; main()"


@pytest.fixture(scope="module")
def edgert(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def call(*arguments, code=OK):
        environment = {**os.environ, "EDGERT_CACHE": str(cache), "COLUMNS": "120", "NO_COLOR": "1"}
        done = subprocess.run([sys.executable, "-c", BOOT, *map(str, arguments)], capture_output=True, text=True,
                              env=environment, timeout=300, check=False)  # fmt: skip
        assert done.returncode == code, done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def files(edgert, tmp_path_factory):
    """machine.json, profile.json and digits.edgert of this machine."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "machine.json").write_text(edgert("probe", "--json").stdout)
    edgert("profile", MODEL, *ORT, "-o", folder / "profile.json")
    edgert("compile", MODEL, "--machine", folder / "machine.json", "--profile", folder / "profile.json",
           "-o", folder / "digits.edgert")  # fmt: skip
    return folder


def test_a_bundle_is_made_from_a_machine_and_a_profile(files):
    made = read(files / "digits.edgert")
    assert [str(target) for target in made.plan.targets] == [TARGET]
    assert made.plan.verification.verified


def test_a_plan_can_be_made_from_the_same_two_files(edgert, files):
    there = ("--machine", files / "machine.json", "--profile", files / "profile.json")
    assert json.loads(edgert("plan", MODEL, *there, "--json").stdout)["id"] == read(files / "digits.edgert").plan.id


def test_a_bundle_runs_and_names_its_plan(edgert, files):
    bundle = files / "digits.edgert"
    document = json.loads(edgert("run", bundle, "-i", "random", "--json").stdout)
    assert document["receipt"]["plan"] == read(bundle).plan.id
    assert document["receipt"]["targets"] == [TARGET]
    assert read(bundle).plan.id in edgert("plan", bundle).stdout


def test_without_a_profile_the_machine_at_hand_is_measured(edgert, tmp_path):
    document = json.loads(edgert("compile", MODEL, *ORT, "--json", "-o", tmp_path / "d.edgert").stdout)
    assert document["targets"] == [TARGET]
    assert document["size_bytes"] == (tmp_path / "d.edgert").stat().st_size
    assert set(document["members"]) == set(read(tmp_path / "d.edgert").members)
    text = edgert("compile", MODEL, *ORT, "-o", tmp_path / "d.edgert").stdout
    assert TARGET in text
    assert document["plan"] in text  # the plan was remembered


def test_the_bundle_goes_beside_the_model_when_nothing_is_said(edgert, tmp_path):
    (tmp_path / "m.onnx").write_bytes(MODEL.read_bytes())
    edgert("compile", tmp_path / "m.onnx", *ORT)
    assert read(tmp_path / "m.edgert").plan


def test_a_profile_on_stdout_is_the_same_file(edgert, files, tmp_path):
    (tmp_path / "p.json").write_text(
        edgert("profile", MODEL, *ORT, "--json").stdout
    )  # fmt: skip
    assert json.loads((tmp_path / "p.json").read_text()) == json.loads((files / "profile.json").read_text())


def test_another_machine_needs_a_profile_of_it(edgert, files, tmp_path):
    other = json.loads((files / "machine.json").read_text())
    other["devices"][0]["name"] = "a board"
    other.pop("fingerprint")
    (tmp_path / "m.json").write_text(json.dumps(other))
    assert "fingerprint" in edgert("compile", MODEL, "--machine", tmp_path / "m.json", code=FAILED).stderr
    assert not MODEL.with_suffix(".edgert").exists()


def test_a_profile_of_another_model_is_refused(edgert, files, tmp_path):
    out = tmp_path / "x.edgert"
    words = edgert(
        "compile", path("digits_i8.onnx"), "--profile", files / "profile.json", "-o", out, code=FAILED
    ).stderr
    assert "model: measured" in words
    assert not out.exists()


def forged(source, to):
    """The bundle as if it had been made on another CPU."""
    made = read(source)
    document = made.machine.to_json()
    document["devices"][0]["name"] = "another CPU"
    machine = Machine.from_json(document)
    plan, profile = replace(made.plan, machine=machine.fingerprint), replace(made.profile, machine=machine.fingerprint)
    return write(to, MODEL, plan, machine, profile).path


def test_a_fallbacks_answer_has_the_exit_code_of_one(edgert, files, tmp_path):
    done = edgert("run", forged(files / "digits.edgert", tmp_path / "x.edgert"), "-i", "random", code=PARTIAL)
    assert "degraded: made for another machine" in " ".join(done.stdout.split())
    assert "made for another CPU" in " ".join(done.stdout.split())


def test_a_damaged_bundle_is_one_line_and_a_remedy(edgert, files, tmp_path):
    (tmp_path / "x.edgert").write_bytes((files / "digits.edgert").read_bytes()[:-100])
    words = edgert("run", tmp_path / "x.edgert", "-i", "random", code=FAILED).stderr
    assert "Traceback" not in words
    assert "edgert compile" in words


def test_a_model_whose_file_has_values_for_inputs_can_be_packed(edgert, tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in ("x", "scale", "y")]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "scale"], ["y"])], "g", values[:2], values[2:],
        [numpy_helper.from_array(np.float32([3]), "scale")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 16)]), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.float32([2]))
    edgert("compile", tmp_path / "m.onnx", *ORT, "--budget", "1")
    shown = json.loads(edgert("run", tmp_path / "m.edgert", "-i", f"x={tmp_path / 'x.npy'}", "--json").stdout)
    assert shown["outputs"]["y"]["values"] == [6.0]
    for name in ("m.onnx", "m.edgert"):
        wishes = [] if name.endswith("edgert") else [*ORT, "--budget", "1"]
        inputs = ["-i", f"x={tmp_path / 'x.npy'}", "-i", f"scale={tmp_path / 'x.npy'}"]
        said = edgert("run", tmp_path / name, *inputs, *wishes, code=FAILED).stderr
        assert "scale" in said
