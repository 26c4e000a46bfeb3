"""What the benches of executors share: a chain of equal stages on simulated devices, in real time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.execution.fleet import SERVICE, Fleet
from edgert.execution.limits import Limits
from edgert.execution.member import Transport
from edgert.execution.staged import StagedPipeline
from edgert.execution.start import start
from edgert.formats import open_model
from edgert.machine import Device, Reach
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import Target
from edgert.tensor import Array

FALLBACK = Target("onnxruntime", "cpu:0", "f32", 1)


def write_chain(path: Path, stages: int, width: int = 64) -> Path:
    """A model of as many Adds: y = x + 1 + 2 + ..., x of float32 (N, width)."""
    from onnx import TensorProto, helper, numpy_helper

    names = ["x", *(f"v{number}" for number in range(1, stages)), "y"]
    nodes = [
        helper.make_node("Add", [names[number], f"c{number}"], [names[number + 1]], name=f"add{number}")
        for number in range(stages)
    ]
    constants = [
        numpy_helper.from_array(np.full(1, number + 1, np.float32), f"c{number}") for number in range(stages)
    ]  # fmt: skip
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", width)) for name in names]
    graph = helper.make_graph(nodes, "chain", infos[:1], infos[-1:], constants, value_info=infos[1:-1])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path.write_bytes(model.SerializeToString())
    return path


def answer(inputs: Array, stages: int) -> Array:
    """What the chain computes."""
    return np.asarray(inputs + np.float32(stages * (stages + 1) / 2))


def simulated(number: int, run_s: float) -> Device:
    """A device whose every run takes so long, in real time."""
    return Device(
        f"npu:{number}", "npu", "a device on paper", 0, driver="simulated", attributes={"launch_s": str(run_s)}
    )


def pipeline_of(
    model: Path, stage_s: Sequence[float], folder: Path, *, limits: Limits | None = None, service: str | None = None,
    backend: str = "simulated", transport: Transport = "ipc",
) -> StagedPipeline:  # fmt: skip
    """The chain on one device a stage; a chain of one time is the whole model on one device.

    Args:
        model: of `write_chain`.
        stage_s: how long a run of each stage takes.
        folder: for the segments' files.
        limits: as for `start`.
        service: what the children run, else executors.
        backend: of the stages.
        transport: between caller and executors: ipc or inproc.
    """
    file = open_model(model)
    graph = file.graph
    devices = tuple(simulated(number, run_s) for number, run_s in enumerate(stage_s))
    seen = glance()
    machine = dataclasses.replace(
        seen, devices=(*seen.devices, *devices), reaches=tuple(Reach(backend, device.id) for device in devices)
    )
    segments = []
    for number, (device, run_s) in enumerate(zip(devices, stage_s, strict=True)):
        nodes = (graph.nodes[number].name,) if len(stage_s) > 1 else ()
        inputs, outputs = graph.nodes[number].inputs[:1], graph.nodes[number].writes
        whole = (tuple(value.name for value in graph.inputs), tuple(value.name for value in graph.outputs))
        ends = (tuple(inputs), tuple(outputs)) if nodes else whole
        segments.append(Segment(Target(backend, device.id, "f32"), nodes, *ends, run_s))
    crossing = {name for segment in segments for name in (*segment.inputs, *segment.outputs)}
    plan = Plan(
        file.digest, machine.fingerprint, {}, "throughput", "own", "onnx", "f32", graph.inputs, graph.outputs,
        tuple(segments), tuple(Instance(number) for number in range(len(segments))), fallbacks=(FALLBACK,),
        verification=Verification("onnx"), measured_s=sum(stage_s),
        values=tuple(graph.values[name] for name in sorted(crossing)),
    )  # fmt: skip
    source = Source(model, "onnx", graph.inputs, graph.outputs, "f32")
    fleet = Fleet(limits or Limits(), transport, service or SERVICE)
    running = start(plan, source, machine, folder, fleet=fleet)
    assert isinstance(running, StagedPipeline)  # its targets are no CPUs
    return running


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process; this one by default."""
    text = Path(f"/proc/{pid or os.getpid()}/statm").read_text(encoding="ascii")
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")
