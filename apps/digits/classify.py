"""Reads handwritten digits with edgert.

    python apps/digits/classify.py                      the bundled test images, with the share of right answers
    python apps/digits/classify.py IMAGE.png            one picture of a digit, dark on light or light on dark
    python apps/digits/classify.py --model MODEL ...    another file: one of edgert.data, or a path

A whole application: load once, run many times, look at the receipt.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import edgert
from edgert.data import path

Array = np.ndarray[Any, np.dtype[Any]]


def read_picture(file: Path) -> Array:
    """A picture as the test images are: 8 x 8, light on dark, 0 to 16. Ends the program where there is none."""
    try:
        from PIL import Image

        grey = np.asarray(Image.open(file).convert("L"), np.float32)
    except ImportError:
        sys.exit(f'error: reading {file} needs Pillow.\n  try: pip install "edgert[image]"')
    except OSError as error:
        sys.exit(f"error: {file} is no picture that can be read: {error}.\n  try: a .png or .jpg")
    if grey.mean() > 127:
        grey = 255 - grey
    small = Image.fromarray(grey.astype(np.uint8)).resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, np.float32) * np.float32(16 / 255)


def prepare(image: Array, value: Any) -> Array:
    """One 8 x 8 image (0 to 16) as the model's input `value` wants it: layout, then integers if it is quantised."""
    x = (image / 16).astype(np.float32)
    x = x[None, None] if value.shape[1] == 1 else x[None, :, :, None]
    if value.dtype == "float32":
        return x
    scale, zero_point = value.quantization.scales[0], value.quantization.zero_points[0]
    return np.asarray(np.clip(np.rint(x / scale) + zero_point, -128, 127), value.dtype)


def main() -> None:
    """Parse, load, run, show."""
    parser = argparse.ArgumentParser(description="Reads handwritten digits with edgert.")
    parser.add_argument(
        "image", nargs="?", type=Path, help="a picture of one digit; the bundled test images if left out"
    )
    parser.add_argument("--model", default="digits_f32.onnx", help="a file of edgert.data, or a path")
    options = parser.parse_args()
    if options.image is not None and not options.image.is_file():
        parser.error(f"there is no picture {options.image}")
    try:
        classify(options.image, options.model)
    except edgert.EdgertError as error:
        sys.exit(f"error: {error.message}\n  try: {error.remedy}")


def classify(image: Path | None, model_name: str) -> None:
    """Read one picture, or all of the test images.

    Raises:
        EdgertError: the model cannot be read or run.
    """
    file = Path(model_name) if Path(model_name).exists() else path(model_name)
    classes = json.loads(path("digits.json").read_text())["classes"]
    with edgert.load(file) as model:
        value, output = model.plan.inputs[0], model.plan.outputs[0].name
        if image is not None:
            result = model.run([prepare(read_picture(image), value)])
            say(f"{image}: {classes[int(np.argmax(result[output]))]}")
        else:
            bundled = np.load(path("digits.npz"))
            answers = []
            for each in bundled["images"]:
                result = model.run([prepare(each, value)])
                answers.append(int(np.argmax(result[output])))
            right = np.asarray(answers) == bundled["labels"]
            say(f"{right.mean():.2%} of {len(right)} handwritten digits read right")
        receipt = result.receipt
        say(f"by {', '.join(map(str, receipt.targets))}, last one in {receipt.run_s * 1e6:.0f} us"
            + (f", degraded: {receipt.reason}" if receipt.degraded else ""))  # fmt: skip


def say(line: str) -> None:
    """Tell the user."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
