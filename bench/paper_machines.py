"""Plans for machines that are not here: described from published figures, simulated in virtual time, true numerics.

    python -m bench.paper_machines [--machine NAME ...] [--model NAME ...] [--objective throughput] [--budget 60]
                                   [--results FILE] [--json] [--docs FILE]

Plans are made as on a real machine: by `edgert.load`, which measures and never reads what a device declares. `off` is
how far the plan's predicted end to end time lies from the simulated one; at most 15% is asked. The speed-up is over the
best single device that takes the whole model at any precision that the plan was allowed; beside it stands the largest
that a search found which may read the declared figures (`bench.paper_bound`).

With `--results` each case is kept in that file as it comes, and one that is there is not planned again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import edgert
from bench.paper_bound import Rig, best
from bench.paper_models import MODELS, machine, model_file, names
from edgert.formats import open_model
from edgert.plan import Objective, Plan

LIMIT = 0.15
HEADING = "## Machines on paper"


@dataclass(frozen=True, slots=True)
class Case:
    """One model planned for one machine."""

    machine: str
    model: str
    objective: Objective
    single: str
    """Target that runs the whole model fastest."""
    single_s: float
    """Of one request; for throughput the time between requests."""
    plan: str
    """Targets of the plan's segments, runs of one device joined; '' when the plan is not split."""
    segments: int
    predicted_s: float
    """What the planner expected; of a whole model, what it measured."""
    simulated_s: float
    """Median of end to end runs; for throughput the time between requests."""
    best_s: float
    """The best that a search with all declared figures found; 0 where none was made."""
    complete: bool
    """Whether the budget sufficed."""

    @property
    def speedup(self) -> float:
        """Over the best single device."""
        return self.single_s / self.simulated_s

    @property
    def off(self) -> float:
        """Of the prediction, as a fraction; negative when it promised too much."""
        return self.predicted_s / self.simulated_s - 1

    @property
    def possible(self) -> float:
        """The largest speed-up that is known, the plan's own among them; 0 where none was looked for."""
        return max(self.speedup, self.single_s / self.best_s) if self.best_s else 0.0


def measure(
    machine_name: str, model_name: str, folder: Path, *, budget_s: float, objective: Objective = "latency",
    search_s: float = 0.0,
) -> Case:  # fmt: skip
    """Plan the model for the machine, and say what came of it.

    Args:
        machine_name: of `names()`.
        model_name: of `MODELS`.
        folder: for models that are not in the zoo, and what planning keeps.
        budget_s: of planning.
        objective: of the plan.
        search_s: of looking for the best possible placement for latency, in processor time; 0 for not looking.
    """
    path = model_file(model_name, folder)
    with edgert.load(
        path, machine=machine(machine_name), precision="any", budget_s=budget_s, cache_dir=folder / machine_name,
        objective=objective,
    ) as model:  # fmt: skip
        plan = model.plan
    single, single_s = _single(plan)
    split = len(plan.segments) > 1
    simulated_s = 1 / plan.items_per_s if plan.items_per_s else plan.measured_s
    searched = objective == "latency" and search_s > 0
    best_s = best(Rig(open_model(path), machine(machine_name)), search_s).seconds if searched else 0.0
    return Case(
        machine_name, model_name, objective, _short(single), single_s,
        _joined(map(str, plan.targets)) if split else "", len(plan.segments),
        plan.predicted_s if split else simulated_s, simulated_s, best_s, plan.complete,
    )  # fmt: skip


def _single(plan: Plan) -> tuple[str, float]:
    """The best target for the whole model, and its seconds a request."""
    known = [
        (1 / row.timing.items_per_s if row.timing.items_per_s else row.timing.p50_s, str(row.target))
        for row in plan.candidates
        if row.outcome in ("ok", "slow") and row.timing is not None
    ]
    seconds, target = min(known)
    return target, seconds


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
        "| machine | model | best single device | plan | predicted | simulated | off | speed-up | possible |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        split = bool(case.plan)
        rate = " (throughput)" if case.objective == "throughput" else ""
        lines.append(
            f"| {case.machine} | {case.model}{rate} | {case.single}, {1e3 * case.single_s:.3g} ms | "
            f"{case.plan or 'no split'} | {f'{1e3 * case.predicted_s:.3g} ms' if split else ''} | "
            f"{1e3 * case.simulated_s:.3g} ms | {f'{case.off:+.1%}' if split else ''} | {case.speedup:.2f}x | "
            f"{f'{case.possible:.2f}x' if case.possible else ''} |"
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


def known_cases(path: Path | None) -> list[Case]:
    """Those in a file of results, a line each; none where there is no file."""
    if path is None or not path.is_file():
        return []
    return [Case(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(prog="python -m bench.paper_machines", description="Plans for machines on paper.")
    parser.add_argument("--machine", nargs="+", choices=names(), default=list(names()))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--objective", choices=("latency", "throughput"), default="latency")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each planning")
    parser.add_argument("--search", type=float, default=4.0, help="seconds of looking for the best that is possible")
    parser.add_argument("--results", type=Path, help="keeps each case as it comes; those in it are not planned again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", type=Path, help="benchmarks.md, whose table is replaced")
    options = parser.parse_args()
    cases = known_cases(options.results)
    done = {(case.machine, case.model, case.objective) for case in cases}
    wanted = [(on, model) for on in options.machine for model in options.model]
    with tempfile.TemporaryDirectory() as folder:
        for on, model in wanted:
            if (on, model, options.objective) in done:
                continue
            cases.append(measure(
                on, model, Path(folder), budget_s=options.budget, objective=options.objective, search_s=options.search
            ))  # fmt: skip
            sys.stderr.write(table(cases[-1:]).splitlines()[2] + "\n")
            if options.results:
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(cases[-1])) + "\n")
    if options.docs:
        into_docs(options.docs, table(cases))
    sys.stdout.write(json.dumps([asdict(case) for case in cases], indent=2) + "\n" if options.json else table(cases))


if __name__ == "__main__":
    main()
