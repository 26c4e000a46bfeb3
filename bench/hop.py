"""What it costs to hand an array from one executor to the next on one box.

    python -m bench.hop [--rounds 200] [--json]

A hop is the time from the producer's run returning to the consumer's run starting, in two executors that a pipeline
started (`bench.hop_executors`): processes with a core each (ipc), or threads (inproc). The producer is an ONNX Runtime
session that writes fresh numbers each time. Beside it, in the same rounds: the same bytes as a message of plain pyzmq
(a copy in, a copy out); then the smallest hop after a run that wrote as much as the largest does (`SWEPT`), which tells
what is due to the bytes handed over and what to a run that threw everything else out of the caches. Sizes and ways
take turns, a few hops each, so what slows the machine for a while slows all.

Asked for: at most 150 us at every size over ipc, the slowest size within 1.5 times the fastest; at most 60 us over
inproc.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import zmq
from onnx import TensorProto, helper

from bench.hop_executors import handed
from edgert.devices import backend
from edgert.devices.backend import Runnable, Source
from edgert.formats import open_model
from edgert.machine import Device
from edgert.profile import Target
from edgert.tensor import Array

SIZES = tuple(4096 << (2 * step) for step in range(7))
"""Bytes: 4 KB to 16 MB."""
LIMITS_US = {"ipc": 150.0, "inproc": 60.0}
FLAT = 1.5
PLAIN = "plain pyzmq"
SWEPT = "ipc, after 16 MB"
_WARM = 5
"""Rounds that do not count."""
_AGAIN = 3
"""Hops of one way and size that are timed in a round."""
_PATIENCE_S = 60.0
_ANSWER = struct.Struct("<dd")

Hand = Callable[[int, int], float]
"""Makes a value of some size from some number and hands it over; seconds of the hop."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One way at one size."""

    way: str
    """'ipc', 'inproc', `PLAIN` or `SWEPT`."""
    size_bytes: int
    p50_us: float
    p10_us: float
    p90_us: float
    hops: int


def measure(rounds: int) -> list[Hop]:
    """All ways at all sizes, interleaved."""
    with ExitStack() as end:
        ways: dict[str, Hand] = {
            "ipc": end.enter_context(handed(SIZES, "ipc")),
            "inproc": end.enter_context(handed(SIZES, "inproc")),
            PLAIN: end.enter_context(_plainly()),
            SWEPT: end.enter_context(handed(SIZES[:1], "ipc", swept=SIZES[-1])),
        }
        taken: dict[tuple[str, int], list[float]] = {
            (way, size): [] for way in ways for size in SIZES if way != SWEPT or size == SIZES[0]
        }
        in_turn = sorted(taken, key=lambda each: each[1])  # the control by itself: it sweeps its neighbours' caches too
        gc.disable()  # a collection in the middle of a hop would be charged to it
        try:
            for part in ([each for each in in_turn if each[0] != SWEPT], [(SWEPT, SIZES[0])]):
                for number, (way, size) in itertools.product(range(rounds + _WARM), part):
                    hand = ways[way]
                    hand(size, number)  # a stream: what ran before this size is not its affair
                    taken[way, size] += [hand(size, number + again) for again in range(_AGAIN)]
        finally:
            gc.enable()
    return [_summary(way, size, times[_WARM * _AGAIN :]) for (way, size), times in taken.items()]


def producer(folder: Path, size: int) -> Runnable:
    """A session whose output of `size` bytes is its input, a number, added to a constant zero: y[i] = x."""
    shape = [1, size // 4]
    zero = helper.make_node("ConstantOfShape", ["shape"], ["zero"])
    graph = helper.make_graph(
        [zero, helper.make_node("Add", ["zero", "x"], ["y"])], "fill",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("shape", TensorProto.INT64, [2], shape)],
    )  # fmt: skip
    path = folder / f"{size}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    file = open_model(path)
    source = Source(file.path, file.format, file.graph.inputs, file.graph.outputs, file.precision)
    target = Target("onnxruntime", "cpu:0", source.precision, 1)
    return backend("onnxruntime").prepare(source, target, Device("cpu:0", "cpu", "this CPU", 0))


@contextmanager
def _plainly() -> Iterator[Hand]:
    """The same bytes as messages: what one gets without shared memory."""
    with ExitStack() as end:
        folder = end.enter_context(tempfile.TemporaryDirectory())
        producers = {size: producer(Path(folder), size) for size in SIZES}
        end.enter_context(_echoing(f"ipc://{folder}/plain"))
        pair = end.enter_context(end.enter_context(zmq.Context()).socket(zmq.PAIR))
        pair.linger = 0
        pair.connect(f"ipc://{folder}/plain")

        def hand(size: int, number: int) -> float:
            array = producers[size].run({"x": _number(number)})["y"]
            returned_s = time.perf_counter()
            pair.send(array)
            ready_s, got = _ANSWER.unpack(pair.recv())
            return _checked(ready_s, got, number) - returned_s

        yield hand
        pair.send(b"")
        pair.recv()


def echo(endpoint: str) -> None:
    """The consumer of `_plainly`."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
        pair.bind(endpoint)
        sys.stdout.write(f"{endpoint}\n")
        sys.stdout.flush()
        while message := pair.recv():
            array = np.frombuffer(message, np.float32)
            ready_s = time.perf_counter()
            pair.send(_ANSWER.pack(ready_s, array.min() if array.min() == array.max() else float("nan")))
        pair.send(b"")
        time.sleep(0.05)  # what is on its way is lost with the socket


@contextmanager
def _echoing(endpoint: str) -> Iterator[None]:
    """`echo` in a process of its own."""
    command = [sys.executable, "-m", "bench.hop", "--echo", endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield
            process.wait(_PATIENCE_S)
        finally:
            process.kill()


def _number(number: int) -> Array:
    return np.full((1, 1), number + 1, np.float32)


def _checked(ready_s: float, got: float, number: int) -> float:
    if got != number + 1:
        raise AssertionError(f"{got} came in place of {number + 1}")
    return ready_s


def _summary(way: str, size: int, times_s: Sequence[float]) -> Hop:
    tenths = statistics.quantiles(times_s, n=10, method="inclusive")
    return Hop(way, size, 1e6 * statistics.median(times_s), 1e6 * tenths[0], 1e6 * tenths[-1], len(times_s))


def flatness(hops: Sequence[Hop], way: str) -> float:
    """Slowest size over fastest."""
    medians = [hop.p50_us for hop in hops if hop.way == way]
    return max(medians) / min(medians)


def show(hops: Sequence[Hop], as_json: bool) -> None:
    """A table, or JSON."""
    if as_json:
        document: dict[str, Any] = {"hops": [asdict(hop) for hop in hops]}
        document["flatness"] = {way: flatness(hops, way) for way in LIMITS_US}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    ways = list(dict.fromkeys(hop.way for hop in hops))
    sys.stdout.write(f"{'p50 (p10..p90), us':>20}" + "".join(f"{way:>24}" for way in ways) + "\n")
    for size in SIZES:
        row = {hop.way: hop for hop in hops if hop.size_bytes == size}
        cells = (_cell(row[way]) if way in row else "" for way in ways)
        sys.stdout.write(f"{size // 1024:>17} KB" + "".join(f"{cell:>24}" for cell in cells) + "\n")
    for way, limit_us in LIMITS_US.items():
        worst = max(hop.p50_us for hop in hops if hop.way == way)
        sys.stdout.write(
            f"{way}: worst {worst:.0f} us (at most {limit_us:.0f}), flat within {flatness(hops, way):.2f}\n"
        )


def _cell(hop: Hop) -> str:
    return f"{hop.p50_us:.0f} ({hop.p10_us:.0f}..{hop.p90_us:.0f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hop", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--echo", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.echo:
        echo(options.echo)
    else:
        show(measure(options.rounds), options.json)


if __name__ == "__main__":
    main()
