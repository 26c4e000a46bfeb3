"""What people see of machines, plans, results and benchmarks, and what programs read as JSON."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from edgert.bench import Measured, Report
from edgert.cli import answers, console
from edgert.cli.classes import best_classes, read_labels
from edgert.cli.reports import overall_view, report_view
from edgert.cli.views import machine_view, plan_view, ranges, receipt_line
from edgert.errors import InputError, OptionError, PrepareRefused
from edgert.graph import Quantization, Value
from edgert.machine import BackendInfo, Device, Link, Machine, Reach
from edgert.plan import Receipt
from edgert.profile import OutputError, Row, Target, Timing
from edgert.race import Interval
from edgert.units import rate_text, size_text, three_digits, time_text

TARGET = Target.parse("onnxruntime@cpu:0/f32/2t")
RECEIPT = Receipt("0123456789ab", (TARGET,), False, True, 0.00123)


def rendered(thing, width=80):
    made = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed with the test
    with made.file:
        made.print(thing)
        return made.export_text()


@pytest.fixture
def machine():
    return Machine(
        architecture="x86_64",
        devices=(
            Device("cpu:0", "cpu", "Some [CPU]", 16 << 30, cores=(0, 1, 2, 5), features=("avx2", "avx512f"),
                   bandwidth_bytes_per_s=12.3e9, peak_ops_per_s={"float32": 1.5e12}),
            Device("gpu:0", "gpu", "llvmpipe", 0, software=True, driver="lavapipe 25"),
        ),
        backends=(BackendInfo("onnxruntime", "1.32.0"), BackendInfo("openvino", reason="not installed",
                                                                      remedy='pip install "edgert[openvino]"')),
        reaches=(Reach("onnxruntime", "cpu:0", health="ok"),
                 Reach("onnxruntime", "gpu:0", "webgpu", "wrong", "off by 0.3")),
        system="Linux 6.1, Debian 12",
    )  # fmt: skip


def test_links_are_shown_where_there_are_any(machine):
    assert "bandwidth" not in rendered(machine_view(machine), 80)
    linked = dataclasses.replace(machine, links=(Link("cpu:0", "gpu:0", 7.5e-5, 3.2e9),))
    (row,) = [line for line in rendered(machine_view(linked), 80).splitlines() if "3.2" in line]
    assert row.split() == ["cpu:0", "gpu:0", "75.0", "µs", "3.20", "GB/s"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_machine_shows_devices_backends_reasons_and_remedies(machine, width):
    text = rendered(machine_view(machine), width)
    for words in ("Some [CPU]", "4 cores: 0-2,5", "12.3 GB/s", "1.50 Top/s float32", "1.32.0", "not installed", "wrong",
                  'pip install "edgert[openvino]"', "off by 0.3", "onnxruntime+webgpu", "software"):  # fmt: skip
        assert words in text
    assert max(len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "-"),
        (float("nan"), "-"),
        (8.5e-7, "850 ns"),
        (1.23e-5, "12.3 µs"),
        (9.999e-4, "1.00 ms"),
        (4.5612, "4.56 s"),
    ],
)
def test_times_have_three_digits_and_a_unit(seconds, text):
    assert time_text(seconds) == text


def test_sizes_rates_and_numbers_have_units():
    assert (size_text(0), size_text(512), size_text(3.61e6), size_text(16 << 30)) == (
        "-",
        "512 B",
        "3.61 MB",
        "17.2 GB",
    )
    assert (rate_text(0, "B"), rate_text(1.85e12, "op")) == ("-", "1.85 Tops/s"[:4] + " Top/s")
    assert (three_digits(1234.5), three_digits(0.01234)) == ("1234", "0.0123")


def test_core_numbers_are_joined():
    assert (ranges((0, 1, 2, 5, 7, 8)), ranges(())) == ("0-2,5,7-8", "")


def test_a_receipt_tells_of_a_fallback():
    assert "degraded" not in rendered(receipt_line(RECEIPT))
    text = rendered(receipt_line(Receipt("0123456789ab", (TARGET,), True, False, 0.001, "gpu:0 [lost]")), 200)
    assert "degraded: gpu:0 [lost]" in text
    assert "not verified" in text


def test_outputs_are_summed_up():
    outputs = {"scores": np.array([[1.0, 3.0]], np.float32), "words": np.array(["a"], object), "many": [np.zeros(2)]}
    text = rendered(answers.view(outputs, RECEIPT, ["x: random"], None).__iter__().__next__())
    assert "x: random" in text
    document = answers.document(outputs, RECEIPT, ["x: random"], None)
    scores = document["outputs"]["scores"]
    assert (scores["dtype"], scores["shape"], scores["min"], scores["max"]) == ("float32", [1, 2], 1.0, 3.0)
    assert document["outputs"]["words"]["values"] == ["a"]
    assert document["outputs"]["many"]["values"] == [[0.0, 0.0]]
    assert document["receipt"]["targets"] == ["onnxruntime@cpu:0/f32/2t"]


def test_texts_and_maps_are_shown_shortened_and_harmless():
    words = np.array([["cat", "x" * 1000, "\x1b[2J [red]"] + ["dog"] * 9], object)
    outputs = {
        "words": words,
        "shares": [{"setosa": 0.98765, 7: np.float32(2)}],
        "numbers": [np.zeros(2)],
        "none": None,
    }
    shown = "".join(rendered(line, 500) for line in answers.view(outputs, RECEIPT, [], None))
    assert "words: 'cat', '" + "x" * 60 + "'... (1000 long), '\\x1b[2J [red]', 'dog'" in shown
    assert "and 4 more" in shown
    assert "shares: 'setosa': 0.9877, 7: 2" in shown
    assert "\x1b" not in shown
    assert shown.count("text ") == 2


def test_large_outputs_are_in_json_by_their_summary():
    assert answers.document({"x": np.zeros(1001)}, RECEIPT, [], None)["outputs"]["x"]["values"] is None


def test_json_says_null_where_it_has_no_number(capsys):
    console.show_json({"a": float("nan"), "b": (float("inf"), 1.5), "c": {"d": None}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_the_best_classes_are_named():
    top = best_classes({"y": np.array([[0.1, 0.7, 0.2]])}, [], ["ant", "bee", "cow"], 2, softmax=False)
    assert [(each.index, each.label, each.score) for each in top] == [(1, "bee", 0.7), (2, "cow", 0.2)]


def test_quantised_scores_are_shown_as_what_they_stand_for():
    value = Value("y", "uint8", (1, 2), quantization=Quantization((1 / 256,), (0,)))
    top = best_classes({"y": np.array([[64, 192]], np.uint8)}, [value], None, 5, softmax=False)
    assert [(each.label, each.score) for each in top] == [("class 1", 0.75), ("class 0", 0.25)]


def test_labels_of_another_model_are_refused():
    with pytest.raises(OptionError, match="2 labels, output 'y' has 3 classes"):
        best_classes({"y": np.zeros((1, 3))}, [], ["a", "b"], 1, softmax=False)


def test_an_answer_that_is_no_row_of_scores_has_no_classes():
    with pytest.raises(OptionError, match="no output is a row"):
        best_classes({"boxes": np.zeros((4, 4))}, [], None, 1, softmax=False)


def test_labels_are_read_from_lines_and_from_json(tmp_path):
    (tmp_path / "a.txt").write_text("ant\nbee \n\n")
    (tmp_path / "a.json").write_text('["ant", "bee"]')
    assert read_labels(tmp_path / "a.txt") == read_labels(tmp_path / "a.json") == ("ant", "bee")
    with pytest.raises(InputError, match=r"absent\.txt"):
        read_labels(tmp_path / "absent.txt")


def measured(name, role, p50_s, over=None):
    return Measured(name, role, "ok", p50_s=p50_s, p95_s=p50_s * 1.1, p99_s=p50_s * 1.2, best_s=p50_s * 0.9,
                    items_per_s=1 / p50_s, calls=100, memory_bytes=10**8, prepare_s=0.1, over_chosen=over)  # fmt: skip


@pytest.fixture
def report():
    ratio = Interval(0.97, 0.94, 1.0, 20)
    return Report(
        model="net[1].onnx", plan="0123456789ab", objective="latency", precision="own", chosen=str(TARGET),
        verified=True, rival="openvino@cpu:0/f32/2t", over_rival=ratio, speedup=Interval(2.0, 1.9, 2.1, 20),
        rows=(measured(str(TARGET), "chosen", 0.001), measured("edgert", "edgert", 0.00101, ratio),
              measured("onnxruntime, plain", "baseline", 0.002),
              Measured("litert@cpu:0/f32", "candidate", "refused", "no [it]")),
        seconds=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("width", [80, 120])
def test_a_benchmark_shows_everybody_and_a_verdict(report, width):
    text = rendered(report_view(report), width)
    for words in ("net[1].onnx", "plain", "1.00", "refused", "no [it]", "holds", "0.97 (0.94-1.00)"):
        assert words in text
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_choice_that_lost_is_said_to_be_lost(report):
    lost = dataclasses.replace(report, over_rival=Interval(1.1, 1.05, 1.15, 9))
    assert "does not hold" in rendered(report_view(lost))
    assert "holds for 1 of 2" in rendered(overall_view([report, lost]))


@pytest.mark.parametrize(("name", "start"), [("x.png", b"\x89PNG"), ("x.svg", b"<?xml")])
def test_a_benchmark_can_be_drawn(report, tmp_path, name, start):
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    from edgert.cli.picture import draw

    draw([report, report, report], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_an_error_is_one_line_with_its_remedy(capsys):
    console.show_error(PrepareRefused("openvino@cpu:0/f32 refuses [this]: " + "x" * 200, "Try another.", target="t"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("error: openvino@cpu:0/f32 refuses [this]: xxx")
    assert err.splitlines()[1].strip() == "try: Try another."


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    def half(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OptionError, match="cannot be written"):
        console.write_file(tmp_path / "x.json", half)
    assert list(tmp_path.iterdir()) == []
    console.write_file(tmp_path / "x.json", lambda path: path.write_text("whole"))
    assert (tmp_path / "x.json").read_text() == "whole"


def test_candidates_show_why_they_are_out(plan):
    text = rendered(plan_view(plan), 120)
    for words in ("onnxruntime@cpu:0/f32/2t", "1.00 ms", "2e-07 of range", "wrong", "off by 3 of 1", "two agree"):
        assert words in text


@pytest.fixture
def plan():
    import inspect

    from edgert.plan import Instance, Plan, Segment, Verification

    error = OutputError("y", 2e-7, 0, 120.0, True)
    known = {
        "model": "m", "machine": "f", "versions": {}, "objective": "latency", "precision": "own",
        "inputs": (Value("x", "float32", (1, 2)),), "outputs": (Value("y", "float32", (1, 2)),),
        "segments": (Segment(TARGET),), "instances": (Instance(0),), "measured_s": 0.001,
        "verification": Verification("two agree", (error,)), "format": "onnx", "own_precision": "f32",
        "candidates": (Row(TARGET, "ok", timing=Timing(0.001, 0.0009, 0.0012, 100, 10), errors=(error,)),
                       Row(Target.parse("openvino@cpu:0/f32"), "wrong", "off by 3 of 1")),
    }  # fmt: skip
    accepted = inspect.signature(Plan).parameters
    return Plan(**{name: value for name, value in known.items() if name in accepted})


def test_lines_of_an_explanation_stay_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    line = f"[bold]{'x' * 100} and {'y' * 100}"
    console.show_text(line)
    assert capsys.readouterr().out == f"{line}\n"
