"""`edgert version`."""

from __future__ import annotations

import platform
from importlib import metadata

from edgert.cli import console
from edgert.cli.options import Json

LIBRARIES = ("numpy", "onnxruntime", "openvino", "ai-edge-litert", "tflite-runtime", "onnx", "pyzmq")


def version(as_json: Json = False) -> None:
    """Show the versions of edgert and of what it runs on."""
    found = {"edgert": metadata.version("edgert"), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # what is not installed has no version; `edgert probe` says what that costs
    if as_json:
        console.show_json(found)
    else:
        console.show("\n".join(f"{name:<15} {number}" for name, number in found.items()))
