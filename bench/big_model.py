"""A model larger than its memory limit: what it holds, how fast it is, and that its answer is the plain run's.

    python -m bench.big_model [--weights 1GB] [--limit 300MB] [--format onnx|tflite] [--runs 5]
        [--folder DIR] [--json]

Builds a chain of matrix products with ReLU (f32; of an .onnx the weights are external data). Then, each in a fresh
process:

    planned     the first load under the limit, which cuts, tries and checks, and its runs
    again       a load from the cache under the limit, and its runs
    plain       the whole model without a limit, for the answer

`own` is the peak of the process itself (VmHWM), the one that holds the segments in the end. `tree` is the largest sum
over it and the children that planning starts, looked at a hundred times a second: pages that two share count twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import edgert
from edgert.cli.options import size_bytes
from edgert.devices import memory

_WIDE = 2048
"""Of each matrix; one is 16.8 MB."""
_PROBE = "from edgert import store; from edgert.devices.probe import probe; probe(cache_dir=store.folder())"
_PLAIN = {".onnx": "onnxruntime@*", ".tflite": "litert@*"}
"""What gives the plain run's answer."""
_ALLOWED = 1.15
"""Peak over limit that counts as kept."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one process held, and did."""

    name: str
    own_bytes: int
    tree_bytes: int
    run_s: float
    """Median."""
    segments: int
    kept: int
    """Of them, those that were never released."""
    targets: tuple[str, ...]
    verified: bool
    load_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The whole comparison."""

    weights_bytes: int
    limit_bytes: int
    held: tuple[Held, ...]
    range_fraction: float
    """Largest difference between the plain run's answer and the others', over the answer's range."""

    @property
    def ratio(self) -> float:
        """Largest peak of a limited process, its children among it, over the limit."""
        return (
            max(max(each.own_bytes, each.tree_bytes) for each in self.held if each.name != "plain") / self.limit_bytes
        )

    @property
    def met(self) -> bool:
        """Whether the limit was kept and the answer is right."""
        return self.ratio <= _ALLOWED and self.range_fraction <= 1e-4


def build(path: Path, weights_bytes: int, wide: int = _WIDE) -> Path:
    """A chain of products with square matrices and ReLU, with external data beside it; written a matrix at a time."""
    import onnx
    from onnx import TensorProto, helper

    count = max(2, weights_bytes // (4 * wide**2))
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    with open(path.with_name(path.name + ".data"), "wb") as file:
        for index in range(count):
            tensor = TensorProto(name=f"w{index}", data_type=1, dims=[wide, wide], data_location=TensorProto.EXTERNAL)
            entries = {"location": path.name + ".data", "offset": file.tell(), "length": 4 * wide**2}
            for key, value in entries.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
            # He's scale keeps the variance through ReLU, so that the last layer's numbers mean something.
            file.write((rng.standard_normal((wide, wide), np.float32) * np.float32((2 / wide) ** 0.5)).tobytes())
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"h{index}"], name=f"product{index}"))
            nodes.append(helper.make_node("Relu", [f"h{index}"], [f"x{index + 1}"], name=f"relu{index}"))
    ends = [helper.make_tensor_value_info(name, 1, [1, wide]) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(path))
    return path


def build_tflite(path: Path, weights_bytes: int, wide: int = _WIDE) -> Path:
    """The same chain as a .tflite of fully connected layers with ReLU, less than 2 GiB."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    count = max(2, weights_bytes // (4 * wide**2))
    rng = np.random.default_rng(0)
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    model.operatorCodes = [schema.OperatorCodeT()]
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.FULLY_CONNECTED
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [0], [2 * count]
    names = ["x0", *(name for index in range(count) for name in (f"w{index}", f"x{index + 1}"))]
    for name in names:
        tensor = schema.TensorT()
        tensor.name, tensor.type = name.encode(), schema.TensorType.FLOAT32
        tensor.shape = [wide, wide] if name.startswith("w") else [1, wide]
        if name.startswith("w"):
            buffer = schema.BufferT()
            values = rng.standard_normal((wide, wide), np.float32) * np.float32((2 / wide) ** 0.5)
            buffer.data = values.reshape(-1).view(np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(tensor)
    for index in range(count):
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = [2 * index, 2 * index + 1, -1], [2 * index + 2]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
        graph.operators.append(operator)
    builder = flatbuffers.Builder(4 * count * wide**2 + (1 << 20))
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def compare(model: Path, limit_bytes: int, folder: Path, runs: int = 5, budget_s: float = 10.0) -> Outcome:
    """The three processes, one after another.

    Args:
        model: made by `build`.
        limit_bytes: for each limited process.
        folder: for the cache and the answers.
        runs: of the model in each process.
        budget_s: for planning under the limit.
    """
    environment = {**os.environ, "EDGERT_CACHE": str(folder / "cache")}
    # Looking at the machine for the first time takes memory of its own, once, whatever the model.
    subprocess.run([sys.executable, "-c", _PROBE], env=environment, check=True)
    held, answers = [], []
    for name, limit in (("planned", limit_bytes), ("again", limit_bytes), ("plain", 0)):
        answer = folder / f"{name}.npy"
        arguments = [str(model), str(limit), str(runs), str(answer), str(budget_s if limit else 1.0)]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.big_model", "--worker", *arguments],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with _Watch(process.pid) as watch:
            said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{name} ended with status {process.returncode}")
        held.append(Held(name=name, tree_bytes=watch.most_bytes, **json.loads(said.splitlines()[-1])))
        answers.append(np.load(answer))
    plain = answers[-1]
    worst = max(float(np.abs(answer - plain).max()) for answer in answers)
    weights = sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))
    return Outcome(weights, limit_bytes, tuple(held), worst / float(np.ptp(plain)))


def work(model: Path, limit_bytes: int, runs: int, answer: Path, budget_s: float) -> None:
    """What a fresh process does; prints what it saw of itself as JSON."""
    started_s = time.perf_counter()
    with edgert.load(
        model, memory_limit_bytes=limit_bytes or None,
        targets=None if limit_bytes else [_PLAIN[model.suffix]], budget_s=budget_s,
    ) as loaded:  # fmt: skip
        load_s = time.perf_counter() - started_s
        (value,) = loaded.inputs
        shape = [size if isinstance(size, int) else 1 for size in value.shape or ()]
        feed = np.random.default_rng(1).standard_normal(shape, np.float32)
        times = []
        for _ in range(runs):
            started_s = time.perf_counter()
            result = loaded.run(feed)
            times.append(time.perf_counter() - started_s)
        np.save(answer, next(iter(result.values())))
        residency = loaded.plan.residency
        found = {
            "own_bytes": memory.resident().peak_bytes,
            "run_s": sorted(times)[len(times) // 2],
            "segments": len(loaded.plan.segments),
            "kept": len(residency.kept) if residency else len(loaded.plan.segments),
            "targets": [str(target) for target in result.receipt.targets],
            "verified": result.receipt.verified,
            "load_s": load_s,
        }
    print(json.dumps(found))  # noqa: T201 - the answer to whoever started this process


class _Watch:
    """Looks at the resident memory of a process and its descendants while something runs."""

    def __init__(self, pid: int) -> None:
        self.most_bytes = 0
        self._pid, self._stop = pid, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            total = sum(memory.resident(pid).now_bytes for pid in _family(self._pid))
            self.most_bytes = max(self.most_bytes, total)


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:  # grows while it is walked
        with suppress(OSError):  # it ended meanwhile
            for task in Path(f"/proc/{each}/task").glob("*/children"):
                found += map(int, task.read_text(encoding="ascii").split())
    return found


def show(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(outcome), "ratio": outcome.ratio, "met": outcome.met}))  # noqa: T201 - the report
        return
    print(f"{outcome.weights_bytes / 1e6:.0f} MB of weights under {outcome.limit_bytes / 1e6:.0f} MB")  # noqa: T201
    for each in outcome.held:
        print(  # noqa: T201 - as above
            f"  {each.name:<8} own {each.own_bytes / 1e6:6.0f} MB  tree {each.tree_bytes / 1e6:6.0f} MB  "
            f"run {1e3 * each.run_s:8.1f} ms  {each.segments:3d} segments, {each.kept} stay, "
            f"{' and '.join(each.targets)}{'' if each.verified else ', NOT VERIFIED'}, loaded in {each.load_s:.1f} s"
        )
    print(  # noqa: T201 - as above
        f"  answers differ by {outcome.range_fraction:.1e} of the range; peak {outcome.ratio:.2f}x the limit: "
        f"{'met' if outcome.met else 'MISSED'} (at most {_ALLOWED}x and 1e-4)"
    )


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        path, limit, runs, answer, budget = sys.argv[2:]
        work(Path(path), int(limit), int(runs), Path(answer), float(budget))
        return 0
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--weights", default="1GiB", type=size_bytes)
    parser.add_argument("--limit", default="300MB", type=size_bytes)
    parser.add_argument("--format", default="onnx", choices=["onnx", "tflite"])
    parser.add_argument("--runs", default=5, type=int)
    parser.add_argument("--folder", type=Path, help="instead of a temporary one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgert-big-", dir=options.folder) as temporary:
        folder = Path(temporary)
        make = {"onnx": build, "tflite": build_tflite}[options.format]
        model = make(folder / f"big.{options.format}", options.weights)
        outcome = compare(model, options.limit, folder, options.runs)
    show(outcome, as_json=options.json)
    return 0 if outcome.met else 1


if __name__ == "__main__":
    sys.exit(main())
