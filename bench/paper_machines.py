"""Plans for machines that are not here: described from published figures, simulated in virtual time, true numerics.

    python -m bench.paper_machines [--machine NAME ...] [--model NAME ...] [--budget 20] [--json] [--docs FILE]

Each file in bench/machines describes a machine, with the source of each figure. Plans are made as on a real machine: by
`edgert.load`, which measures and never reads what a device declares. Besides the zoo there are

    NAME+top5     the model and a TopK behind it, which no NPU here takes
    pair          two ResNet-50 on two images, their scores side by side

`off` is how far the plan's predicted end to end time lies from the simulated one; at most 15% is asked. The speed-up is
over the best single device that takes the whole model at any precision that the plan was allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

import edgert
from bench.zoo import NAMES, build
from edgert.machine import Machine

MACHINES = Path(__file__).parent / "machines"
MODELS = (*(f"{name}-{kind}" for name in NAMES for kind in ("f32", "i8")), "mobilenet_v2-i8+top5", "resnet50-i8+top5",
          "unet-f32+top5", "pair")  # fmt: skip
LIMIT = 0.15
HEADING = "## Machines on paper"


@dataclass(frozen=True, slots=True)
class Case:
    """One model planned for one machine."""

    machine: str
    model: str
    single: str
    """Target that runs the whole model fastest."""
    single_s: float
    plan: str
    """Targets of the plan's segments, runs of one device joined; '' when the plan is not split."""
    segments: int
    predicted_s: float
    """What the planner expected; of a whole model, what it measured."""
    simulated_s: float
    """Median of end to end runs."""

    @property
    def speedup(self) -> float:
        """Over the best single device."""
        return self.single_s / self.simulated_s

    @property
    def off(self) -> float:
        """Of the prediction, as a fraction; negative when it promised too much."""
        return self.predicted_s / self.simulated_s - 1


def machine(name: str) -> Machine:
    """The machine that the file of that name describes."""
    return Machine.from_json(json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8")))


def names() -> tuple[str, ...]:
    """Of all machines."""
    return tuple(sorted(path.stem for path in MACHINES.glob("*.json")))


def model_file(name: str, folder: Path) -> Path:
    """The file of one of `MODELS`."""
    if name == "pair":
        return _pair(folder / "pair.onnx")
    plain, _, tail = name.partition("+")
    path = build(*plain.rsplit("-", 1))
    return _with_top5(path, folder / f"{name}.onnx") if tail else path


def _with_top5(path: Path, to: Path) -> Path:
    """The model and the five largest of its last output, flattened."""
    model = onnx.load(path)
    graph, last = model.graph, model.graph.output[-1].name
    del graph.output[-1]
    graph.node.extend([
        helper.make_node("Flatten", [last], ["top5_flat"], "top5_flat"),
        helper.make_node("TopK", ["top5_flat", "top5_k"], ["top5_values", "top5_indices"], "top5"),
    ])  # fmt: skip
    graph.initializer.append(helper.make_tensor("top5_k", TensorProto.INT64, [1], [5]))
    graph.output.extend([
        helper.make_tensor_value_info("top5_values", TensorProto.FLOAT, (1, 5)),
        helper.make_tensor_value_info("top5_indices", TensorProto.INT64, (1, 5)),
    ])  # fmt: skip
    onnx.save(model, to)
    return to


def _pair(to: Path) -> Path:
    """Two ResNet-50 in int8 that share nothing."""
    model = onnx.load(build("resnet50", "i8"))
    twins = [onnx.compose.add_prefix_graph(model.graph, prefix) for prefix in ("left_", "right_")]
    graph = onnx.GraphProto(name="pair")
    for twin in twins:
        graph.node.extend(twin.node)
        graph.initializer.extend(twin.initializer)
        graph.input.extend(twin.input)
        graph.value_info.extend(twin.value_info)
        graph.value_info.extend(twin.output)
    graph.node.append(helper.make_node("Concat", [twin.output[0].name for twin in twins], ["scores"], "both", axis=1))
    shape = [axis.dim_value for axis in twins[0].output[0].type.tensor_type.shape.dim]
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 2 * shape[1]]))
    onnx.save(helper.make_model(graph, ir_version=model.ir_version, opset_imports=model.opset_import), to)
    return to


def measure(machine_name: str, model_name: str, folder: Path, budget_s: float) -> Case:
    """Plan the model for the machine, and say what came of it."""
    path = model_file(model_name, folder)
    with edgert.load(
        path, machine=machine(machine_name), precision="any", budget_s=budget_s, cache_dir=folder / machine_name
    ) as model:
        plan = model.plan
    rows = [row for row in plan.candidates if row.outcome in ("ok", "slow") and row.timing is not None]
    best = min(rows, key=lambda row: row.timing.p50_s if row.timing else 0.0)
    single_s = best.timing.p50_s if best.timing else 0.0
    split = len(plan.segments) > 1
    return Case(
        machine_name, model_name, _short(str(best.target)), single_s, _joined(map(str, plan.targets)) if split else "",
        len(plan.segments), plan.predicted_s if split else plan.measured_s, plan.measured_s,
    )  # fmt: skip


def _short(target: str) -> str:
    return target.removeprefix("simulated@")


def _joined(targets: Iterator[str]) -> str:
    """'npu:0/i8 x13, cpu:0/i8 x12'."""
    counts: dict[str, int] = {}
    for target in targets:
        counts[_short(target)] = counts.get(_short(target), 0) + 1
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in counts.items())


def table(cases: Sequence[Case]) -> str:
    """As Markdown, with the sums that matter behind it."""
    lines = [
        "| machine | model | best single device | plan | predicted | simulated | off | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        split = bool(case.plan)
        lines.append(
            f"| {case.machine} | {case.model} | {case.single}, {1e3 * case.single_s:.3g} ms | "
            f"{case.plan or 'no split'} | {f'{1e3 * case.predicted_s:.3g} ms' if split else ''} | "
            f"{1e3 * case.simulated_s:.3g} ms | {f'{case.off:+.1%}' if split else ''} | {case.speedup:.2f}x |"
        )
    splits = [case for case in cases if case.plan]
    if splits:
        worst = max(splits, key=lambda case: abs(case.off))
        within = sum(abs(case.off) <= LIMIT for case in splits)
        lines += [
            "",
            f"{len(splits)} of {len(cases)} are split. Predicted within {LIMIT:.0%} of the simulated time: {within} of "
            f"{len(splits)}; the worst is off by {worst.off:+.1%} ({worst.machine}, {worst.model}).",
        ]
    return "\n".join(lines) + "\n"


def into_docs(path: Path, text: str) -> None:
    """Put the table in place of the one under `HEADING`, from the first line that begins with '|'."""
    content = path.read_text(encoding="utf-8")
    start = content.index(HEADING)
    first = content.index("\n|", start) + 1
    end = content.find("\n## ", start)
    path.write_text(content[:first] + text + (content[end:] if end >= 0 else ""), encoding="utf-8")


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(prog="python -m bench.paper_machines", description="Plans for machines on paper.")
    parser.add_argument("--machine", nargs="+", choices=names(), default=list(names()))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each planning")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", type=Path, help="benchmarks.md, whose table is replaced")
    options = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for machine_name in options.machine:
            for model_name in options.model:
                cases.append(measure(machine_name, model_name, Path(folder), options.budget))
                sys.stderr.write(table(cases[-1:]).splitlines()[2] + "\n")
    if options.docs:
        into_docs(options.docs, table(cases))
    sys.stdout.write(json.dumps([asdict(case) for case in cases], indent=2) + "\n" if options.json else table(cases))


if __name__ == "__main__":
    main()
