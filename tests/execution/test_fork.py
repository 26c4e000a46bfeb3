"""An application that forks after it loaded: the copy says so, harms nothing, and may load for itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the model is written with onnx")
pytest.importorskip("onnxruntime", reason="what runs it")
ROOT = Path(__file__).parents[2]
BEGIN = """
import atexit, os, signal, sys, time, traceback, warnings
from pathlib import Path
import numpy as np
import edgert
from edgert.errors import Closed
from bench.executors import answer, pipeline_of, write_chain

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
folder = Path(sys.argv[1])
inputs = np.ones((1, 64), np.float32)
signal.alarm(380)

def made(name):
    pipeline = pipeline_of(write_chain(folder / "chain.onnx", 2), [1e-3] * 2, folder / name)
    while ask(pipeline).reason:
        pass
    return pipeline

def ask(pipeline):
    got = pipeline.run({"x": inputs})
    assert np.array_equal(got.outputs["y"], answer(inputs, 2))
    return got

def forked(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(360)
        try:
            work()
            atexit._run_exitfuncs()  # what the end of an interpreter does, but for libraries whose threads are gone
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return pid
"""


def run(folder, program, **options):
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + program, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )


def said(process):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def test_a_forked_process_may_load_for_itself_and_its_end_ends_nothing_of_its_parents(tmp_path):
    program = """
ours = made("ours")
pids = [member.pid for member in ours.members()]

def work():
    theirs = made("theirs")
    assert not set(pids) & {member.pid for member in theirs.members()}
    theirs.close()

assert os.waitpid(forked(work), 0)[1] == 0
assert not ask(ours).reason
assert pids == [member.pid for member in ours.members()]
ours.close()
"""
    said(run(tmp_path, program))


def test_a_model_that_was_loaded_before_a_fork_says_so(tmp_path):
    program = """
model = edgert.load(write_chain(folder / "chain.onnx", 2), targets=["onnxruntime@cpu:0"], cache_dir=folder)
model.run({"x": inputs})

def work():
    for call in (model.run, model.submit):
        try:
            call({"x": inputs})
        except Closed as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("it ran")
    model.close()
    os._exit(0)  # the end of a library whose threads are gone is not ours

assert os.waitpid(forked(work), 0)[1] == 0
assert np.array_equal(model.run({"x": inputs})["y"], answer(inputs, 2))
model.close()
"""
    said(run(tmp_path, program))


def test_executors_end_with_their_application_though_a_copy_of_it_lives(tmp_path):
    program = """
ours = made("ours")
copy = forked(lambda: time.sleep(350))
print(copy, *[member.pid for member in ours.members()], flush=True)
time.sleep(350)
"""
    with run(tmp_path, program) as process:
        copy, *executors = map(int, process.stdout.readline().split())
        process.kill()
        try:
            until_s = time.monotonic() + 300
            while any(map(lives, executors)):
                assert time.monotonic() < until_s
                time.sleep(0.02)
        finally:
            os.kill(copy, signal.SIGKILL)


def lives(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
