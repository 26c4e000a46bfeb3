"""Writes operators of a .tflite file as a .tflite file of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgert.errors import ModelUnsupported
from edgert.formats.cut import Cut, cut
from edgert.formats.files import beside, copy_view, map_file, replacing, rest
from edgert.formats.flat import has_external_buffers, schema, trusting
from edgert.graph import Graph

if TYPE_CHECKING:
    from edgert.formats.tflite import TfliteFile

_STATEFUL = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
_ALIGNMENT_BYTES = 16
"""What the schema asks of every buffer's data; the generated writer does not see to it."""
_LEAN_BYTES = 4096
"""Alignment of data behind the tables, so that they are mapped page by page; smaller buffers stay among the tables."""
_MAX_BYTES = (1 << 31) - (1 << 16)
"""A flatbuffer's offsets end at 2 GiB."""


def write_nodes(
    source: TfliteFile, nodes: Collection[str], path: Path, keep: Collection[str] = (), *, lean: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """See `edgert.formats.ModelFile.write`.

    A part keeps the operators' options, quantisation, sparsity, variables and the subgraphs that they run. Its tensors
    have the unique names of `Graph`, and it has no signature: its inputs and outputs are those of its subgraph 0.
    """
    part = cut(source.graph, nodes, keep)
    if lean and not part.whole:
        _check_state(source.graph, part)
        _check_types(source, part)
        with trusting(source.path):
            model = _part(source, schema().ModelT.InitFromPackedBuf(source.data), part)
            rest(source.data)
            _write_lean(model, source, path)
            rest(source.data)
        return part.inputs, part.outputs
    if part.whole:
        content: bytes | bytearray | memoryview = _whole(source)
    else:
        _check_state(source.graph, part)
        _check_types(source, part)
        with trusting(source.path):
            model = schema().ModelT.InitFromPackedBuf(source.data)
            content = pack(_part(source, model, part), source)
    with replacing(path) as file:
        file.write(content)
    return part.inputs, part.outputs


def _whole(source: TfliteFile) -> bytearray | memoryview:
    with trusting(source.path):
        if not has_external_buffers(source.path, source.data):
            return source.data
        return pack(schema().ModelT.InitFromPackedBuf(source.data), source)


def _check_state(graph: Graph, part: Cut) -> None:
    """Refuse to tear apart what shares state.

    Raises:
        ModelUnsupported: some of the operators that touch a variable are inside and some are not.
    """
    inside = set(part.indices)
    variables = set(graph.variables)
    resources = {index for index, node in enumerate(graph.nodes) if node.op in _STATEFUL or "HASHTABLE" in node.op}
    groups = [resources] + [set(graph.consumers.get(name, ())) for name in variables]
    for group in groups:
        if group & inside and not group <= inside:
            outside = graph.nodes[min(group - inside)].name
            raise ModelUnsupported(
                f"operators {graph.nodes[min(group & inside)].name!r} and {outside!r} share state.",
                "Keep them in one segment.",
            )


def _check_types(source: TfliteFile, part: Cut) -> None:
    for name in (*part.inputs, *part.outputs):
        if source.graph.values[name].dtype is None:
            raise ModelUnsupported(
                f"value {name!r} of {source.path.name} is a resource or a variant, so the model cannot be cut there.",
                "Cut elsewhere.",
            )


def _part(source: TfliteFile, model: Any, part: Cut) -> Any:
    """The unpacked model, reduced to the part: its subgraph first, then those that it runs."""
    main = model.subgraphs[source.subgraph]
    names = {index: name for name, index in source.tensors.items()}
    for index, tensor in enumerate(main.tensors):
        tensor.name = names[index].encode("utf-8", "surrogateescape")
    chosen = [source.operators[source.graph.nodes[index].name] for index in part.indices]
    main.operators = [main.operators[index] for index in chosen]
    main.inputs = [source.tensors[name] for name in part.inputs]
    main.outputs = [source.tensors[name] for name in part.outputs]
    _keep_used_tensors(main)
    model.subgraphs = _reachable(model.subgraphs, source.subgraph)
    model.operatorCodes = _keep(
        model.operatorCodes, [op for graph in model.subgraphs for op in graph.operators or ()], "opcodeIndex"
    )
    model.metadata = [item for item in model.metadata or () if bytes(item.name or b"") == b"min_runtime_version"]
    model.signatureDefs, model.metadataBuffer = None, None
    users = [tensor for graph in model.subgraphs for tensor in graph.tensors or ()] + model.metadata
    # Buffer 0 stays first: it means "no data".
    model.buffers = _keep(model.buffers, users, "buffer", always=(0,))
    return model


def _keep_used_tensors(graph: Any) -> None:
    """Drop the tensors that nothing in a subgraph names, and renumber."""
    used = {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        for field in ("inputs", "outputs", "intermediates"):
            used.update(np.asarray(getattr(operator, field) if getattr(operator, field) is not None else ()).tolist())
    kept = sorted(used - {-1})
    place = {old: new for new, old in enumerate(kept)} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in kept]
    graph.inputs, graph.outputs = ([place[index] for index in which] for which in (graph.inputs, graph.outputs))
    for operator in graph.operators:
        for field in ("inputs", "outputs", "intermediates"):
            if getattr(operator, field) is not None:
                setattr(operator, field, [place[int(index)] for index in getattr(operator, field)])


def _keep(items: Sequence[Any], users: Iterable[Any], field: str, always: Iterable[int] = ()) -> list[Any]:
    """The items that `users` name by index in `field`, renumbered."""
    users = list(users)
    kept = sorted({getattr(user, field) for user in users} | set(always))
    place = {old: new for new, old in enumerate(kept)}
    for user in users:
        setattr(user, field, place[getattr(user, field)])
    return [items[index] for index in kept]


def _reachable(subgraphs: Sequence[Any], main: int) -> list[Any]:
    """The subgraph `main` and those that it runs, renumbered with `main` first."""
    order = [main]
    for index in order:  # grows while it is walked
        for operator in subgraphs[index].operators or ():
            _each_call(operator, lambda called: order.append(called) if called not in order else None)
    place = {old: new for new, old in enumerate(order)}
    for index in order:
        for operator in subgraphs[index].operators or ():
            _renumber_calls(operator, place)
    return [subgraphs[index] for index in order]


def _each_call(operator: Any, visit: Callable[[int], None]) -> None:
    for options, name in _call_fields(operator):
        content = getattr(options, name)
        for index in [content] if isinstance(content, int) else np.asarray(content).tolist():
            if index >= 0:
                visit(index)


def _renumber_calls(operator: Any, place: Mapping[int, int]) -> None:
    for options, name in _call_fields(operator):
        content = getattr(options, name)
        if isinstance(content, int):
            setattr(options, name, place.get(content, content))
        else:
            setattr(options, name, [place.get(int(index), int(index)) for index in content])


def _call_fields(operator: Any) -> list[tuple[Any, str]]:
    return [
        (options, name)
        for options in (operator.builtinOptions, operator.builtinOptions2)
        if options is not None
        for name, content in vars(options).items()
        if content is not None and (name == "subgraph" or name.endswith(("SubgraphIndex", "SubgraphIndices")))
    ]


class Buffer:
    """Packs like the schema's BufferT, with the data aligned."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def Pack(self, builder: Any) -> int:  # the name that the generated code calls
        generated = schema()
        offset = None
        if len(self.data):
            builder.StartVector(1, len(self.data), _ALIGNMENT_BYTES)
            builder.head = builder.head - len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            offset = builder.EndVector()
        generated.BufferStart(builder)
        if offset is not None:
            generated.BufferAddData(builder, offset)
        return int(generated.BufferEnd(builder))


class _Behind:
    """Packs like the schema's BufferT whose data lies behind the tables, at an offset from the file's start."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.offset = _LEAN_BYTES  # any number that is no default: the tables are then as long as they will be

    def Pack(self, builder: Any) -> int:  # the name that the generated code calls
        generated = schema()
        generated.BufferStart(builder)
        generated.BufferAddOffset(builder, self.offset)
        generated.BufferAddSize(builder, len(self.data))
        return int(generated.BufferEnd(builder))


def _write_lean(model: Any, source: TfliteFile, path: Path) -> None:
    """Write tables, then the data of large buffers one after another: no more than one piece is ever in memory.

    The tables are packed twice: where the data begin is known once they are.
    """
    buffers = [Buffer(item) if len(item) < _LEAN_BYTES else _Behind(item) for item in _all_inside(model, source)]
    model.buffers = buffers
    position = len(_packed(model, 1 << 16))
    for buffer in buffers:
        if isinstance(buffer, _Behind):
            buffer.offset = position + -position % _LEAN_BYTES
            position = buffer.offset + len(buffer.data)
    with replacing(path) as file:
        file.write(_packed(model, 1 << 16))
        for buffer in buffers:
            if isinstance(buffer, _Behind):
                file.seek(buffer.offset)
                copy_view(buffer.data, file)


def _packed(model: Any, size: int) -> bytearray:
    import flatbuffers

    builder = flatbuffers.Builder(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    packed: bytearray = builder.Output()
    return packed


def pack(model: Any, source: TfliteFile) -> bytearray:
    """The model's bytes, with everything that the source keeps out of line (or in other files) inside.

    Raises:
        ModelUnsupported: that would be more than 2 GiB.
    """
    data = _all_inside(model, source)
    total = sum(len(item) for item in data)
    if total > _MAX_BYTES:
        raise ModelUnsupported(
            f"the part of {source.path.name} has {total} bytes of weights; a .tflite ends at 2 GiB.", "Cut it smaller."
        )
    model.buffers = [Buffer(item) for item in data]
    return _packed(model, total + (1 << 16))


def _all_inside(model: Any, source: TfliteFile) -> list[memoryview]:
    """The data of the model's buffers, with those that the source keeps out of line or in other files among them."""
    _take_in_external(model, source)
    data = [_content(buffer, source.data) for buffer in model.buffers or ()]
    for operator in (operator for graph in model.subgraphs for operator in graph.operators or ()):
        if operator.largeCustomOptionsSize:
            start = operator.largeCustomOptionsOffset
            operator.customOptions = np.frombuffer(
                source.data[start : start + operator.largeCustomOptionsSize], np.uint8
            )
            operator.largeCustomOptionsOffset = operator.largeCustomOptionsSize = 0
    return data


def _content(buffer: Any, file: memoryview) -> memoryview:
    if isinstance(buffer, Buffer):
        return buffer.data
    if buffer.offset > 1:
        return file[buffer.offset : buffer.offset + buffer.size]
    return memoryview(b"") if buffer.data is None else np.asarray(buffer.data, np.uint8).data


def _take_in_external(model: Any, source: TfliteFile) -> None:
    """Turn external buffers into the model's own."""
    if not has_external_buffers(source.path, source.data):
        return
    items = {item.id: item for item in model.externalBuffers or ()}
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors or ()):
        if tensor.externalBuffer:
            item = items[tensor.externalBuffer]
            group = bytes(model.externalBufferGroups[item.group].name).decode("utf-8", "surrogateescape")
            content = map_file(beside(source.path, group, "a buffer group"))
            model.buffers.append(Buffer(content[item.offset : item.offset + item.length]))
            tensor.buffer, tensor.externalBuffer = len(model.buffers) - 1, 0
    model.externalBuffers = model.externalBufferGroups = None
