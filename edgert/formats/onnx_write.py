"""Writes nodes of an .onnx file as an .onnx file of their own."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgert.errors import ModelUnsupported
from edgert.formats.cut import Cut, cut
from edgert.formats.files import copy_range, map_file, replacing
from edgert.formats.onnx_tensors import external_range, tensors

if TYPE_CHECKING:
    import onnx

    from edgert.formats.onnx import OnnxFile

_log = logging.getLogger(__name__)
_PAGE_BYTES = 4096
"""Alignment of external data, so that it can be memory-mapped; smaller tensors go into the model file."""
_MODEL_FIELDS = (
    "ir_version", "producer_name", "producer_version", "domain", "model_version", "opset_import", "metadata_props",
    "functions", "configuration",
)  # fmt: skip
"""Of those, an older onnx lacks the last."""


def write_nodes(
    source: OnnxFile, nodes: Collection[str], path: Path, keep: Collection[str] = (), *, lean: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """See `edgert.formats.ModelFile.write`.

    The written file names its own opsets, functions and metadata like the source; it holds the constants that its
    nodes use and the types of their values. External data is copied into `path` + '.data', or (`lean`) stays where it
    is: a hard link beside the written file names the same bytes, where the file system allows one.
    """
    part = cut(source.graph, nodes, keep)
    model = _whole(source) if part.whole else _part(source, part)
    if any(tensor.data_location == 1 for tensor in tensors(model)) and not (lean and _linked(model, source.path, path)):
        data_path = path.with_name(path.name + ".data")
        with replacing(data_path) as file:
            _move_external(model, source.path, file, data_path.name)
    with replacing(path) as file:
        file.write(model.SerializeToString())
    return part.inputs, part.outputs


def _whole(source: OnnxFile) -> onnx.ModelProto:
    if not any(tensor.data_location == 1 for tensor in tensors(source.proto)):
        return source.proto
    model = type(source.proto)()
    model.CopyFrom(source.proto)  # its external data is about to get another place
    return model


def _part(source: OnnxFile, part: Cut) -> onnx.ModelProto:
    model = type(source.proto)()
    for name in (name for name in _MODEL_FIELDS if name in model.DESCRIPTOR.fields_by_name):
        _copy_field(source.proto, model, name)
    graph, original = model.graph, source.proto.graph
    graph.name = original.name or "part"
    chosen = [source.graph.nodes[index] for index in part.indices]
    used = {name for node in chosen for name in node.reads}
    used |= _copy_annotations(original, graph, used | {name for node in chosen for name in node.writes})
    for name in sorted(used & source.folded.keys()):
        graph.node.add().CopyFrom(source.folded[name])
    for node in chosen:
        copy = graph.node.add()
        copy.CopyFrom(source.sources[node.name])
        copy.name = node.name  # unique, so that names mean the same in the part
    graph.initializer.extend(tensor for tensor in original.initializer if tensor.name in used)
    graph.sparse_initializer.extend(item for item in original.sparse_initializer if item.values.name in used)
    for name in part.inputs:
        graph.input.append(_typed(source, name))
    # Before IR version 4 an initialiser must be an input, too. Since then it makes the constant one that a caller may
    # override, which nobody can in a part, and which keeps ONNX Runtime from folding it.
    kept = {tensor.name for tensor in graph.initializer} if model.ir_version < 4 else set()
    graph.input.extend(info for info in original.input if info.name in kept)
    for name in part.outputs:
        graph.output.append(_typed(source, name))
    inner = dict.fromkeys(name for node in chosen for name in node.writes if name not in part.outputs)
    graph.value_info.extend(_typed(source, name) for name in inner if name in source.types.own)
    return model


def _copy_field(source: onnx.ModelProto, model: onnx.ModelProto, name: str) -> None:
    content = getattr(source, name)
    if isinstance(content, (int, str)):
        setattr(model, name, content)
    else:
        getattr(model, name).extend(content)


def _copy_annotations(original: onnx.GraphProto, graph: onnx.GraphProto, names: set[str]) -> set[str]:
    """Keep what is said about the quantisation of the named values; returns the scales and zero points it refers to."""
    kept = [item for item in original.quantization_annotation if item.tensor_name in names]
    graph.quantization_annotation.extend(kept)
    return {entry.value for item in kept for entry in item.quant_parameter_tensor_names}


def _typed(source: OnnxFile, name: str) -> onnx.ValueInfoProto:
    import onnx

    if name not in source.types.own or source.types.value(name).dtype is None:
        raise ModelUnsupported(
            f"value {name!r} of {source.path.name} has no known element type, so the model cannot be cut there.",
            "Cut elsewhere, or add value_info for it (onnx.shape_inference, or the exporter's own).",
        )
    info: onnx.ValueInfoProto = onnx.helper.make_value_info(name, source.types.own[name])
    return info


def _linked(model: onnx.ModelProto, source: Path, path: Path) -> bool:
    """Link what the model's tensors keep elsewhere to beside `path`, and name it so; False where no link can be made
    (another file system, or one without links): nothing is changed then.
    """
    ranges = {
        index: external_range(tensor, source, f"tensor {tensor.name!r}")
        for index, tensor in enumerate(tensors(model))
        if tensor.data_location == 1
    }
    origins = dict.fromkeys(origin for origin, _, length in ranges.values() if length >= _PAGE_BYTES)
    locations = {origin: f"{path.name}.{number}.data" for number, origin in enumerate(origins)}
    try:
        for origin, location in locations.items():
            path.with_name(location).unlink(missing_ok=True)
            os.link(origin, path.with_name(location))
    except OSError as error:
        _log.info("%s: no link to its weights (%s): they are copied", path.name, error.strerror or error)
        return False
    for index, tensor in enumerate(tensors(model)):
        if index in ranges:
            origin, offset, length = ranges[index]
            _place(tensor, origin, offset, length, locations.get(origin, ""))
    return True


def _place(tensor: onnx.TensorProto, origin: Path, offset: int, length: int, location: str) -> None:
    """Name the place of a tensor's bytes; few bytes go into the model itself."""
    del tensor.external_data[:]
    if length < _PAGE_BYTES:
        tensor.ClearField("data_location")
        tensor.raw_data = bytes(map_file(origin)[offset : offset + length]) if length else b""
        return
    for key, entry in (("location", location), ("offset", str(offset)), ("length", str(length))):
        item = tensor.external_data.add()
        item.key, item.value = key, entry


def _move_external(model: onnx.ModelProto, source: Path, file: BinaryIO, location: str) -> None:
    """Copy what the model's tensors keep elsewhere: large ones into `file`, small ones into the model."""
    for tensor in tensors(model):
        if tensor.data_location != 1:
            continue
        origin, offset, length = external_range(tensor, source, f"tensor {tensor.name!r}")
        if length >= _PAGE_BYTES:
            file.seek(-file.tell() % _PAGE_BYTES, 1)
            start = file.tell()
            copy_range(origin, offset, length, file)
            _place(tensor, source, start, length, location)
        else:
            _place(tensor, origin, offset, length, location)
