"""Writes nodes of an .onnx file as an .onnx file of their own."""

from __future__ import annotations

import hashlib
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

SHARED = "weights-"
"""What the names of files that several parts share begin with."""
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
    nodes use and the types of their values. External data is copied into `path` + '.data', or (`lean`) lies in one copy
    of it that all parts in the folder share.
    """
    part = cut(source.graph, nodes, keep)
    model = _whole(source) if part.whole else _part(source, part)
    if lean:
        _share(model, source.path, path.parent)
    elif any(tensor.data_location == 1 for tensor in tensors(model)):
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


def _share(model: onnx.ModelProto, source: Path, folder: Path) -> None:
    """Have the model's tensors lie in copies of the whole files that they lie in now, one for all parts in a folder.

    No hard links: readers refuse weights with a second name, and the user's own file would get one.
    """
    places: dict[Path, str] = {}
    for tensor in tensors(model):
        if tensor.data_location != 1:
            continue
        origin, offset, length = external_range(tensor, source, f"tensor {tensor.name!r}")
        if origin not in places and length >= _PAGE_BYTES:
            places[origin] = f"{SHARED}{hashlib.sha256(os.fsencode(origin)).hexdigest()[:12]}.data"
            _copy_once(origin, folder / places[origin])
        _place(tensor, origin, offset, length, places.get(origin, ""))


def _copy_once(origin: Path, copy: Path) -> None:
    """The copy is recognised by the size and the time of what it was made from."""
    facts = origin.stat()
    if copy.exists() and (copy.stat().st_size, copy.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns):
        return
    with replacing(copy) as file:
        copy_range(origin, 0, facts.st_size, file)
    os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def external_ranges(path: Path) -> list[tuple[str, int, int]]:
    """Which bytes of which file beside it a written part reads: name, offset and length, neighbours joined."""
    import onnx

    found: list[tuple[str, int, int]] = []
    places = []
    for tensor in tensors(onnx.load(str(path), load_external_data=False)):
        if tensor.data_location == 1:
            origin, offset, length = external_range(tensor, path, f"tensor {tensor.name!r}")
            places.append((origin.name, offset, length))
    for name, offset, length in sorted(places):
        if found and found[-1][0] == name and offset <= sum(found[-1][1:]) + _PAGE_BYTES:
            found[-1] = (name, found[-1][1], max(sum(found[-1][1:]), offset + length) - found[-1][1])
        else:
            found.append((name, offset, length))
    return found


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
