"""A plan as a picture: the model's graph from top to bottom, its segments coloured by where they run.

The layout is `layout.py`, and not a library: graphviz is a program to be installed besides, and the packages for Python
alone know no bands that must lie below each other, which is what segments and repeated layers are here.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgert.graph import Graph
from edgert.partitioner.explain import Known, known_of
from edgert.partitioner.layout import Layout, lay_out
from edgert.partitioner.outline import BOXES, running_order, segment_of
from edgert.partitioner.scene import Item, Line, Scene, overview, weight_bytes
from edgert.plan import Plan
from edgert.profile import Target
from edgert.units import size_text, time_text

__all__ = ["Look", "draw_svg", "look_of", "svg"]

_SHADES: Mapping[str, tuple[tuple[str, str], ...]] = {  # device kind -> (fill, line) of its first, second, ... target
    "cpu": (("#dbeafe", "#2563eb"), ("#cffafe", "#0e7490"), ("#e0e7ff", "#6366f1"), ("#e2e8f0", "#64748b")),
    "gpu": (("#dcfce7", "#16a34a"), ("#ecfccb", "#65a30d"), ("#d1fae5", "#047857")),
    "npu": (("#ffedd5", "#ea580c"), ("#fef3c7", "#b45309"), ("#fee2e2", "#b91c1c")),
    "": (("#f3e8ff", "#9333ea"), ("#fce7f3", "#be185d")),
}
_PLAIN = ("#f8fafc", "#94a3b8")
_INK, _FAINT, _WIRE = "#0f172a", "#64748b", "#94a3b8"
_MARGIN, _CARD, _HEAD = 20.0, 236.0, 96.0
_TITLE_PX, _LINE_PX = 7.4, 5.9
"""Mean width of a character in the two sizes of text."""
_LONGEST = 34
_FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\""


@dataclass(frozen=True, slots=True)
class Look:
    """Colours of a plan: one for each target, of the hue of its device's kind."""

    colours: Mapping[Target, tuple[str, str]]

    def of(self, plan: Plan, segment: int) -> tuple[str, str]:
        """(fill, line) of a segment; grey for inputs and outputs."""
        return _PLAIN if segment < 0 else self.colours[plan.segments[segment].target]


def look_of(plan: Plan) -> Look:
    """The colours of a plan's targets, in the order of its segments."""
    found: dict[Target, tuple[str, str]] = {}
    used: dict[str, int] = {}
    for target in plan.targets:
        if target not in found:
            kind = target.device.partition(":")[0]
            kind = kind if kind in _SHADES else ""
            shades = _SHADES[kind]
            found[target] = shades[used.get(kind, 0) % len(shades)]
            used[kind] = used.get(kind, 0) + 1
    return Look(found)


def draw_svg(plan: Plan, graph: Graph, name: str = "", known: Sequence[Known] | None = None, limit: int = BOXES) -> str:
    """The picture of a plan as an SVG document, readable by itself on a light ground.

    Args:
        plan: what to draw.
        graph: of the model that the plan is for.
        name: of the model, for the head; the graph's own when empty.
        known: one for each segment; `known_of(plan)` when None.
        limit: most boxes; larger graphs are folded into stages and repeated layers.

    Raises:
        OptionError: the plan is not one of this graph.
    """
    known = known_of(plan) if known is None else known
    return svg(plan, overview(graph, plan, limit), head(plan, graph, name), cards(plan, graph, known))


def head(plan: Plan, graph: Graph, name: str) -> tuple[str, str]:
    """Title and subtitle of a picture."""
    speed = f"{time_text(plan.measured_s)} a request" if plan.measured_s else "not timed"
    checked = "checked" if plan.verification.verified else "not checked"
    nodes = f"{len(graph.nodes)} nodes, {len(plan.segments)} segment{'s' if len(plan.segments) > 1 else ''}"
    return name or graph.name, f"plan {plan.id} for {plan.objective} · {nodes} · {speed} · {checked}"


def cards(plan: Plan, graph: Graph, known: Sequence[Known]) -> tuple[tuple[str, ...], ...]:
    """What is written beside each segment: its target, size, times, and what it hands on."""
    runs = running_order(segment_of(graph, plan))
    found = []
    for number, segment in enumerate(plan.segments):
        run = runs[number] if number < len(runs) else ()
        lines = [str(segment.target), _amount(graph, run)]
        times = ((known[number].measured_s, "measured"), (known[number].predicted_s, "predicted"))
        lines += [f"{time_text(time_s)} {how}" for time_s, how in times if time_s]
        for move in plan.transfers:
            if move.source == number:
                count = f"{len(move.values)} value{'s' if len(move.values) > 1 else ''}"
                lines.append(f"→ segment {move.sink + 1}: {count}, {size_text(move.size_bytes)}")
        found.append(tuple(lines))
    return tuple(found)


def _amount(graph: Graph, run: Sequence[int]) -> str:
    weights = weight_bytes(graph, run)
    nodes = f"{len(run)} node{'' if len(run) == 1 else 's'}"
    return f"{nodes} · {size_text(weights)} of weights" if weights else nodes


def svg(
    plan: Plan,
    scene: Scene,
    words: tuple[str, str],
    beside: Sequence[Sequence[str]] | None,
    links: Mapping[int, str] | None = None,
) -> str:
    """One scene as an `<svg>` element.

    Args:
        plan: for the colours.
        scene: what to draw.
        words: title and subtitle; no head when both are empty.
        beside: for each segment the lines of its card; None for a drawing without cards.
        links: index of an item -> where a click on it leads.
    """
    sizes = [_size(item) for item in scene.items]
    least = _card_heights(scene, beside or ())
    placed = lay_out(sizes, sorted(scene.lines), [item.band for item in scene.items], least)
    left = _MARGIN + (_CARD if beside is not None else 0.0)
    legend = list(look_of(plan).colours.items())
    top = _MARGIN + (_HEAD + 18.0 * ((len(legend) - 1) // 2) if any(words) else 0.0)
    width = max(left + placed.width + _MARGIN + 14, 560.0 if any(words) else 0.0)
    slack = (width - left - _MARGIN - placed.width) / 2
    height = top + placed.height + _MARGIN + 6
    inner = _Painter(plan, scene, placed, sizes, links or {})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" {_FONT} font-size="12" fill="{_INK}">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *(_head(words, legend, _notes(scene)) if any(words) else ()),
        *(_cards(plan, scene, placed, beside, (top, width)) if beside is not None else ()),
        f'<g transform="translate({left + slack:.1f} {top:.1f})">',
        *inner.paint(),
        "</g></svg>",
    ]
    return "\n".join(parts)


def text(words: str, longest: int = 0) -> str:
    """Safe inside markup: escaped, without control characters, cut where it is too long."""
    words = "".join(c if c.isprintable() else "�" for c in words)
    return html.escape(words if not longest or len(words) <= longest else words[: longest - 1] + "…")


def _size(item: Item) -> tuple[float, float]:
    title, line = min(len(item.title), _LONGEST), min(len(item.line), _LONGEST + 6)
    width = max(title * _TITLE_PX, line * _LINE_PX, 36.0) + 22
    return round(width, 1), 40.0 if item.line else 26.0


def _card_heights(scene: Scene, beside: Sequence[Sequence[str]]) -> dict[int, float]:
    """Band -> height, for segments of one band: the card must fit beside it."""
    bands: dict[int, set[int]] = {}
    for item in scene.items:
        bands.setdefault(item.segment, set()).add(item.band)
    return {
        next(iter(found)): 15.0 * len(beside[segment]) + 10
        for segment, found in bands.items()
        if 0 <= segment < len(beside) and len(found) == 1
    }


def _notes(scene: Scene) -> str:
    """What the marks mean that are in the picture."""
    boxes = [item.box for item in scene.items if item.box]
    texts = ["a double box holds several nodes" if any(len(box.nodes) > 1 for box in boxes) else "",
             "a dashed frame is repeated" if any(box.frame for box in boxes) else "",
             "thick lines are transfers" if len({item.segment for item in scene.items if item.box}) > 1 else "",
             ]  # fmt: skip
    return " · ".join(words for words in texts if words)


def _head(words: tuple[str, str], legend: Sequence[tuple[Target, tuple[str, str]]], notes: str) -> Iterator[str]:
    yield f'<text x="{_MARGIN}" y="32" font-size="17" font-weight="600">{text(words[0], 70)}</text>'
    yield f'<text x="{_MARGIN}" y="52" fill="{_FAINT}">{text(words[1])}</text>'
    for number, (target, (fill, line)) in enumerate(legend):
        x, y = _MARGIN + 270.0 * (number % 2), 64.0 + 18.0 * (number // 2)
        yield f'<rect x="{x}" y="{y}" width="14" height="12" rx="3" fill="{fill}" stroke="{line}"/>'
        yield f'<text x="{x + 20}" y="{y + 10}" font-size="11">{text(str(target), 40)}</text>'
    y = 92.0 + 18.0 * ((len(legend) - 1) // 2)
    yield f'<text x="{_MARGIN}" y="{y}" font-size="10" fill="{_FAINT}">{notes}</text>'


def _cards(
    plan: Plan, scene: Scene, placed: Layout, beside: Sequence[Sequence[str]], room: tuple[float, float]
) -> Iterator[str]:
    """Grounds of the segments with what is written on them; `room` is where the graph begins, and the width."""
    top, width = room
    look = look_of(plan)
    for segment, lines in enumerate(beside):
        spans = [placed.bands[item.band] for item in scene.items if item.segment == segment]
        if not spans:
            continue
        low = top + min(span[0] for span in spans) - 24
        high = max(top + max(span[1] for span in spans) + 16, low + 15.0 * len(lines) + 32)
        fill, line = look.of(plan, segment)
        yield (
            f'<rect x="8" y="{low:.1f}" width="{width - 16:.1f}" height="{high - low:.1f}" rx="8" fill="{fill}" '
            f'fill-opacity="0.35" stroke="{line}" stroke-opacity="0.35"/>'
        )
        yield f'<rect x="8" y="{low:.1f}" width="4" height="{high - low:.1f}" rx="2" fill="{line}"/>'
        y = low + 20
        yield f'<text x="{_MARGIN}" y="{y:.1f}" font-weight="600" fill="{line}">segment {segment + 1}</text>'
        for words in lines:
            y += 15
            yield f'<text x="{_MARGIN}" y="{y:.1f}" font-size="11">{text(words, 40)}</text>'


class _Painter:
    """The graph of one drawing: frames, lines, boxes, labels, in this order, so that nothing hides a word."""

    def __init__(
        self, plan: Plan, scene: Scene, placed: Layout, sizes: Sequence[tuple[float, float]], links: Mapping[int, str]
    ) -> None:
        self.plan, self.scene, self.placed, self.sizes, self.links = plan, scene, placed, sizes, links
        self.look = look_of(plan)
        self.labels: list[tuple[float, float, float]] = []
        self.badges: list[tuple[float, float, str, str]] = []

    def paint(self) -> Iterator[str]:
        yield from self._frames()
        for ends, line in self.scene.lines.items():
            yield self._line(ends, line)
        for number, item in enumerate(self.scene.items):
            yield from self._box(number, item)
        for ends, line in self.scene.lines.items():
            yield from self._label(ends, line)
        for x, y, words, colour in self.badges:
            yield from _pill(x, y, words, colour)

    def _frames(self) -> Iterator[str]:
        frames: dict[int, list[int]] = {}
        for number, item in enumerate(self.scene.items):
            if item.box and item.box.frame:
                frames.setdefault(item.band, []).append(number)
        for band, numbers in frames.items():
            low, high = self.placed.bands[band]
            left = min(self.placed.centres[n][0] - self.sizes[n][0] / 2 for n in numbers) - 14
            right = max(self.placed.centres[n][0] + self.sizes[n][0] / 2 for n in numbers) + 14
            first = self.scene.items[numbers[0]]
            assert first.box is not None
            colour = self.look.of(self.plan, first.segment)[1]
            yield (
                f'<rect x="{left:.1f}" y="{low - 12:.1f}" width="{right - left:.1f}" height="{high - low + 24:.1f}" '
                f'rx="10" fill="#ffffff" fill-opacity="0.7" stroke="{colour}" stroke-dasharray="5 3"/>'
            )
            self.badges.append((right - 20, low - 12, f"{len(first.box.copies) + 1} x", colour))

    def _line(self, ends: tuple[int, int], line: Line) -> str:
        points = self.placed.routes[ends]
        path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for (x, y), (to_x, to_y) in pairwise(points):
            middle = (y + to_y) / 2
            straight = abs(x - to_x) < 0.05
            path += (
                f"V{to_y:.1f}" if straight else f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
            )
        crosses = self._crosses(ends)
        colour, width = (_INK, 2.2) if crosses else (_WIRE, 1.3)
        x, y = points[-1]
        tip = f"M{x - 3.5:.1f} {y - 6:.1f}L{x:.1f} {y:.1f}L{x + 3.5:.1f} {y - 6:.1f}"
        names = text(", ".join(line.values[:4]), 120)
        return (
            f'<g fill="none" stroke="{colour}" stroke-width="{width}"><path d="{path}"/><path d="{tip}"/>'
            f"<title>{names}{f', {size_text(line.size_bytes)}' if line.size_bytes else ''}</title></g>"
        )

    def _crosses(self, ends: tuple[int, int]) -> bool:
        source, sink = (self.scene.items[end].segment for end in ends)
        return source >= 0 and sink >= 0 and source != sink

    def _box(self, number: int, item: Item) -> Iterator[str]:
        (x, y), (width, height) = self.placed.centres[number], self.sizes[number]
        left, top = x - width / 2, y - height / 2
        fill, line = self.look.of(self.plan, item.segment)
        radius = 6 if item.box else height / 2
        link = self.links.get(number)
        yield f'<a href="{link}">' if link else "<g>"
        yield f"<title>{text(_tip(item), 2000)}</title>"
        if item.box and len(item.box.nodes) > 1:
            yield _rect(left + 4, top + 4, (width, height), radius, (fill, line))
        yield _rect(left, top, (width, height), radius, (fill if item.box else "#ffffff", line))
        title_y = y - 4 if item.line else y + 4
        weight = ' font-weight="600"' if item.box else ""
        yield f'<text x="{x:.1f}" y="{title_y:.1f}" text-anchor="middle"{weight}>{text(item.title, _LONGEST)}</text>'
        if item.line:
            yield (
                f'<text x="{x:.1f}" y="{y + 11:.1f}" text-anchor="middle" font-size="10" '
                f'fill="{_FAINT}">{text(item.line, _LONGEST + 6)}</text>'
            )
        yield "</a>" if link else "</g>"

    def _label(self, ends: tuple[int, int], line: Line) -> Iterator[str]:
        """The size of a transfer, between the segments, where there is room for it."""
        if not self._crosses(ends) or not line.size_bytes:
            return
        words = size_text(line.size_bytes)
        reader = self.scene.items[ends[1]].segment
        y = min(self.placed.bands[item.band][0] for item in self.scene.items if item.segment == reader) - 32
        x = _x_at(self.placed.routes[ends], y)
        half = len(words) * _LINE_PX / 2 + 6
        if any(abs(y - other_y) < 16 and abs(x - other_x) < half + other for other_x, other_y, other in self.labels):
            return
        self.labels.append((x, y, half))
        yield from _pill(x, y, words, _INK)


def _x_at(points: Sequence[tuple[float, float]], y: float) -> float:
    """Where a line is at a height, on the curve between two of its points."""
    for (x, low), (to_x, high) in pairwise(points):
        if low <= y <= high and high > low:
            part = (y - low) / (high - low)
            return x + (to_x - x) * part * part * (3 - 2 * part)
    return points[-1][0]


def _pill(x: float, y: float, words: str, colour: str) -> Iterator[str]:
    half = len(words) * _LINE_PX / 2 + 6
    yield _rect(x - half, y - 8, (2 * half, 16), 8, ("#ffffff", colour))
    yield (
        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" font-size="10" font-weight="600" '
        f'fill="{colour}">{text(words)}</text>'
    )


def _rect(x: float, y: float, size: tuple[float, float], radius: float, colours: tuple[str, str]) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}" rx="{radius:.0f}" '
        f'fill="{colours[0]}" stroke="{colours[1]}"/>'
    )


def _tip(item: Item) -> str:
    many = f"{len(item.box.copies) + 1} times" if item.box and item.box.copies else ""
    return " · ".join(words for words in (item.name, item.title, item.line, many) if words)
