"""Reads a model file into a `Graph`, and writes any convex set of its nodes back as a model file.

| stage | call | where |
|---|---|---|
| bytes -> format | `open_model` | here, by content |
| .onnx -> Graph | `onnx.open_onnx` | onnx, onnx_check, onnx_types, onnx_tensors |
| .tflite -> Graph | `tflite.open_tflite` | tflite, flat, tflite_tensors |
| nodes -> file | `ModelFile.write` | cut, onnx_write, tflite_write |
| nodes of a .tflite in floats | `tflite_float.float_nodes` | tflite_float |
| is it for one accelerator alone? | `artefacts.mark_of` | artefacts |
| .onnx -> the same, tidied up | `onnx_clean.clean` | onnx_clean |

The libraries that know the formats (onnx, onnx-ir, the schema inside ai-edge-litert) are imported when a file needs
them, and no bytes of a file are trusted: whatever is wrong with it is a `ModelError`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from edgert.errors import ModelCorrupt, ModelUnsupported, NoLastResort
from edgert.formats.artefacts import blob
from edgert.formats.files import contains, digest_with, map_file, sha256
from edgert.graph import Format, Graph
from edgert.profile import Precision

__all__ = ["ModelFile", "companions", "digest", "open_model"]

_FOREIGN: Mapping[bytes, str] = {  # first bytes of what people pass by mistake -> what it is
    b"PK\x03\x04": "a zip archive (PyTorch, Keras, a compressed model, or a bundle where only a model will do)",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer, not the model itself",
    b"<?xml": "an XML file (OpenVINO IR)",
    b"<!DOCTYPE": "an HTML page",
}


class ModelFile(Protocol):
    """A model file that was read."""

    @property
    def path(self) -> Path:
        """Absolute."""
        ...

    @property
    def format(self) -> Format: ...

    @property
    def graph(self) -> Graph: ...

    @property
    def digest(self) -> str:
        """As `digest(path)` when the file was opened; companions are hashed when first asked."""
        ...

    @property
    def precision(self) -> Precision:
        """The model's own: 'i8' when it carries quantised arithmetic, else that of most of its float values."""
        ...

    def write(
        self, nodes: Collection[str], path: Path, keep: Collection[str] = (), *, lean: bool = False
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Write a convex set of nodes as a model file of the same format, valid on its own.

        Args:
            nodes: names of nodes (`Node.name`). All of them make a file equivalent to the original.
            path: where to; replaced if it exists. External data goes to `path` + '.data'.
            keep: values made by these nodes that become outputs too, after those of `Graph.boundary`.
            lean: never hold the weights: the .onnx files in a folder share one copy of the external data, a .tflite
                has them behind its tables, where LiteRT reads them and OpenVINO does not.

        Returns:
            Names of the file's inputs and outputs: for a part as `Graph.boundary` has them, for all nodes as the
            model has them.

        Raises:
            OptionError: an unknown name, a set that is empty or not convex, or an unwritable path.
            ModelUnsupported: a value at the cut has no known element type, or state would be torn apart.
        """
        ...


def open_model(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model file; the content decides which format it is.

    Raises:
        ModelNotFound: there is no such file, or it (or data that it refers to) cannot be read.
        ModelCorrupt: it is truncated, malformed or hostile.
        ModelUnsupported: it is of a kind or a version that is not known here.
        NoLastResort: it is a program for one accelerator, in a form of that vendor's own.
        MissingPackage: the package that reads its format is not installed.
    """
    where = Path(os.path.abspath(path))
    data = map_file(where)
    _refuse_foreign(where, bytes(data[:32]))
    _refuse_blob(where, bytes(data[:32]))
    if _is_tflite(data):
        from edgert.formats.tflite import open_tflite

        return open_tflite(where, data)
    if where.suffix.lower() in (".tflite", ".lite"):
        raise ModelCorrupt(
            f"model {str(where)!r} is no TFLite file: 'TFL3' is missing at byte 4.", "Export or download it again."
        )
    from edgert.formats.onnx import open_onnx

    return open_onnx(where, data)


def digest(path: str | os.PathLike[str]) -> str:
    """Content hash of a model: SHA-256 over its file and all files that it refers to, as hexadecimal digits.

    Equals the file's own SHA-256 where it refers to none. Imports no reader unless the file may refer to others.

    Raises:
        ModelError: the file, or one that it refers to, cannot be read.
    """
    where = Path(os.path.abspath(path))
    data = map_file(where)
    return digest_with(sha256(data), _companions(where, data))


def companions(path: str | os.PathLike[str]) -> tuple[tuple[str, Path], ...]:
    """The files that a model refers to (external data), each as its location in the model and its path, sorted.

    Imports no reader unless there may be some.

    Raises:
        ModelError: the file, or one that it refers to, cannot be read.
    """
    where = Path(os.path.abspath(path))
    return tuple(sorted(set(_companions(where, map_file(where)))))


def _companions(path: Path, data: memoryview) -> Iterable[tuple[str, Path]]:
    if _is_tflite(data):
        from edgert.formats.flat import has_external_buffers

        if not has_external_buffers(path, data):
            return ()
        from edgert.formats.tflite import companions as of_tflite

        return of_tflite(path, data)
    if not may_refer(data):
        return ()
    from edgert.formats.onnx import companions as of_onnx

    return of_onnx(path, data)


def refers(path: str | os.PathLike[str]) -> bool:
    """Whether a model file may refer to other files, whose content then belongs to its digest.

    Raises:
        ModelNotFound: it cannot be read.
    """
    where = Path(os.path.abspath(path))
    data = map_file(where)
    if not _is_tflite(data):
        return may_refer(data)
    from edgert.formats.flat import has_external_buffers

    return has_external_buffers(where, data)


def may_refer(data: memoryview) -> bool:
    """Whether an ONNX file's bytes contain the key that names external data, or a context that was compiled."""
    return contains(data, b"location") or contains(data, b"ep_cache_context")


def _is_tflite(data: memoryview) -> bool:
    return bytes(data[4:8]) == b"TFL3"


def _refuse_foreign(path: Path, start: bytes) -> None:
    if start[4:8] == b"ORTM":
        raise ModelUnsupported(f"model {str(path)!r} is an .ort file.", "Give the .onnx that it was made from.")
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise ModelCorrupt(f"model {str(path)!r} is {what}.", "Give a .onnx or .tflite file.")


def _refuse_blob(path: Path, start: bytes) -> None:
    what = blob(path, start)
    if what and not start[4:8] == b"TFL3":
        raise NoLastResort(
            f"model {str(path)!r} is {what}: nothing else reads it, so nothing could answer if that is lost.",
            "Give the .onnx or .tflite that it was made from.", target="",
        )  # fmt: skip
