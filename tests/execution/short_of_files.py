"""An application that may open no more files, while a device of its fails. A program: says what it saw, as JSON."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from bench.executors import answer, pipeline_of, write_chain
from edgert.execution.limits import Limits

ENOUGH_S = 120.0


def use_up(left):
    """Open files until no more are given, and close so many again."""
    held = []
    while True:
        try:
            held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    for _ in range(left):
        os.close(held.pop())
    return held


def asked(pipeline):
    """One request; why not the plan's own way."""
    inputs = np.ones((1, 4096), np.float32)
    made = pipeline.run({"x": inputs})
    assert np.array_equal(made.outputs["y"], answer(inputs, 2))
    return made.reason


def main(folder):
    model = write_chain(folder / "chain.onnx", 2, 4096)
    limits = Limits(backoff_s=0.05, most_backoff_s=0.1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    pipeline = pipeline_of(model, [1e-3] * 2, folder / "parts", limits=limits)
    while asked(pipeline):
        pass
    held = use_up(0)
    os.kill(next(member.pid for member in pipeline.members() if member.place.device == "npu:1"), signal.SIGKILL)
    until_s = time.monotonic() + ENOUGH_S
    while "Too many open files" not in (short := asked(pipeline)):
        assert time.monotonic() < until_s, short
    for descriptor in held:
        os.close(descriptor)
    while asked(pipeline):
        assert time.monotonic() < until_s
    held = use_up(14)  # some for sockets, too few for two executors
    second = pipeline_of(model, [1e-3] * 2, folder / "more", limits=limits)
    unready = asked(second)
    for descriptor in held:
        os.close(descriptor)
    while asked(second):
        assert time.monotonic() < until_s
    second.close()
    pipeline.close()
    sys.stdout.write(json.dumps({"short": short, "unready": unready}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
