"""The picture of a benchmark: one panel a model, one bar a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgert.bench import Report
from edgert.cli.reports import common_unit
from edgert.errors import MissingPackage
from edgert.units import time_text

_COLOURS = {"edgert": "#1f9eb0", "chosen": "#2ca25f", "candidate": "#b8bfc6", "baseline": "#b05fb0"}
_MEANING = {
    "edgert": "Model.run",
    "chosen": "chosen target",
    "candidate": "other targets",
    "baseline": "plain onnxruntime",
}
_PER_ROW = 2
_SPACE = 1.4
"""Width of a panel, as a multiple of its longest bar."""


def draw(reports: Sequence[Report], path: Path) -> None:
    """Write a .png or .svg: median time of a call as a bar, up to the 95th percentile as a whisker.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingPackage(
            f"drawing needs the package matplotlib ({error}).", 'pip install "edgert[plot]"', package="matplotlib"
        ) from error
    columns = min(_PER_ROW, len(reports))
    rows = -(-len(reports) // columns)
    tallest = max(sum(1 for row in report.rows if row.calls) for report in reports)
    figure = Figure(figsize=(7.2 * columns, 0.6 + rows * (0.9 + 0.32 * tallest)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, report in zip(panels.flat, reports, strict=False):
        _panel(panel, report)
        panel.set_ylim(tallest - 0.4, -0.6)  # fastest on top, and bars of one height in all panels
    for panel in panels.flat[len(reports) :]:
        panel.set_visible(False)
    figure.legend(handles=[Patch(color=_COLOURS[role], label=words) for role, words in _MEANING.items()],
                  loc="outside lower center", ncols=len(_MEANING), frameon=False, fontsize=9)  # fmt: skip
    figure.savefig(path, dpi=130)


def _panel(panel: Any, report: Report) -> None:
    rows = [row for row in report.rows if row.calls]
    scale, unit = common_unit(rows)
    places, medians = range(len(rows)), [row.p50_s * scale for row in rows]
    edge = _SPACE * max(medians)  # a whisker may be a hundred times its bar: it ends where the panel does
    ends = [min(max(row.p50_s, row.p95_s) * scale, edge) for row in rows]
    panel.barh(places, medians, color=[_COLOURS[row.role] for row in rows], height=0.7)
    panel.hlines(places, medians, ends, color="#444", lw=1)
    for place, row, end in zip(places, rows, ends, strict=True):
        panel.text(end, place, f" {time_text(row.p50_s)}", va="center", fontsize=8)
    panel.set_yticks(places, [row.name for row in rows], fontsize=8)
    panel.set_xlim(0, 1.15 * edge)
    panel.set_xlabel(f"{unit} a call: median, and up to p95", fontsize=8)
    panel.set_title(f"{report.model}  ({report.objective}, precision {report.precision})", fontsize=10, loc="left")
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
