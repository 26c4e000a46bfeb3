"""Tensors of an ONNX file: checked before anything trusts their sizes, read when asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgert.errors import ModelCorrupt, ModelUnsupported
from edgert.formats.files import beside, map_file
from edgert.tensor import BITS, Array, DType

if TYPE_CHECKING:
    import onnx

DTYPES: Mapping[int, DType] = {  # TensorProto.DataType -> element type
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4_e2m1fn", 24: "float8_e8m0fnu", 25: "uint2", 26: "int2", 27: "float6_e2m3fn", 28: "float6_e3m2fn",
}  # fmt: skip
_FIELDS: Mapping[DType, str] = {  # where a tensor without raw bytes keeps its elements; the rest use int32_data
    "float32": "float_data", "complex64": "float_data", "float64": "double_data", "complex128": "double_data",
    "int64": "int64_data", "uint32": "uint64_data", "uint64": "uint64_data", "string": "string_data",
}  # fmt: skip
MAX_BYTES = 1 << 62
"""No value is larger; a shape that says so is hostile."""
MAX_RANK = 1024


def dtype_of_code(code: int, owner: str) -> DType:
    """The element type with a number in TensorProto.DataType."""
    if code not in DTYPES:
        raise ModelUnsupported(
            f"{owner} has element type number {code}, unknown to ONNX up to IR version 14.",
            "Update edgert, or re-export.",
        )
    return DTYPES[code]


def count_of(dims: tuple[int, ...], owner: str) -> int:
    """Number of elements of a constant.

    Raises:
        ModelCorrupt: a size is negative or the product is absurd.
    """
    if len(dims) > MAX_RANK or any(size < 0 for size in dims) or math.prod(dims) > MAX_BYTES:
        raise ModelCorrupt(f"{owner} has an absurd shape {dims[:8]}.", "Export the model again.")
    return math.prod(dims)


def check_tensor(tensor: onnx.TensorProto, path: Path, owner: str) -> None:
    """Make certain that the file holds as much of a tensor as its shape says.

    Raises:
        ModelCorrupt: sizes do not fit, or its external data lies outside the model's folder.
        ModelNotFound: its external data is missing.
        ModelUnsupported: its element type is unknown.
    """
    dtype = dtype_of_code(tensor.data_type, owner)
    count = count_of(tuple(tensor.dims), owner)
    expected = -1 if dtype == "string" else size_bytes(tensor)  # strings have a field of their own, always
    if tensor.data_location == 1:
        _same(external_range(tensor, path, owner)[2], expected, owner, "bytes of external data")
    elif tensor.HasField("raw_data"):
        _same(len(tensor.raw_data), expected, owner, "raw bytes")
    else:
        items = getattr(tensor, _FIELDS.get(dtype, "int32_data"))
        if dtype.startswith("complex"):
            count *= 2
        elif BITS[dtype] in (2, 4) and len(items) != count:  # packed; some writers store one element an entry
            count = expected
        _same(len(items), count, owner, "elements")


def size_bytes(tensor: onnx.TensorProto) -> int:
    """Size of a checked tensor in the file."""
    dtype = DTYPES[tensor.data_type]
    if dtype == "string":
        return sum(len(item) for item in tensor.string_data)
    return (math.prod(map(int, tensor.dims)) * BITS[dtype] + 7) // 8


def _same(got: int, expected: int, owner: str, what: str) -> None:
    if got != expected:
        raise ModelCorrupt(
            f"{owner} holds {got} {what}, its shape asks for {max(expected, 0)}.",
            "The file is damaged: export or download it again.",
        )


def external_range(tensor: onnx.TensorProto, path: Path, owner: str) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor that lies outside the model file, checked against its file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = beside(path, entries.get("location", ""), owner)
    needed = (count_of(tuple(tensor.dims), owner) * BITS[dtype_of_code(tensor.data_type, owner)] + 7) // 8
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or needed)
    except ValueError as error:
        raise ModelCorrupt(f"{owner} has a malformed external offset or length.", "Export the model again.") from error
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ModelCorrupt(
            f"{owner} needs bytes {offset}..{offset + length} of {file.name}, which has {file.stat().st_size}.",
            "The file is truncated: export or download it again.",
        )
    return file, offset, length


def is_extended(dtype: DType) -> bool:
    """Whether numpy alone lacks an element type."""
    return BITS[dtype] < 8 or dtype.startswith(("bfloat", "float8"))


def inlined(tensor: onnx.TensorProto, path: Path) -> onnx.TensorProto:
    """A copy of a tensor whose external data lies in it."""
    file, offset, length = external_range(tensor, path, f"tensor {tensor.name!r}")
    copy = type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    copy.raw_data = bytes(map_file(file)[offset : offset + length]) if length else b""
    return copy


def read_tensor(tensor: onnx.TensorProto, path: Path) -> Array:
    """A tensor's array, read-only; external data is memory-mapped. Strings as `str` in an object array."""
    dtype = DTYPES[tensor.data_type]
    if tensor.data_location == 1:
        import onnx_ir

        file, offset, length = external_range(tensor, path, f"tensor {tensor.name!r}")
        array = onnx_ir.ExternalTensor(
            file.name, offset, length, onnx_ir.DataType(tensor.data_type),
            shape=onnx_ir.Shape(tensor.dims), name=tensor.name, base_dir=str(file.parent),
        ).numpy()  # fmt: skip
    elif dtype == "string":
        # Bytes that are no UTF-8 survive the way to str and back.
        texts = [item.decode("utf-8", "surrogateescape") for item in tensor.string_data]
        array = np.array(texts, dtype=object).reshape(tuple(tensor.dims))
    elif is_extended(dtype):
        import onnx_ir

        array = onnx_ir.serde.deserialize_tensor(tensor).numpy()
    else:
        import onnx

        array = onnx.numpy_helper.to_array(tensor)  # onnx-ir could, too, but takes 0.3 s to import
    array = np.asarray(array).view()
    array.flags.writeable = False
    return array


def read_sparse(sparse: onnx.SparseTensorProto, path: Path) -> Array:
    """A sparse tensor's dense array.

    Raises:
        ModelCorrupt: an index lies outside the shape.
    """
    values = read_tensor(sparse.values, path)
    indices = read_tensor(sparse.indices, path)
    shape = tuple(sparse.dims)
    try:
        dense: Array = np.zeros(shape, values.dtype)
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        dense.reshape(-1)[flat] = values
    except (ValueError, IndexError, MemoryError) as error:
        raise ModelCorrupt(
            f"sparse tensor {sparse.values.name!r} does not fit its shape {shape}: {error}.", "Export the model again."
        ) from error
    dense.flags.writeable = False
    return dense


def check_sparse(sparse: onnx.SparseTensorProto) -> None:
    """Check what `check_tensor` cannot see in a sparse tensor's two parts.

    Raises:
        ModelCorrupt: its shape is absurd, or its indices are not int64.
    """
    owner = f"sparse tensor {sparse.values.name!r}"
    count_of(tuple(sparse.dims), owner)
    if DTYPES[sparse.indices.data_type] != "int64":
        raise ModelCorrupt(f"{owner} has indices that are not int64.", "Export the model again.")


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Every graph of a model: its own, those in attributes (of functions, too) and those for training."""
    pending: list[onnx.GraphProto] = [model.graph]
    for training in model.training_info:
        pending += [training.initialization, training.algorithm]
    for function in model.functions:
        pending += _bodies(function.attribute_proto)
        for node in function.node:
            pending += _bodies(node.attribute)
    while pending:
        yield (graph := pending.pop())
        for node in graph.node:
            pending += _bodies(node.attribute)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initialisers and attributes, wherever they are."""
    for function in model.functions:
        yield from _of_attributes(function.attribute_proto)
        for node in function.node:
            yield from _of_attributes(node.attribute)
    for graph in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            yield from _of_attributes(node.attribute)


def _bodies(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.GraphProto]:
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        # A field is looked at only when set: reading an unset submessage is slow in a loop over every attribute.
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)
