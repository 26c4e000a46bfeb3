"""The bytes of an .onnx file as a message, and what must hold before anything else looks at it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgert.errors import MissingPackage, ModelCorrupt, ModelUnsupported
from edgert.formats.onnx_skim import LARGE_BYTES, Malformed, skim
from edgert.formats.onnx_tensors import graphs

if TYPE_CHECKING:
    import onnx

STANDARD = ("", "ai.onnx")
"""Names of the standard's own domain."""


def parse(path: Path, data: memoryview) -> onnx.ModelProto:
    """The file as a protobuf message.

    Raises:
        ModelCorrupt: it is none, or has no graph.
        MissingPackage: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackage(
            f"reading {path.name} needs the packages onnx and onnx-ir ({error}).",
            'pip install "edgert[onnx]"',
            package="onnx",
        ) from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

    # Through a link that leads elsewhere the weights would lie outside the model's folder.
    near = Path(os.path.realpath(path)) == Path(os.path.realpath(path.parent)) / path.name
    try:
        large = len(data) >= LARGE_BYTES and near
        model: onnx.ModelProto = skim(path, data) if large else onnx.ModelProto.FromString(data)
    except (DecodeError, MemoryError, Malformed) as error:
        remedy = "Export or download it again."
        if len(data) >= 1 << 31:
            remedy = "A protobuf message ends at 2 GiB: save the weights as external data."
        raise ModelCorrupt(
            f"model {str(path)!r} is no ONNX (or TFLite) file, or is truncated: {error}.", remedy
        ) from error
    if not model.HasField("graph") or model.ir_version < 1:
        raise ModelCorrupt(f"model {str(path)!r} holds no ONNX graph.", "Export or download it again.")
    return model


def check_versions(path: Path, model: onnx.ModelProto) -> None:
    import onnx

    if model.ir_version > onnx.IR_VERSION:
        raise ModelUnsupported(
            f"model {str(path)!r} has IR version {model.ir_version}; "
            f"onnx {onnx.__version__} reads up to {onnx.IR_VERSION}.",
            "pip install --upgrade onnx, or export for an older version.",
        )
    if model.ir_version >= 3 and not model.opset_import:
        raise ModelCorrupt(f"model {str(path)!r} names no operator set.", "Export the model again.")
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": max(row[3] for row in onnx.helper.VERSION_TABLE)}
    imports = [*model.opset_import, *(entry for function in model.functions for entry in function.opset_import)]
    for entry in imports:
        known = newest.get(domain_of(entry.domain), entry.version)
        if entry.version > known:
            raise ModelUnsupported(
                f"model {str(path)!r} uses operator set {entry.domain or 'ai.onnx'} {entry.version}; "
                f"onnx {onnx.__version__} has {known}.",
                "pip install --upgrade onnx, or export for an older operator set.",
            )


def check_texts(path: Path, model: onnx.ModelProto) -> None:
    """Refuse names that are no UTF-8: protobuf hands them over as bytes."""
    nodes = [node for function in model.functions for node in function.node]
    names: list[str] = [text for f in model.functions for text in (f.name, f.domain, f.overload, *f.input, *f.output)]
    names += [text for entry in (*model.opset_import, *model.metadata_props) for text in _texts(entry)]
    for graph in graphs(model):
        nodes += graph.node
        names += [graph.name, *(tensor.name for tensor in graph.initializer)]
        names += [sparse.values.name for sparse in graph.sparse_initializer]
        for info in (*graph.input, *graph.output, *graph.value_info):
            names += [info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim)]
    for node in nodes:
        names += [node.name, node.op_type, node.domain, node.overload, *node.input, *node.output]
        names += [text for attribute in node.attribute for text in (attribute.name, attribute.ref_attr_name)]
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise ModelCorrupt(f"model {str(path)!r}: the name {wrong!r} is no UTF-8.", "Export or download it again.")


def _texts(entry: onnx.OperatorSetIdProto | onnx.StringStringEntryProto) -> tuple[str, ...]:
    return (entry.domain,) if hasattr(entry, "domain") else (entry.key, entry.value)


def domain_of(domain: str) -> str:
    return "" if domain in STANDARD else domain
