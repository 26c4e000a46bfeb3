"""The hop of `bench.hop` on the whole path: two executors that a pipeline started, a core each, one request at a time.

From the run of the first segment returning in its executor to the run of the second one starting in the other: checks
of the outputs, publishing, the message, its arrival, the fair queue and checks of the inputs included.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.execution import launcher
from edgert.execution.arrivals import Job
from edgert.execution.executor import Executor, Hosted
from edgert.execution.fleet import Fleet
from edgert.execution.limits import Limits
from edgert.execution.member import Transport
from edgert.execution.preparer import PreparedSegment
from edgert.execution.staged import StagedPipeline
from edgert.execution.staging import stage
from edgert.formats import open_model
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import Target
from edgert.tensor import Data
from edgert.transport.messages import Leg

_RECORD = struct.Struct("<dd")
"""A run: when it started and when it returned, on `time.perf_counter`, which all processes share."""
_PATIENCE_S = 60.0
_FOLDER = "EDGERT_BENCH_HOP"
_TARGET = Target("onnxruntime", "cpu:0", "f32", 1)


class Stamping(Executor):
    """Writes down when runs start and return, once what follows is under way."""

    def serve(self) -> None:
        path = Path(os.environ[_FOLDER]) / f"{os.getpid()}.{threading.get_ident()}.spans"
        self._stamps = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        super().serve()

    def _outputs(self, segment: PreparedSegment, leg: Leg, inputs: Mapping[str, Data]) -> dict[str, Data]:
        started_s = time.perf_counter()
        outputs = super()._outputs(segment, leg, inputs)
        self._span = started_s, time.perf_counter()
        return outputs

    def _run(self, job: Job) -> None:
        super()._run(job)
        os.write(self._stamps, _RECORD.pack(*self._span))


class StampingHosted(Hosted):
    """In a child."""

    kind = Stamping


SERVICE = "bench.hop_executors:StampingHosted"


@contextmanager
def handed(sizes: Sequence[int], transport: Transport, swept: int = 0) -> Iterator[Callable[[int, int], float]]:
    """What hands a value of some size, made from some number, from one executor to the other: seconds of the hop.

    Args:
        sizes: bytes of the value.
        transport: ipc: two processes; inproc: two threads.
        swept: bytes that the producer's run writes, and reads again, beside the value.
    """
    with ExitStack() as end:
        folder = Path(end.enter_context(tempfile.TemporaryDirectory()))
        end.enter_context(mock.patch.dict(os.environ, {_FOLDER: str(folder)}))
        end.enter_context(mock.patch.object(launcher, "Executor", Stamping))
        fleet = Fleet(Limits(), transport, SERVICE)
        end.callback(fleet.close)
        pipelines = {size: _pipeline(folder, size, fleet, swept) for size in sizes}
        for pipeline in pipelines.values():
            end.callback(pipeline.close)
        spans = _Spans(folder)

        def hand(size: int, number: int) -> float:
            asked_s = time.perf_counter()
            made = pipelines[size].run({"x": np.full((1, 1), number + 1, np.float32)})
            answered_s = time.perf_counter()
            assert made.outputs["y"] == number + 1, made
            assert not made.reason, made.reason
            (_, returned_s), (started_s, ended_s) = spans.since(asked_s)
            assert returned_s < started_s < ended_s < answered_s, "these are not the two runs of one request"
            return started_s - returned_s

        yield hand


class _Spans:
    """What the executors wrote down."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def since(self, moment_s: float) -> list[tuple[float, float]]:
        """The two runs that started after that, in order. The last one is written after its answer left."""
        found: list[tuple[float, float]] = []
        limit_s = moment_s + _PATIENCE_S
        while len(found) < 2:
            assert time.perf_counter() < limit_s, f"runs that were written down: {found}"
            found += [span for path in self._folder.glob("*.spans") for span in self._new(path) if span[0] > moment_s]
        return sorted(found)

    def _new(self, path: Path) -> Iterator[tuple[float, float]]:
        start = self._read.get(path, 0)
        with path.open("rb") as file:
            file.seek(start)
            records = file.read()
        self._read[path] = start + len(records)
        yield from _RECORD.iter_unpack(records)


def _pipeline(folder: Path, size: int, fleet: Fleet, swept: int) -> StagedPipeline:
    """Two segments with a core each: `size` bytes of x, and their largest, which is x again.

    With `swept`, x comes to them by way of the largest of so many bytes of it.
    """
    path = folder / f"{size}.onnx"
    shape, wide = [1, size // 4], [1, swept // 4]
    of_one = [
        helper.make_node("ConstantOfShape", ["shape"], ["zero"], name="zeros"),
        helper.make_node("Add", ["zero", "x"], ["v"], name="fill"),
    ]
    of_many = [
        helper.make_node("ConstantOfShape", ["wide"], ["zero"], name="zeros"),
        helper.make_node("Add", ["zero", "x"], ["w"], name="sweep"),
        helper.make_node("ReduceMax", ["w"], ["m"], name="most", keepdims=1),
        helper.make_node("Expand", ["m", "shape"], ["v"], name="fill"),
    ]
    first = of_many if swept else of_one
    largest = helper.make_node("ReduceMax", ["v"], ["y"], name="largest", keepdims=1)
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
        for name, sizes in (("x", [1, 1]), ("v", shape), ("y", [1, 1]), ("w", wide), ("m", [1, 1]))
    }
    graph = helper.make_graph(
        [*first, largest], "hop", [infos["x"]], [infos["y"]],
        [helper.make_tensor("shape", TensorProto.INT64, [2], shape),
         *([helper.make_tensor("wide", TensorProto.INT64, [2], wide)] if swept else [])],
        value_info=[infos[name] for node in first for name in node.output if name in infos],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    file = open_model(path)
    read, machine = file.graph, glance()
    segments = (
        Segment(_TARGET, tuple(node.name for node in first), ("x",), ("v",), 1e-3),
        Segment(_TARGET, ("largest",), ("v",), ("y",), 1e-3),
    )
    cores = sorted(os.sched_getaffinity(0))
    plan = Plan(
        file.digest, machine.fingerprint, {}, "throughput", "own", "onnx", "f32", read.inputs, read.outputs, segments,
        (Instance(0, (cores[0],)), Instance(1, (cores[-1],))), fallbacks=(_TARGET,), measured_s=2e-3,
        verification=Verification("onnx"), values=tuple(read.values[name] for name in ("x", "v", "y")),
    )  # fmt: skip
    source = Source(path, file.format, read.inputs, read.outputs, file.precision)
    cache = folder / str(size)
    cache.mkdir()
    return stage(plan, source, machine, cache, parts=None, limits=None, fleet=fleet, drifted=lambda _drift: None)
