"""Counts instructions on an emulated board: `count.py JOBS.json`, under QEMU with the plugin of cross/icount.c.

A job is `{"model", "backend", "variant"}`, or `{"model", "backend", "call": true}` for edgert's own share of a call.
For each, one line of marks follows in the plugin's file; `cross/icount.py` makes counts of them. Nothing here is a
time.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from edgert import formats
from edgert.devices import backend as library
from edgert.devices import cpu
from edgert.devices.backend import Source
from edgert.errors import EdgertError
from edgert.profile import Target

_MARK_DESCRIPTOR = -7777
"""As in icount.c."""
WARM_UP = 2
"""Runs before the first mark: kernels are chosen and buffers made then."""
RUNS = 5
"""Other threads of the interpreter wake now and then, and their instructions count too: not in each of so many."""


def mark(number: int) -> None:
    """Have the plugin write down the count."""
    with contextlib.suppress(OSError):  # the descriptor is none, and must not be one
        os.lseek(_MARK_DESCRIPTOR, number, 0)


def count(run: Callable[[], object], job: int) -> None:
    """Marks around nothing, then around each of some runs: the host takes the least, less what a mark costs."""
    for _ in range(WARM_UP):
        run()
    gc.collect()
    gc.disable()
    mark(100 * job)
    mark(100 * job + 1)
    for number in range(RUNS):
        run()
        mark(100 * job + 2 + number)
    gc.enable()


def inference(job: Mapping[str, Any]) -> Callable[[], object]:
    """One inference by a backend alone."""
    path = Path(job["model"])
    backend: Any = library(job["backend"])
    if path.suffix == ".tflite":
        inputs, outputs, precision = backend.signature(path)
        source = Source(path, "tflite", inputs, outputs, precision)
    else:
        file = formats.open_model(path)
        source = Source(path, "onnx", file.graph.inputs, file.graph.outputs, file.precision)
    target = Target(job["backend"], "cpu:0", source.precision, 1, job["variant"])
    runnable = backend.prepare(source, target, cpu.discover()[0])
    feed = {value.name: _values(value) for value in source.inputs}
    return lambda: runnable.run(feed)


def call(job: Mapping[str, Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    """One call of `edgert.load(...).run`, and the same inference by the library's own bare calls."""
    model = edgert.load(job["model"], targets=[f"{job['backend']}@cpu:0/*/1t"], budget_s=1.0)
    feed = {value.name: _values(value) for value in model.inputs}
    if job["backend"] == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        runner = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        return lambda: model.run(feed), lambda: runner.run(None, feed)
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(job["model"], num_threads=1)
    interpreter.allocate_tensors()
    places = [(detail["index"], feed[detail["name"]]) for detail in interpreter.get_input_details()]
    answers = [detail["index"] for detail in interpreter.get_output_details()]

    def bare() -> None:
        for index, array in places:
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        for index in answers:
            interpreter.get_tensor(index)

    return lambda: model.run(feed), bare


def _values(value: Any) -> Any:
    shape = [size if isinstance(size, int) else 1 for size in value.shape]
    rng = np.random.default_rng(7)
    if np.dtype(value.dtype).kind == "f":
        return rng.random(shape).astype(value.dtype)
    return rng.integers(0, 100, shape).astype(value.dtype)


def main() -> None:
    """Do every job; say which could not be done, as JSON: number -> reason."""
    for name in [name for name in os.environ if name.startswith("QEMU_")]:
        del os.environ[name]  # the plugin is for this process: a child would write over the counts
    refused = {}
    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        try:
            if job.get("call"):
                whole, bare = call(job)
                count(whole, 2 * number)
                count(bare, 2 * number + 1)
            else:
                count(inference(job), 2 * number)
        except EdgertError as error:
            refused[number] = error.message
    sys.stdout.write(f"\n{json.dumps(refused)}\n")


if __name__ == "__main__":
    main()
