"""A .tflite as one piece, for where its schema is not installed (tflite-runtime on a 32-bit board carries none).

The interpreter, in a child process, says what goes in and comes out; the nodes stay unknown, so the model cannot be
cut.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edgert.errors import MissingPackage
from edgert.graph import Format, Graph
from edgert.measure import REMOTES
from edgert.profile import Precision

_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A `ModelFile` without nodes."""

    path: Path
    digest: str
    graph: Graph
    precision: Precision
    format: Format = "tflite"

    def write(
        self, nodes: Collection[str], path: Path, keep: Collection[str] = (), *, lean: bool = False
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Raises MissingPackage: there are no nodes to choose from."""
        raise MissingPackage(
            f"{self.path} was loaded whole and cannot be cut into {len(nodes)} nodes for {path}.",
            "pip install ai-edge-litert, or cut it on a machine that has it.", package="ai-edge-litert",
        )  # fmt: skip


def open_whole(path: Path, digest: str) -> WholeFile:
    """The model's signature, asked of LiteRT in a child.

    Raises:
        MissingPackage: no interpreter is installed either.
        PrepareRefused: the interpreter refuses the file.
        ChildError: it crashed or hung on it.
    """
    remote = REMOTES.borrow("litert@cpu:0")
    try:
        inputs, outputs, precision = remote.signature("litert", path, timeout_s=_LIMIT_S)
    finally:
        REMOTES.give_back(remote)
    values = {value.name: value for value in (*inputs, *outputs)}
    graph = Graph("tflite", path.stem, (), inputs, outputs, values, {})
    return WholeFile(path, digest, graph, precision)
