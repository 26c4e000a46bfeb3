"""Ctrl-C at any moment of a command: one line and a code of its own; real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from edgert.data import path
from edgert.interrupts import INTERRUPTED

pytest.importorskip("onnxruntime", reason="the bundled .onnx models need it")
pytest.importorskip("onnx", reason="the bundled .onnx models need it")

RUN = ["run", str(path("digits_f32.onnx")), "--targets", "onnxruntime@cpu:0/f32/1t", "-i", "random"]
HANDLED = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""A shell's background job, which a test run may be, inherits an ignored interrupt."""
BOOT = "from edgert.__main__ import main\nmain()\n"
AT_IMPORT = """
def interrupt(event, arguments):
    if event == "import" and arguments[0] == NAME:
        os.kill(os.getpid(), signal.SIGINT)

from edgert.__main__ import main
sys.addaudithook(interrupt)
main()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {**os.environ, "EDGERT_CACHE": str(tmp_path_factory.mktemp("cache"))}


def ended(program, *arguments, environment=None):
    done = subprocess.run([sys.executable, "-c", HANDLED + program, *arguments], capture_output=True, text=True,
                          env=environment, timeout=120, check=False)  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "name", ["edgert.cli", "typer", "edgert.errors", "rich.console", "edgert.cli.version",  # before the command
             "edgert.cli.inputs", "numpy", "numpy.linalg._umath_linalg", "edgert.model", "edgert.planning.choose"]
)  # fmt: skip
def test_an_interrupt_while_modules_are_imported_is_one_line(name, environment):
    assert ended(AT_IMPORT.replace("NAME", repr(name)), *RUN, environment=environment) == (
        INTERRUPTED, "interrupted.\n"
    )  # fmt: skip


def test_an_interrupt_while_targets_are_tried_is_one_line(environment, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HANDLED + BOOT, "-vv", *RUN], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**environment, "EDGERT_CACHE": str(tmp_path)})  # fmt: skip
    assert process.stderr is not None
    assert b"edgert" in process.stderr.readline()  # the first thing that it logs: it plans
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert err.endswith(b"\ninterrupted.\n") or err == b"interrupted.\n"
    assert b"Traceback" not in err
    assert out == b""


# What a command does with the interrupt that reaches it.
SWALLOWS = "raise edgert.EdgertError('the library could not be loaded.')"
CONVERTS = "raise ValueError('out of the blue')"
AGAIN = "os.kill(os.getpid(), signal.SIGINT)"
HANGS = "import threading; threading.Event().wait()"


@pytest.mark.parametrize("answer", [SWALLOWS, CONVERTS, AGAIN, HANGS])
def test_whatever_is_made_of_an_interrupt_it_is_told_as_one(answer):
    program = (
        "import edgert\n"
        "def probe(**_):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        f"    except KeyboardInterrupt: {answer}\n"
        "edgert.probe = probe\n"
    )
    assert ended(program + BOOT, "probe") == (INTERRUPTED, "interrupted.\n")


def test_an_interrupt_at_the_end_of_an_object_is_not_lost():
    program = (
        "import edgert\n"
        "class Ending:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "def probe(**_):\n"
        "    Ending()\n"
        "    import threading; threading.Event().wait()\n"
        "edgert.probe = probe\n"
    )
    assert ended(program + BOOT, "probe") == (INTERRUPTED, "interrupted.\n")


def test_an_interrupt_after_the_command_is_one_line():
    program = (
        "import atexit, edgert\n"
        "def probe(**_): raise edgert.EdgertError('done.')\n"
        "edgert.probe = probe\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    )
    code, err = ended(program + BOOT, "probe")
    assert code == INTERRUPTED
    assert err == "error: done.\ninterrupted.\n"


def test_the_package_is_a_command_too():
    done = subprocess.run([sys.executable, "-m", "edgert", "version", "--json"], capture_output=True, check=True)
    assert b"edgert" in done.stdout


def test_an_interrupt_during_the_end_of_an_interrupted_command_adds_no_line():
    program = (
        "import atexit, edgert\n"
        "def probe(**_): os.kill(os.getpid(), signal.SIGINT)\n"
        "edgert.probe = probe\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGALRM)\n"  # as if the time of grace were over then
    )
    assert ended(program + BOOT, "probe") == (INTERRUPTED, "interrupted.\n")


def test_a_background_job_of_a_shell_goes_on():
    program = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + AT_IMPORT.replace("NAME", "'typer'")
    assert ended(program, "version") == (0, "")


def test_importing_the_library_leaves_interrupts_alone():
    program = "import edgert\nedgert.load, edgert.errors\nassert signal.getsignal(2) is signal.default_int_handler"
    assert ended(program) == (0, "")
