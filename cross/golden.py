"""Writes guest/golden/*.npz: what x86-64 answers to the INT8 models, for boards to be held against.

    python -m cross.golden digits           # both bundled models, the first sixteen images, each format's own library
    python -m cross.golden tflite-runtime   # models of EDGERT_MODELS, in an environment with tflite-runtime

The known answers in EDGERT_MODELS are LiteRT's; tflite-runtime's integer arithmetic rounds otherwise in places (3
steps on MobileNetV2), so it is held to its own. Needed only when a model changes.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
GOLDEN = HERE / "guest" / "golden"
MODELS = {"digits_i8.onnx": "onnxruntime@*", "digits_i8.tflite": "litert@*"}
KNOWN = ("kws-i8", "ic-i8", "mnv2-u8")
"""INT8 models of EDGERT_MODELS, by their ids in its manifest."""


def digits() -> None:
    """Answer as a board does, by the very same program."""
    answers = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["EDGERT_CACHE"] = scratch
        os.environ["EDGERT_OUT"] = scratch
        checks = runpy.run_path(str(HERE / "guest" / "checks.py"))
        for name, target in MODELS.items():
            checks["digits"](name, target)
            answers[name] = np.load(Path(scratch, f"{name}.npy"))
    np.savez_compressed(GOLDEN / "digits.npz", **answers)


def tflite_runtime() -> None:
    """The first case of each known model, by the library itself."""
    from tflite_runtime.interpreter import Interpreter

    folder = Path(os.environ["EDGERT_MODELS"])
    for entry in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["entries"]:
        if entry["id"] not in KNOWN:
            continue
        interpreter = Interpreter(str(folder / entry["file"]), num_threads=1)
        interpreter.allocate_tensors()
        with np.load(folder / entry["cases"][0]["feeds"]) as feed:
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], feed[feed.files[0]])
        interpreter.invoke()
        answer = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        output = entry["outputs"][0]["name"]
        np.savez_compressed(GOLDEN / f"tflite-runtime.{entry['id']}.npz", **{output: answer})


if __name__ == "__main__":
    {"digits": digits, "tflite-runtime": tflite_runtime}[sys.argv[1]]()
