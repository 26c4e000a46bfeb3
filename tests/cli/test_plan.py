"""`edgert plan` with its pictures and placements, and `edgert plan diff`: real processes, files and backends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from xml.dom import minidom

import pytest

from edgert.cli.console import FAILED, OK, USAGE
from edgert.data import path

pytest.importorskip("onnxruntime", reason="the bundled .onnx models need it")
pytest.importorskip("onnx", reason="the bundled .onnx models need it")

MODEL = str(path("digits_f32.onnx"))
ORT = ["--targets", "onnxruntime@cpu:0/f32/1t"]
BOOT = "from edgert.cli import main; main()"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def edgert(cache):
    def call(*arguments, code=OK):
        environment = {**os.environ, "EDGERT_CACHE": str(cache), "COLUMNS": "200", "NO_COLOR": "1"}
        done = subprocess.run([sys.executable, "-c", BOOT, *map(str, arguments)], capture_output=True, text=True,
                              env=environment, timeout=300, check=False)  # fmt: skip
        assert done.returncode == code, done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def plans(edgert, tmp_path_factory):
    """Two stored plans of one model, the second with one thread more."""
    folder = tmp_path_factory.mktemp("plans")
    for name, threads in (("a", 1), ("b", 2)):
        targets = f"onnxruntime@cpu:0/f32/{threads}t"
        edgert("plan", MODEL, "-t", targets, "-o", folder / f"{name}.json", "--draw", folder / f"{name}.svg")
    return folder


def test_the_picture_is_of_the_plan(plans):
    picture = (plans / "a.svg").read_text()
    minidom.parseString(picture)
    assert "onnxruntime@cpu:0/f32/1t" in picture
    assert "digits_f32.onnx" in picture


def test_a_page_opens_in_a_browser_and_explains(edgert, tmp_path):
    edgert("plan", MODEL, *ORT, "--draw", tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "segment 1 of 1: onnxruntime@cpu:0/f32/1t" in page


def test_a_bundle_is_drawn_and_explained_by_the_model_inside(edgert, tmp_path):
    edgert("compile", MODEL, *ORT, "-o", tmp_path / "digits.edgert")
    done = edgert("plan", tmp_path / "digits.edgert", "--draw", tmp_path / "plan.svg", "--explain")
    assert "segment 1 of 1" in done.stdout
    assert ">Softmax<" in (tmp_path / "plan.svg").read_text()


def test_an_explanation_goes_by_segment(edgert):
    text = edgert("plan", MODEL, *ORT, "--explain").stdout
    for words in ("segment 1 of 1", "2 Conv", "cause", "candidates"):
        assert words in text


def test_a_placement_goes_out_and_comes_back_as_targets(edgert, tmp_path):
    edgert("plan", MODEL, *ORT, "--export-placement", tmp_path / "placed.onnx")
    document = json.loads(edgert("plan", MODEL, "--import-placement", tmp_path / "placed.onnx", "--json").stdout)
    assert {row["target"] for row in document["candidates"] if row["outcome"] == "ok"} == {ORT[1]}


def test_diff_tells_people_and_programs_what_changed(edgert, plans):
    text = edgert("plan", "diff", plans / "a.json", plans / "b.json").stdout
    assert "onnxruntime@cpu:0/f32/1t" in text
    assert "onnxruntime@cpu:0/f32/2t" in text
    document = json.loads(edgert("plan", "diff", plans / "a.json", plans / "b.json", "--json").stdout)
    changes = {change["what"]: change for change in document["changes"]}
    assert changes["target"]["after"] == "onnxruntime@cpu:0/f32/2t"


def test_a_plan_beside_itself_shows_no_difference(edgert, plans):
    assert "no difference" in edgert("plan", "diff", plans / "a.json", plans / "a.json").stdout


def test_a_model_may_be_called_diff(edgert, tmp_path):
    (tmp_path / "diff").write_bytes(path("digits_f32.onnx").read_bytes())
    assert "onnxruntime@cpu:0/f32/1t" in edgert("plan", tmp_path / "diff", *ORT).stdout


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"plan_format": 99}', "nonsense", '{"plan_format": 1, "id": 3}'])
def test_what_is_no_plan_is_told_with_a_remedy(edgert, plans, tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    done = edgert("plan", "diff", plans / "a.json", tmp_path / "bad.json", code=FAILED)
    assert "bad.json" in done.stderr
    assert "try: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_changed_by_hand_is_told(edgert, plans, tmp_path):
    document = json.loads((plans / "a.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps({**document, "measured_s": 1e-9}))
    assert "its content is" in edgert("plan", "diff", plans / "a.json", tmp_path / "bad.json", code=FAILED).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--draw", "plan.bmp"], [".svg", ".html"]),
        (["--draw", "/absent/plan.svg"], ["/absent/plan.svg"]),
        (["--import-placement", MODEL], ["no device configuration"]),
        (["--export-placement", "/absent/out.onnx"], ["/absent/out.onnx"]),
    ],
)
def test_what_cannot_be_done_is_told_with_a_remedy(edgert, arguments, words):
    done = edgert("plan", MODEL, *ORT, *arguments, code=FAILED)
    assert "try: " in done.stderr
    assert all(word in done.stderr for word in words)


def test_diff_wants_two_plans(edgert, plans):
    edgert("plan", "diff", plans / "a.json", code=USAGE)
