"""A plan as one HTML page: the picture with boxes that open, and the reasons. No script, nothing loaded from elsewhere.

Each box that holds several nodes has a view of its own, a section that `:target` shows when its link is followed;
so the back button closes it, and the page works where scripts are forbidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgert.graph import Graph
from edgert.partitioner.draw import cards, head, svg, text
from edgert.partitioner.explain import Known, explain, known_of
from edgert.partitioner.outline import BOXES, Box
from edgert.partitioner.scene import Scene, inside, overview, weight_bytes
from edgert.plan import Plan
from edgert.units import size_text

__all__ = ["draw_html"]

_STYLE = """
body { margin: 0; background: #fff; color: #0f172a; font: 14px system-ui, -apple-system, 'Segoe UI', sans-serif; }
main { padding: 0 20px 40px; }
section { display: none; padding: 12px 20px; }
section:target, body:not(:has(section:target)) #top { display: block; }
svg { max-width: 100%; height: auto; } svg a:hover rect { stroke-width: 2.5; } a { color: #1d4ed8; }
nav { padding: 4px 0 10px; color: #64748b; }
table { border-collapse: collapse; font-size: 12px; margin-top: 14px; }
th { text-align: left; color: #64748b; font-weight: 500; } td, th { padding: 2px 18px 2px 0; vertical-align: top; }
tr:hover td { background: #f1f5f9; } pre { font-size: 12px; line-height: 1.45; white-space: pre-wrap; }
"""


@dataclass(frozen=True, slots=True)
class _View:
    """One section of the page."""

    key: str
    """Its id: 'top', or the way to it, such as 'b3-1'."""
    path: tuple[tuple[str, str], ...]
    """(key, title) of the views that it lies in, outermost first."""
    title: str
    box: Box | None
    segment: int
    scene: Scene


def draw_html(plan: Plan, graph: Graph, name: str = "", known: Sequence[Known] | None = None) -> str:
    """The picture of a plan as an HTML page: every node of a model of any size is some clicks away.

    Args: as of `draw_svg`.

    Raises:
        OptionError: the plan is not one of this graph.
    """
    known = known_of(plan) if known is None else known
    words = head(plan, graph, name)
    top = _View("top", (), "whole model", None, -1, overview(graph, plan, BOXES))
    views = list(_views(graph, top))
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{text(words[0])}: plan {plan.id}</title><style>{_STYLE}</style></head><body>",
    ]
    for view in views:
        parts += _section(plan, graph, view, known, words)
    parts += ["<main><h2>Why</h2>", f"<pre>{_lines(explain(plan, graph, known))}</pre>", "</main></body></html>"]
    return "\n".join(parts) + "\n"


def _views(graph: Graph, view: _View) -> Iterator[_View]:
    """The view, and those of all that opens in it."""
    yield view
    path = (*view.path, (view.key, view.title))
    for number, item in enumerate(view.scene.items):
        if item.box and item.box.parts:
            key = f"b{number}" if view.key == "top" else f"{view.key}-{number}"
            yield from _views(
                graph, _View(key, path, item.title, item.box, item.segment, inside(graph, item.box, item.segment))
            )


def _section(plan: Plan, graph: Graph, view: _View, known: Sequence[Known], words: tuple[str, str]) -> Iterator[str]:
    yield f'<section id="{view.key}">'
    links = {
        number: f"#b{number}" if view.key == "top" else f"#{view.key}-{number}"
        for number, item in enumerate(view.scene.items)
        if item.box and item.box.parts
    }
    if view.box is None:
        yield svg(plan, view.scene, words, cards(plan, graph, known), links)
    else:
        steps = " / ".join(f'<a href="#{key}">{text(title, 60)}</a>' for key, title in view.path)
        yield f"<nav>{steps} / {text(view.title, 80)}</nav>"
        yield svg(plan, view.scene, ("", ""), None, links)
        yield from _table(graph, view.box)
    yield "</section>"


def _table(graph: Graph, box: Box) -> Iterator[str]:
    """The nodes that are drawn singly here, and those of each repetition."""
    single = [copy[0] for part in box.parts if len(part.nodes) == 1 for copy in (part.nodes, *part.copies)]
    if single:
        yield "<table><tr><th>node</th><th>op</th><th>makes</th><th>weights</th></tr>"
        for index in single:
            node = graph.nodes[index]
            makes = "; ".join(str(graph.values[name]) for name in node.writes)
            weights = weight_bytes(graph, (index,))
            cells = (node.name, node.op, makes, size_text(weights) if weights else "")
            yield f"<tr>{''.join(f'<td>{text(cell, 200)}</td>' for cell in cells)}</tr>"
        yield "</table>"
    for copy in box.copies:
        yield f"<p>The same again: {text(', '.join(graph.nodes[node].name for node in copy))}.</p>"


def _lines(words: str) -> str:
    return "\n".join(text(line) for line in words.splitlines())
