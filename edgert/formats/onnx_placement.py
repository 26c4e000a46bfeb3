"""A plan's placement inside an .onnx file, as the standard has it.

`ModelProto.configuration` lists devices, and each node's `device_configurations` says on which of them its outputs are
made, and in which pipeline stage.

edgert writes a configuration of its own name beside those that are there. Its devices are targets
(`openvino@cpu:0/f32/2t`), its stages are the segments of the plan. A file of others may name devices in other ways:
`wishes` understands device ids (`gpu:0`) and kinds (`GPU`), and refuses what it does not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgert.errors import ModelUnsupported, OptionError, UnknownTarget
from edgert.formats import ModelFile
from edgert.plan import Plan
from edgert.profile import Target

if TYPE_CHECKING:
    import onnx

    from edgert.formats.onnx import OnnxFile

__all__ = ["CONFIGURATION", "Placement", "read_placement", "wishes", "write_placement"]

CONFIGURATION = "edgert"
"""Name of the configuration that edgert writes."""
_IR_VERSION = 11
"""The first that has configurations (onnx 1.18)."""
_INITIALISERS_ARE_INPUTS = 4
"""Before this IR version each initialiser is listed as an input; since then that makes it one that callers may set."""
_DEVICE_ID = re.compile(r"[a-z]+:\d+")
_KINDS = ("cpu", "gpu", "npu")


@dataclass(frozen=True, slots=True)
class Placement:
    """One configuration of a model."""

    name: str
    devices: tuple[str, ...]
    """Their names in the file; empty where it only counts them."""
    nodes: Mapping[str, int]
    """Node name -> index of its device; nodes without a place are absent."""
    stages: Mapping[str, int]
    """Node name -> pipeline stage; nodes without one are absent."""


def write_placement(file: ModelFile, plan: Plan, path: Path) -> None:
    """Write a copy of a model that carries a plan's placement.

    The copy computes the same; it has IR version 11 at least, and external data of its own in `path` + '.data'.

    Raises:
        OptionError: the plan is not one of this model, the model is no .onnx, or the path cannot be written.
    """
    source = _onnx(file)
    if plan.model != source.digest:
        raise OptionError(
            f"plan {plan.id} was made for another model than {source.path.name}.", "Plan this model, then write it."
        )
    from edgert.formats.onnx_write import write_nodes

    model = type(source.proto)()
    model.CopyFrom(source.proto)
    _raise_version(model)
    _clear(model)
    targets = list(dict.fromkeys(plan.targets))
    configuration = model.configuration.add()
    configuration.name = CONFIGURATION
    configuration.num_devices = len(targets)
    configuration.device.extend(str(target) for target in targets)
    segments = {
        name: number
        for number, segment in enumerate(plan.segments)
        for name in segment.nodes or (node.name for node in source.graph.nodes)
    }
    for proto, name in _named(source, model):
        if name not in segments and plan.tidied:
            continue  # folded away before the plan was made: it runs nowhere, so it has no place
        place = proto.device_configurations.add()
        place.configuration_id = CONFIGURATION
        place.pipeline_stage = segments[name]
        for output in filter(None, proto.output):
            spec = place.sharding_spec.add()
            spec.tensor_name = output
            spec.device.append(targets.index(plan.segments[segments[name]].target))
    copy = dataclasses.replace(source, proto=model)
    write_nodes(copy, [node.name for node in source.graph.nodes], path)


def read_placement(file: ModelFile, configuration: str = "") -> Placement:
    """The placement that a model carries.

    Args:
        file: an .onnx model.
        configuration: which one; when empty edgert's own, else the only one.

    Raises:
        OptionError: there is no such configuration, or none or several to choose from.
        ModelUnsupported: a node's outputs are spread over several devices, or over one that the file does not have.
    """
    source = _onnx(file)
    found = {item.name: item for item in source.proto.configuration}
    name = configuration or (CONFIGURATION if CONFIGURATION in found or len(found) != 1 else next(iter(found)))
    if name not in found:
        known = ", ".join(map(repr, found)) or "none"
        raise OptionError(
            f"model {source.path.name} has no device configuration {name!r}, but {known}.",
            "Name one that it has, or write one with `edgert plan MODEL --export-placement OUT.onnx`.",
        )
    nodes: dict[str, int] = {}
    stages: dict[str, int] = {}
    for proto, node in _named(source, source.proto):
        for place in proto.device_configurations:
            if place.configuration_id != name:
                continue
            device = _device(place, node, found[name].num_devices)
            if device is not None:
                nodes[node] = device
            if place.HasField("pipeline_stage"):
                stages[node] = place.pipeline_stage
    return Placement(name, tuple(found[name].device), nodes, stages)


def wishes(placement: Placement) -> tuple[str, ...]:
    """The devices that the placement uses, as `edgert.load(targets=...)` takes them: targets or patterns.

    Raises:
        OptionError: it places no node, names no devices, or names one in a way that is not understood.
    """
    used = sorted(set(placement.nodes.values()))
    if not used or len(placement.devices) <= used[-1]:
        raise OptionError(
            f"device configuration {placement.name!r} "
            f"{'does not name its devices' if used else 'places no node'}, so nothing follows from it.",
            "Pass --targets instead.",
        )
    return tuple(dict.fromkeys(_wish(placement.devices[device]) for device in used))


def _wish(device: str) -> str:
    try:
        return str(Target.parse(device))
    except UnknownTarget:
        lower = device.lower()
    if _DEVICE_ID.fullmatch(lower):
        return f"*@{lower}/*"
    if lower in _KINDS:
        return f"*@{lower}:*"
    raise OptionError(
        f"device {device!r} of the model's configuration is neither a target, nor a device id, nor a kind of device.",
        f"Rename it, to 'gpu:0' or one of {', '.join(_KINDS)} for example, or pass --targets instead.",
    )


def _onnx(file: ModelFile) -> OnnxFile:
    from edgert.formats.onnx import OnnxFile

    if not isinstance(file, OnnxFile):
        raise OptionError(
            f"model {file.path.name} is a .{file.format}, and only .onnx files can carry a placement.",
            "Keep the plan itself instead (`edgert plan MODEL -o plan.json`).",
        )
    return file


def _named(source: OnnxFile, model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, str]]:
    """Nodes of `model`, which is `source`'s or a copy, with their names in the graph, but for those folded away."""
    # A careless file has nodes without a name or with another's; what a node writes is always its own.
    names = {output: node.name for node in source.graph.nodes for output in node.writes}
    pairs = [(proto, next(filter(None, proto.output), "")) for proto in model.graph.node]
    return [(proto, names[output]) for proto, output in pairs if output in names]


def _device(place: onnx.NodeDeviceConfigurationProto, node: str, count: int) -> int | None:
    devices = {device for spec in place.sharding_spec for device in spec.device}
    if len(devices) > 1 or any(spec.sharded_dim for spec in place.sharding_spec):
        raise ModelUnsupported(
            f"node {node!r} is spread over {len(devices)} devices in the model's device configuration.",
            "edgert runs each node on one; choose another configuration, or pass --targets instead.",
        )
    device = next(iter(devices), None)
    if device is not None and not 0 <= device < count:
        raise ModelUnsupported(
            f"node {node!r} is on device {device} of {count} in the model's device configuration.",
            "Export the model again.",
        )
    return device


def _raise_version(model: onnx.ModelProto) -> None:
    """Give the model the IR version that has configurations, with the meaning that it had."""
    if model.ir_version < _INITIALISERS_ARE_INPUTS:
        initialisers = {tensor.name for tensor in model.graph.initializer}
        kept = [info for info in model.graph.input if info.name not in initialisers]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    if not model.opset_import:
        model.opset_import.add().version = 1
    model.ir_version = max(model.ir_version, _IR_VERSION)


def _clear(model: onnx.ModelProto) -> None:
    """Take an earlier configuration of edgert's out."""
    others = [item for item in model.configuration if item.name != CONFIGURATION]
    del model.configuration[:]
    model.configuration.extend(others)
    for node in model.graph.node:
        places = [place for place in node.device_configurations if place.configuration_id != CONFIGURATION]
        del node.device_configurations[:]
        node.device_configurations.extend(places)
