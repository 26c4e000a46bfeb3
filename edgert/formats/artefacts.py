"""Files that only one accelerator reads: programs and contexts that a vendor's compiler made of a model.

| question | call |
|---|---|
| is this graph such a file? | `mark_of` |
| is it one that not even has a graph? | `blob` |
| what files beside an .onnx belong to it? | `contexts` |

They are told apart before anything is tried: nothing but their device could ever answer.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgert.errors import ModelCorrupt
from edgert.formats.files import beside, contains
from edgert.graph import Graph
from edgert.profile import Target

CONTEXT = ("com.microsoft", "EPContext")
"""Domain and type of ONNX Runtime's node that holds a compiled context."""
ARTEFACT = "/compiled"
"""Stands for the location of a compiled file in the content hash of a model that has one; no file can be called so."""
_OPS: Mapping[str, str] = {  # operation -> what it is
    "::".join(CONTEXT): "a context that one execution provider compiled for its own device",
    "CUSTOM:edgetpu-custom-op": "a program for the Edge TPU",
    "CUSTOM:ethos-u": "a command stream for an Arm Ethos-U",
    "CUSTOM:QNN_custom_op": "a context for Qualcomm's HTP",
    "CUSTOM:vsi-npu": "a graph for VeriSilicon's NPU",
}
_BLOBS: Mapping[str, tuple[bytes, str]] = {  # suffix -> first bytes ('' where the vendor promises none), what it is
    ".hef": (b"\x01HEF", "a program for a Hailo accelerator"),
    ".rknn": (b"RKNN", "a program for Rockchip's NPU"),
    ".dlc": (b"", "a container for Qualcomm's SNPE and QNN"),
    ".engine": (b"", "an engine that TensorRT built for one GPU"),
    ".trt": (b"", "an engine that TensorRT built for one GPU"),
    ".blob": (b"", "a blob that OpenVINO compiled for one device"),
    ".dla": (b"", "a program for MediaTek's APU"),
    ".bmodel": (b"", "a program for Sophgo's TPU"),
    ".axmodel": (b"", "a program for Axera's NPU"),
    ".om": (b"", "a program for Huawei's Ascend"),
}


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file that was compiled from a model for one accelerator, which alone reads it."""

    path: Path
    """Absolute. What it refers to lies beside it."""
    what: str
    """For people: 'a program for the Edge TPU', with its article."""
    readers: str
    """Pattern of the ways that read it, such as 'onnxruntime+qnn@npu:*'; '' where no backend does."""

    def read_on(self, target: Target) -> bool:
        """Whether a target runs this file, and not the model that it was made from."""
        way = f"{target.backend}{'+' * bool(target.variant)}{target.variant}@{target.device}"
        return not target.device.startswith("cpu") and fnmatch.fnmatchcase(way, self.readers)


@dataclass(frozen=True, slots=True)
class Mark:
    """What shows that only one accelerator reads a model."""

    op: str
    """As `Node.op`."""
    node: str
    """The first node of that kind."""
    what: str
    """For people, with its article."""
    provider: str
    """Name of the ONNX Runtime provider that made a context; '' where the file does not say."""


def mark_of(graph: Graph) -> Mark | None:
    """The first node that only one accelerator reads; None for an ordinary model."""
    for node in graph.nodes:
        if node.op in _OPS:
            provider = node.attributes.get("source")
            return Mark(node.op, node.name, _OPS[node.op], provider if isinstance(provider, str) else "")
    return None


def op_named_in(data: memoryview) -> tuple[str, str] | None:
    """Operation and what it is, for a .tflite that cannot be read as a graph: its custom operations stand in it by
    name. None when there is none that is known.
    """
    for op, what in _OPS.items():
        if op.startswith("CUSTOM:") and contains(data, op.removeprefix("CUSTOM:").encode()):
            return op, what
    return None


def blob(path: Path, start: bytes) -> str:
    """What a file without a graph is, by its first bytes or else its suffix; '' for any other file."""
    for magic, what in _BLOBS.values():
        if magic and start.startswith(magic):
            return what
    return _BLOBS.get(path.suffix.lower(), (b"", ""))[1]


def contexts(nodes: Iterable[tuple[str, Mapping[str, object]]], path: Path) -> Iterator[tuple[str, Path]]:
    """Location and path of the contexts that lie beside an .onnx.

    Args:
        nodes: name and attributes of each `EPContext`.
        path: the model file.

    Raises:
        ModelCorrupt: one leads out of the model's folder, or says nothing.
        ModelNotFound: one is not there.
    """
    for name, attributes in nodes:
        if attributes.get("embed_mode", 1) != 0 or attributes.get("main_context", 1) != 1:
            continue  # inside the file; or in the file of the node that is the main one
        location = attributes.get("ep_cache_context", b"")
        try:
            text = location.decode() if isinstance(location, bytes) else str(location)
        except UnicodeDecodeError as error:
            raise ModelCorrupt(
                f"node {name!r} of {path.name}: the place of its context is no text.", "Compile it again."
            ) from error
        yield text, beside(path, text, f"the context of node {name!r}")
