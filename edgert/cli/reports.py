"""What a benchmark looks like to people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape

from edgert.bench import ENOUGH, Measured, Report, overall
from edgert.cli.units import size_text, three_digits, time_text
from edgert.cli.views import table
from edgert.race import Interval

_STYLES = {"edgert": "bold cyan", "chosen": "bold green", "candidate": "", "baseline": "magenta"}
_MARKS = {"edgert": "", "chosen": "→", "candidate": "", "baseline": ""}


def report_view(report: Report) -> RenderableType:
    """One model: a table of every contender, then the verdict in words."""
    timed = [row for row in report.rows if row.calls]
    out = [row for row in report.rows if not row.calls]
    right = ("p50", "p95", "p99", "items/s", "memory", "to chosen")
    made = table("", "target", *right, right=right)
    for row in timed:
        times = (time_text(each) for each in (row.p50_s, row.p95_s, row.p99_s))
        made.add_row(_MARKS[row.role], escape(row.name), *times, three_digits(row.items_per_s),
                     size_text(row.memory_bytes), interval_text(row.over_chosen), style=_STYLES[row.role])  # fmt: skip
    about = f"{report.objective}, precision {report.precision}, plan {report.plan}"
    head = f"[bold]{escape(report.model)}[/]  [dim]{about}[/]"
    return Group(head, made, *_missing(out), *_verdict(report), "")


def _missing(rows: Sequence[Measured]) -> list[str]:
    return [f"[dim]not timed: {escape(row.name)}: {row.outcome}, {escape(row.reason)}[/]" for row in rows]


def _verdict(report: Report) -> list[str]:
    lines = []
    if report.over_rival is None:
        lines.append("no other target to compare the choice with")
    else:
        good = report.over_rival.low <= ENOUGH
        style, word = ("green", "holds") if good else ("red", "does not hold")
        lines.append(
            f"choice [{style}]{word}[/]: {interval_text(report.over_rival)} of {report.rival}, the best other target"
        )
    if report.speedup is not None:
        lines.append(f"plain onnxruntime takes [bold]{interval_text(report.speedup)}[/] times the chosen one's time")
    if not report.verified:
        lines.append("[yellow]the numbers of this plan were not checked[/]")
    return lines


def overall_view(reports: Sequence[Report]) -> RenderableType:
    """Several models: one line each, and the means."""
    made = table(
        "model", "chosen", "to the best other", "plain / chosen", right=("to the best other", "plain / chosen")
    )
    for report in reports:
        made.add_row(
            escape(report.model), report.chosen, interval_text(report.over_rival), interval_text(report.speedup)
        )
    means = overall(reports)
    lines = [f"the choice holds for {means['holds']} of {means['compared']} models"]
    if means["speedup"] is not None:
        lines.append(f"geometric mean over plain onnxruntime: [bold]{means['speedup']:.2f}x[/]")
    return Group(made, *lines)


def interval_text(interval: Interval | None) -> str:
    """'1.03 (0.99-1.07)'."""
    return "" if interval is None else f"{interval.ratio:.2f} ({interval.low:.2f}-{interval.high:.2f})"
