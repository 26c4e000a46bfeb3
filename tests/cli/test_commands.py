"""The commands as people and programs call them: real processes, real files, real backends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from edgert.cli import app
from edgert.cli.console import FAILED, INTERRUPTED, OK, PARTIAL, USAGE
from edgert.data import path
from edgert.machine import Machine
from edgert.plan import Plan

pytest.importorskip("onnxruntime", reason="the bundled .onnx models need it")
pytest.importorskip("onnx", reason="the bundled .onnx models need it")

MODEL = str(path("digits_f32.onnx"))
ORT = ["--targets", "onnxruntime@cpu:0/f32/1t"]
BOOT = "from edgert.cli import main; main()"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def edgert(cache):
    def call(*arguments, code=OK, **options):
        environment = {**os.environ, "EDGERT_CACHE": str(cache), "COLUMNS": "100", "NO_COLOR": "1"}
        done = subprocess.run([sys.executable, "-c", BOOT, *map(str, arguments)], capture_output=True, text=True,
                              env=environment, timeout=300, check=False, **options)  # fmt: skip
        assert done.returncode == code, done.stderr
        return done

    return call


@pytest.fixture
def digit(tmp_path):
    stored = np.load(path("digits.npz"))
    np.save(tmp_path / "digit.npy", (stored["images"][0] / 16).astype(np.float32)[None, None])
    return tmp_path / "digit.npy", int(stored["labels"][0])


def test_help_is_quick_to_import_and_names_every_command():
    code = "import json, sys, edgert.cli; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"onnx", "onnxruntime", "openvino", "ai_edge_litert", "zmq", "PIL", "matplotlib"}
    assert not heavy & set(json.loads(loaded))
    text = CliRunner().invoke(app, ["--help"]).output
    for command in ("probe", "plan", "run", "bench", "demo", "version", "Exit codes"):
        assert command in text


@pytest.mark.parametrize("arguments", [["nonsense"], ["plan"], ["plan", MODEL, "--objective", "fame"],
                                       ["run", MODEL, "--resize", "axb"], ["run", MODEL, "--mean", "a"],
                                       ["plan", MODEL, "--budget", "-1"]])  # fmt: skip
def test_a_wrong_command_line_is_a_usage_error(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == USAGE


def test_probe_tells_programs_what_it_tells_people(edgert):
    machine = Machine.from_json(json.loads(edgert("probe", "--json").stdout))
    text = edgert("probe").stdout
    assert machine.device("cpu:0").name in text
    assert machine.fingerprint in text
    assert all(backend.name in text for backend in machine.backends)


def test_plan_shows_its_choice_and_stores_it(edgert, tmp_path):
    text = edgert("plan", MODEL, *ORT, "-o", tmp_path / "plan.json").stdout
    stored = Plan.from_json(json.loads((tmp_path / "plan.json").read_text()))
    assert str(stored.targets[0]) == "onnxruntime@cpu:0/f32/1t"
    assert stored.id in text
    assert str(stored.targets[0]) in text


def test_plan_as_json_is_one_document(edgert):
    document = json.loads(edgert("plan", MODEL, *ORT, "--json").stdout, parse_constant=pytest.fail)
    assert document["segments"][0]["target"] == "onnxruntime@cpu:0/f32/1t"


def test_plan_explains_itself(edgert):
    assert "candidates" in edgert("plan", MODEL, *ORT, "--explain").stdout


def test_run_reads_a_digit(edgert, digit, tmp_path):
    file, label = digit
    out = tmp_path / "out.npz"
    document = json.loads(edgert("run", MODEL, *ORT, "-i", f"image={file}", "-o", out, "-k", "2", "--json").stdout)
    assert document["classes"][0]["index"] == label
    assert document["receipt"]["targets"] == ["onnxruntime@cpu:0/f32/1t"]
    assert document["receipt"]["degraded"] is False
    shown = np.ravel(document["outputs"]["probabilities"]["values"])
    assert np.load(out)["probabilities"].ravel().tolist() == pytest.approx(shown)


def test_run_names_classes_and_shows_the_receipt(edgert, digit, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(f"digit {number}" for number in range(10)))
    file, label = digit
    text = edgert("run", MODEL, *ORT, "-i", file, "--labels", tmp_path / "labels.txt").stdout
    assert f"digit {label}" in text
    assert "onnxruntime@cpu:0/f32/1t" in text


def test_run_reads_a_picture(edgert, tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="pictures need pillow")
    stored = np.load(path("digits.npz"))
    pixels = np.minimum(stored["images"][0].astype(int) * 16, 255).astype(np.uint8)
    image_module.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(tmp_path / "digit.png")
    document = json.loads(edgert("run", MODEL, *ORT, "-i", tmp_path / "digit.png", "-k", "1", "--json").stdout)
    assert document["classes"][0]["index"] == int(stored["labels"][0])
    assert "stretch to 8x8" in document["inputs"][0]


def test_run_shows_the_texts_that_a_model_answers(edgert, tmp_path):
    onnx = pytest.importorskip("onnx")
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 20]>
        g (string[2] x) => (string[2] y) <string suffix = {"\'s"}> { y = StringConcat(x, suffix) }
    """)
    (tmp_path / "texts.onnx").write_bytes(proto.SerializeToString())
    np.save(tmp_path / "x.npy", np.array(["the cat", "no one"]))
    done = edgert("run", tmp_path / "texts.onnx", "--budget", "1", "-i", tmp_path / "x.npy")
    assert """y: "the cat's", "no one's\"""" in done.stdout


def test_run_on_random_numbers_repeats_itself(edgert):
    first, second, other = (
        json.loads(edgert("run", MODEL, *ORT, "-i", "random", "--seed", seed, "--json").stdout)["outputs"]
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_bench_compares_and_draws(edgert, tmp_path):
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    document = json.loads(edgert("bench", MODEL, "--seconds", "0", "--targets", "onnxruntime@*", "--json",
                                 "--picture", tmp_path / "bench.svg").stdout)  # fmt: skip
    report = document["models"][0]
    assert {row["role"] for row in report["rows"]} == {"edgert", "chosen", "candidate", "baseline"}
    assert report["over_rival"]["low"] <= report["over_rival"]["ratio"] <= report["over_rival"]["high"]
    assert all(row["p50_s"] <= row["p95_s"] <= row["p99_s"] for row in report["rows"])
    assert all(row["memory_bytes"] > 1e6 for row in report["rows"] if row["role"] != "edgert")
    assert "<svg" in (tmp_path / "bench.svg").read_text()


def test_bench_goes_on_after_a_model_that_it_cannot_measure(edgert, tmp_path):
    done = edgert("bench", tmp_path / "absent.onnx", MODEL, "-s", "0", *ORT, "--json", code=PARTIAL)
    document = json.loads(done.stdout)
    assert [report["model"] for report in document["models"]] == ["digits_f32.onnx"]
    assert next(iter(document["failures"].values()))["type"] == "ModelNotFound"


def test_demo_reads_digits_as_well_as_in_training(edgert):
    document = json.loads(edgert("demo", "--budget", "1", "--json").stdout)
    assert document["failures"] == {}
    for trial in document["trials"]:
        assert trial["images"] == 360
        assert trial["accuracy"] >= trial["expected_accuracy"] - 0.01


def test_version_tells_of_edgert_and_its_libraries(edgert):
    document = json.loads(edgert("version", "--json").stdout)
    assert {"edgert", "python", "numpy"} <= set(document)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "absent.onnx"], ["absent.onnx"]),
        (["plan", MODEL, "-t", "abacus@cpu:0/f32"], ["abacus@cpu:0/f32"]),
        (["plan", MODEL, "-o", "/absent/plan.json", *ORT], ["/absent/plan.json", "write"]),
        (["run", MODEL, *ORT], ["image", "not given"]),
        (["run", MODEL, *ORT, "-i", "imag=random"], ["imag", "Did you mean 'image'"]),
        (["run", MODEL, *ORT, "-i", "image=absent.npy"], ["absent.npy", "not there"]),
        (["run", MODEL, *ORT, "-i", "random", "-o", "out.txt"], ["out.txt", "out.npz"]),
        (["run", MODEL, *ORT, "-i", "random", "--labels", "absent.txt"], ["absent.txt"]),
        (["bench", "absent.onnx"], ["absent.onnx"]),
        (["bench", MODEL, "--picture", "x.bmp"], ["x.bmp", ".svg"]),
    ],
)
def test_what_cannot_be_done_is_told_with_a_remedy(edgert, arguments, words):
    done = edgert(*arguments, code=FAILED)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "try: " in done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07"])
def test_a_broken_model_is_told_without_a_traceback(edgert, tmp_path, content):
    (tmp_path / "broken.onnx").write_bytes(content)
    done = edgert("plan", tmp_path / "broken.onnx", code=FAILED)
    assert "broken.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_array_of_the_wrong_shape_is_told(edgert, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((8, 8), np.float32))
    done = edgert("run", MODEL, *ORT, "-i", tmp_path / "x.npy", code=FAILED)
    assert "(8, 8)" in done.stderr


def test_a_fault_in_edgert_has_a_code_of_its_own(edgert):
    broken = "import edgert.cli.version as v; del v.metadata; " + BOOT
    done = subprocess.run([sys.executable, "-c", broken, "version"], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "fault in edgert" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(cache):
    environment = {**os.environ, "EDGERT_CACHE": str(cache)}
    process = subprocess.Popen([sys.executable, "-c", BOOT, "version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment)  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_an_interrupt_ends_with_its_own_code():
    waiting = (
        "import edgert, signal, sys, time\n"
        # a shell's background job, which a test run may be, inherits an ignored interrupt
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def probe(**_): sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(60)\n"
        "edgert.probe = probe\n" + BOOT
    )
    process = subprocess.Popen([sys.executable, "-c", waiting, "probe"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert b"Traceback" not in err


def test_an_answer_by_a_fallback_is_shown_and_has_its_own_code(monkeypatch):
    import edgert as package

    class Degraded:
        """A model whose target was lost: what `edgert.load` gives, with the receipt of a fallback."""

        def __init__(self, model):
            self._model, self.inputs, self.outputs, self.path = model, model.inputs, model.outputs, model.path

        def run(self, inputs):
            result = self._model.run(inputs)
            result.receipt = dataclasses.replace(result.receipt, degraded=True, reason="gpu:0 was lost")
            return result

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._model.close()

    load = package.load
    monkeypatch.setattr(package, "load", lambda *arguments, **options: Degraded(load(*arguments, **options)))
    done = CliRunner().invoke(app, ["run", MODEL, *ORT, "-i", "random"])
    assert done.exit_code == PARTIAL
    assert "gpu:0 was lost" in done.output


def test_verbose_logs_to_stderr_alone():
    logging = (
        "import edgert, logging\n"
        "def probe(**_): logging.getLogger('edgert.x').info('an event'); raise edgert.EdgertError('stop.')\n"
        "edgert.probe = probe\n" + BOOT
    )
    quiet, loud = (
        subprocess.run([sys.executable, "-c", logging, *flags, "probe"], capture_output=True, text=True, check=False)
        for flags in ([], ["-v"])
    )
    assert "INFO edgert.x: an event" in loud.stderr
    assert "an event" not in quiet.stderr
    assert quiet.stdout == loud.stdout == ""
