"""The trained example that travels with the package: a digits classifier as .onnx and .tflite, float and INT8.

`digits_f32.onnx`, `digits_i8.onnx`, `digits_f32.tflite`, `digits_i8.tflite`, its test images `digits.npz` and
`digits.json`, which says what goes in, what comes out, and how often each file is right.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from edgert.errors import OptionError

__all__ = ["path"]


def path(name: str) -> Path:
    """Where a bundled file lies, such as `path("digits_f32.onnx")`.

    Raises:
        OptionError: there is no such file; says which there are.
    """
    folder = Path(str(resources.files(__name__)))
    found = folder / name
    if Path(name).name != name or not found.is_file():
        known = ", ".join(sorted(item.name for item in folder.iterdir() if item.suffix not in (".py", ".pyc", "")))
        raise OptionError(f"no bundled file is called {name!r}.", f"There are: {known}.")
    return found
