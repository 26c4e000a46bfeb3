"""Where a split wins on this very machine: two models that no fast target takes as a whole, as interleaved ratios.

    python -m bench.split_win [--rounds 20] [--budget 20] [--json]

    string    a convolutional body and a string op that OpenVINO refuses, bf16 allowed      >= 2
    double    a convolutional body and determinants of float64 matrices, which neither
              ONNX Runtime nor OpenVINO takes: the whole runs on onnx's evaluator alone     >= 5
    flow      the same, many requests in flight, against the best plan of whole instances  >= 5

Each ratio is the time of `Model.run` on the best target that takes the whole model over that of the plan that edgert
made, in the same rounds; of `flow` that of `Model.submit` between the ends of requests. A plan that is no split has the
ratio 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import edgert
from edgert.formats import open_model
from edgert.plan import Objective
from edgert.race import Entry, paired_ratio, play_round
from edgert.samples import synthesise


@dataclass(frozen=True, slots=True)
class Win:
    """One figure."""

    name: str
    split: str
    """Targets of the plan's segments."""
    whole: str
    """The best target that takes the whole model."""
    ratio: float
    low: float
    high: float
    limit: float
    verified: bool

    @property
    def met(self) -> bool:
        """Whether the interval reaches the limit."""
        return self.high >= self.limit


def body(layers: int, wide: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Convolutions of 3x3 with Relu, each `wide` channels; nodes, weights, and the name of what they make."""
    rng = np.random.default_rng(0)
    nodes, weights, name, channels = [], [], "x", 3
    for number in range(layers):
        weight = rng.standard_normal((wide, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{number}"))
        nodes.append(helper.make_node("Conv", [name, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
        name, channels = f"r{number}", wide
    return nodes, weights, name


def string_model(path: Path) -> Path:
    """A body like the third stage of a ResNet on 14x14, class scores, and a label as text with a suffix."""
    classes = 256
    nodes, weights, name = body(8, classes)
    weights += [
        numpy_helper.from_array(np.array([f"class {n}" for n in range(classes)], dtype=object), "labels"),
        numpy_helper.from_array(np.array(["!"], dtype=object), "suffix"),
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["scores"], "flatten"),
        helper.make_node("ArgMax", ["scores"], ["index"], "argmax", axis=1, keepdims=0),
        helper.make_node("Gather", ["labels", "index"], ["plain"], "gather"),
        helper.make_node("StringConcat", ["plain", "suffix"], ["label"], "label"),
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, classes)),
        helper.make_tensor_value_info("label", TensorProto.STRING, (1,)),
    ]
    return _saved(path, 14, nodes, weights, outputs)


def double_model(path: Path) -> Path:
    """A body on 56x56, pooled to 8x8 matrices whose determinants are taken in float64."""
    nodes, weights, name = body(3, 64)
    weights.append(numpy_helper.from_array(np.array([1, 64, 8, 8]), "matrices"))
    nodes += [
        helper.make_node("AveragePool", [name], ["p"], "pool", kernel_shape=[7, 7], strides=[7, 7]),
        helper.make_node("Reshape", ["p", "matrices"], ["q"], "reshape"),
        helper.make_node("Cast", ["q"], ["d"], "double", to=TensorProto.DOUBLE),
        helper.make_node("Det", ["d"], ["e"], "det"),
        helper.make_node("Cast", ["e"], ["f"], "single", to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["f"], ["y"], "tanh"),
    ]
    return _saved(path, 56, nodes, weights, [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 64))])


def _saved(
    path: Path, size: int, nodes: Sequence[onnx.NodeProto], weights: Sequence[onnx.TensorProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> Path:  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, size, size))]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


class Runs:
    """`Model.run` as a contender."""

    def __init__(self, model: edgert.Model, feed: Mapping[str, Any]) -> None:
        self._model, self._feed = model, feed

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        """See `edgert.race.Contender`."""
        times: list[float] = []
        while len(times) < max(1, calls) and sum(times) <= at_most_s:
            started_s = time.perf_counter()
            self._model.run(self._feed)
            times.append(time.perf_counter() - started_s)
        return times


class Flows:
    """`Model.submit` as a contender, with several requests in flight."""

    def __init__(self, model: edgert.Model, feed: Mapping[str, Any]) -> None:
        self._model, self._feed = model, feed

    def visit(self, calls: int, at_most_s: float) -> list[float]:
        """See `edgert.race.Contender`; one figure, the time between two answers."""
        count = max(2 * len(self._model.plan.instances), calls)
        started_s = time.perf_counter()
        for future in [self._model.submit(self._feed) for _ in range(count)]:
            future.result()
        return [(time.perf_counter() - started_s) / count]


CASES: Mapping[str, tuple[Callable[[Path], Path], str, float, Objective]] = {
    # name -> how to make the model, precision that is allowed, least ratio, objective
    "string": (string_model, "any", 2.0, "latency"),
    "double": (double_model, "own", 5.0, "latency"),
    "flow": (double_model, "own", 5.0, "throughput"),
}


def measure(name: str, rounds: int, budget_s: float, folder: Path) -> Win:
    """Plan a model, then race the plan against every target that takes the whole; the one that loses least counts."""
    make, precision, limit, objective = CASES[name]
    contender = Runs if objective == "latency" else Flows
    path, cache = make(folder / f"{name}.onnx"), folder / "cache"
    (feed,) = synthesise(open_model(path).graph, count=1)
    with ExitStack() as stack:
        split = stack.enter_context(
            edgert.load(path, precision=precision, budget_s=budget_s, cache_dir=cache, objective=objective)
        )
        entries = [Entry("split", "edgert", contender(split, feed))]
        for row in split.plan.candidates:
            if row.outcome in ("ok", "slow"):
                whole = edgert.load(
                    path, precision=precision, targets=[str(row.target)], cache_dir=cache, objective=objective
                )
                entries.append(Entry(str(row.target), "baseline", contender(stack.enter_context(whole), feed)))
        rng = random.Random(0)
        for _ in range(rounds):
            play_round(entries, rng)
        ratios = {each.name: paired_ratio(each.medians_s, entries[0].medians_s) for each in entries[1:]}
        best = min(ratios, key=lambda target: ratios[target].ratio)
        ratio, targets = ratios[best], " -> ".join(map(str, split.plan.targets))
        verified = split.run(feed).receipt.verified
        return Win(name, targets, best, ratio.ratio, ratio.low, ratio.high, limit, verified)


def show(wins: Sequence[Win], as_json: bool) -> None:
    """A table, or JSON."""
    if as_json:
        sys.stdout.write(json.dumps({"wins": [{**asdict(win), "met": win.met} for win in wins]}, indent=2) + "\n")
        return
    for win in wins:
        sys.stdout.write(
            f"{win.name:<7} {win.whole} takes {win.ratio:.3g}x ({win.low:.3g} to {win.high:.3g}) the time of "
            f"{win.split}; at least {win.limit:g}: {'met' if win.met else 'MISSED'}"
            f"{'' if win.verified else ', NOT VERIFIED'}\n"
        )


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(description="Where a split wins on this machine.")
    parser.add_argument("--rounds", type=int, default=20, help="pairs a figure, at least 5")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each planning")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wins = [measure(name, max(5, options.rounds), options.budget, Path(folder)) for name in CASES]
    show(wins, options.json)


if __name__ == "__main__":
    main()
