"""What a benchmark looks like to people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape

from edgert.bench import ENOUGH, Measured, Report, overall
from edgert.cli.views import table
from edgert.race import Interval
from edgert.units import size_text, three_digits

_STYLES = {"edgert": "bold cyan", "chosen": "bold green", "candidate": "", "baseline": "magenta"}
_NUMBERS = ("p50", "p95", "p99", "items/s", "memory", "ratio")


def report_view(report: Report) -> RenderableType:
    """One model: a table of every contender, then the verdict in words."""
    timed = [row for row in report.rows if row.calls]
    out = [row for row in report.rows if not row.calls]
    factor, unit = common_unit(timed)
    made = table(unit, *_NUMBERS, right=_NUMBERS, whole=(unit,))
    for row in timed:
        times = (three_digits(time_s * factor) for time_s in (row.p50_s, row.p95_s, row.p99_s))
        ratio = "" if row.over_chosen is None else f"{row.over_chosen.ratio:.2f}"
        made.add_row(_name(row), *times, three_digits(row.items_per_s), size_text(row.memory_bytes), ratio,
                     style=_STYLES[row.role])  # fmt: skip
    about = f"{report.objective}, precision {report.precision}, plan {report.plan}"
    head = f"[bold]{escape(report.model)}[/]  [dim]{about}[/]"
    return Group(head, made, *_missing(out), *_verdict(report), "")


def common_unit(rows: Sequence[Measured]) -> tuple[float, str]:
    """What to multiply seconds by, and the unit's name, so that the fastest row has digits before its point."""
    shortest_s = min((row.p50_s for row in rows), default=1.0)
    return (1.0, "s") if shortest_s >= 1 else (1e3, "ms") if shortest_s >= 1e-3 else (1e6, "µs")


def _name(row: Measured) -> str:
    mark = "→ " if row.role == "chosen" else "  "
    return mark + escape("edgert, Model.run" if row.role == "edgert" else row.name)


def _missing(rows: Sequence[Measured]) -> list[str]:
    return [f"[dim]  not timed: {escape(row.name)}: {row.outcome}, {escape(row.reason)}[/]" for row in rows]


def _verdict(report: Report) -> list[str]:
    lines = []
    if report.over_rival is None:
        lines.append("  no other target to compare the choice with")
    else:
        good = report.over_rival.low <= ENOUGH
        style, word = ("green", "holds") if good else ("red", "does not hold")
        ratio = interval_text(report.over_rival)
        lines.append(f"  [{style}]the choice {word}[/]: [bold]{ratio}[/] of the time of the best other target,")
        lines.append(f"  {report.rival}")
    if report.speedup is not None:
        lines.append(f"  plain onnxruntime takes [bold]{interval_text(report.speedup)}[/] times the time of the choice")
    if not report.verified:
        lines.append("  [yellow]the numbers of this plan were not checked[/]")
    return lines


def overall_view(reports: Sequence[Report]) -> RenderableType:
    """Several models: one line each, and the means."""
    right = ("choice/best other", "plain/choice")
    made = table("model", "choice", *right, right=right, whole=("choice",))
    for report in reports:
        ratios = (interval_text(report.over_rival), interval_text(report.speedup))
        made.add_row(escape(report.model), report.chosen, *ratios)
    means = overall(reports)
    lines = [f"the choice holds for {means['holds']} of {means['compared']} models"]
    if means["speedup"] is not None:
        share = means["speedup"] / means["best_speedup"]
        lines.append(
            f"geometric mean over plain onnxruntime: [bold]{means['speedup']:.2f}x[/], {share:.0%} of the best"
        )
    return Group(made, *lines)


def interval_text(interval: Interval | None) -> str:
    """'1.03 (0.99-1.07)': the ratio, and the range that holds it in 95 of 100 repetitions."""
    return "" if interval is None else f"{interval.ratio:.2f} ({interval.low:.2f}-{interval.high:.2f})"
