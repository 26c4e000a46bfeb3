"""Is the plan that ships ever slower than the best single target? Over the zoo, on every device of this machine.

    python -m bench.never_slower [--model NAME ...] [--rounds 8] [--budget 20] [--json]

Plans may use every target that the machine has, software devices too, and may be split. Each plan then races, in the
same rounds, against `Model.run` on the few single targets that were fastest when it was made, in three sessions with
everything loaded anew. A ratio is the plan's time over that of the best of them, with its 95% interval; at most 1.02 is
asked, and the mark is missed when the whole interval lies above.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import edgert
from bench.split_win import Runs
from bench.zoo import NAMES, build
from edgert.formats import open_model
from edgert.race import Entry, paired_ratio, play_round
from edgert.samples import synthesise

MODELS = tuple(f"{name}-{kind}" for name in NAMES for kind in ("f32", "i8"))
LIMIT = 1.02
_RIVALS = 3
"""Single targets that are raced: one that took longer than three others when the plan was made is not the best."""


_SESSIONS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One model."""

    model: str
    plan: str
    """Targets of the plan's segments."""
    single: str
    """The best single target in the race."""
    ratio: float
    """The plan's time over that."""
    low: float
    high: float

    @property
    def met(self) -> bool:
        """Whether the interval reaches down to the limit."""
        return self.low <= LIMIT


def measure(name: str, rounds: int, budget_s: float, folder: Path) -> Case:
    """Plan a model with all that there is, then race the plan against single targets, everyone loaded anew in each
    session.
    """
    path, cache = build(*name.rsplit("-", 1)), folder / "cache"
    (feed,) = synthesise(open_model(path).graph, count=1)
    chance = random.Random(0)
    with edgert.load(path, targets=["*"], budget_s=budget_s, cache_dir=cache) as planned:
        plan = planned.plan
    rows = [row for row in plan.candidates if row.outcome in ("ok", "slow") and row.timing is not None]
    rows = sorted(rows, key=lambda row: row.timing.p50_s if row.timing else 0.0)[:_RIVALS]
    entries = [Entry("plan", "edgert"), *(Entry(str(row.target), "baseline") for row in rows)]
    for _ in range(_SESSIONS):
        with ExitStack() as stack:
            for entry in entries:
                targets = ["*"] if entry.role == "edgert" else [entry.name]
                model = edgert.load(path, targets=targets, budget_s=budget_s, cache_dir=cache)
                entry.contender = Runs(stack.enter_context(model), feed)
            for _ in range(rounds):
                play_round(entries, chance)
    best = min(entries[1:], key=lambda entry: statistics.median(entry.medians_s))
    ratio = paired_ratio(entries[0].medians_s, best.medians_s, [rounds] * _SESSIONS)
    return Case(name, ", ".join(map(str, plan.targets)), best.name, ratio.ratio, ratio.low, ratio.high)


def table(cases: Sequence[Case]) -> str:
    """As Markdown."""
    lines = ["| model | plan | best single target | plan / best single |", "|---|---|---|---|"]
    lines += [
        f"| {case.model} | {case.plan} | {case.single} | {case.ratio:.3f} ({case.low:.3f}-{case.high:.3f})"
        f"{'' if case.met else ', MISSED'} |"
        for case in cases
    ]
    lines += ["", f"At most {LIMIT} is asked: {sum(case.met for case in cases)} of {len(cases)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(prog="python -m bench.never_slower", description="Plans against single targets.")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=8, help="of each session, at least 3")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each planning")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model:
            cases.append(measure(name, max(3, options.rounds), options.budget, Path(folder)))
            sys.stderr.write(table(cases[-1:]).splitlines()[2] + "\n")
    sys.stdout.write(json.dumps([asdict(case) for case in cases], indent=2) + "\n" if options.json else table(cases))


if __name__ == "__main__":
    main()
