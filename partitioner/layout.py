"""Where boxes and lines of a drawing go: layers from top to bottom, few crossings, straight lines.

The usual four steps (Sugiyama, Tagawa and Toda 1981; Gansner and others 1993), each in its simple form, since a drawing
has a few dozen boxes: layers by longest path; points where long lines pass layers; order within layers by barycentres;
coordinates by sweeps, each an isotonic regression (pool adjacent violators), which moves boxes least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Layout", "lay_out"]

_SWEEPS = 12
_APART = 18.0
"""Space between neighbours in a layer, and between layers beside their lines."""
_LAYER_GAP = 26.0
_BAND_GAP = 30.0
"""More where a band ends."""
_PASS = 10.0
"""Width of a line that passes a layer."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions in pixels, from the top left corner."""

    centres: tuple[tuple[float, float], ...]
    """Of each box."""
    routes: Mapping[tuple[int, int], tuple[tuple[float, float], ...]]
    """For each line the points that it passes, bottom of its source and top of its sink included."""
    bands: Mapping[int, tuple[float, float]]
    """Band -> its top and bottom."""
    width: float
    height: float


def lay_out(
    sizes: Sequence[tuple[float, float]],
    edges: Sequence[tuple[int, int]],
    bands: Sequence[int],
    least: Mapping[int, float] | None = None,
) -> Layout:
    """Place boxes of (width, height) so that every edge (source < sink) goes down.

    Args:
        sizes: of the boxes, in a topological order.
        edges: pairs of indices, each once.
        bands: for each box a number that never falls; a band's boxes are all below those of the band before.
        least: band -> its smallest height, for what is written beside it.
    """
    if not sizes:
        return Layout((), {}, {}, 0.0, 0.0)
    layers = _layers(len(sizes), edges, bands)
    chains = _chains(edges, layers, len(sizes))
    points = len(sizes) + sum(len(chain) - 2 for chain in chains)
    level = [*layers, *([0] * (points - len(sizes)))]
    for (source, _), chain in zip(edges, chains, strict=True):
        for step, point in enumerate(chain[1:-1], 1):
            level[point] = layers[source] + step
    rows: list[list[int]] = [[] for _ in range(max(level) + 1)]
    for point in range(points):
        rows[level[point]].append(point)
    widths = [*(width for width, _ in sizes), *([_PASS] * (points - len(sizes)))]
    links = [(a, b) for chain in chains for a, b in pairwise(chain)]
    _reorder(rows, links, points)
    x = _straighten(rows, links, widths)
    spans = _spans(sizes, bands, level, rows, least or {})
    return _finish(sizes, dict(zip(edges, chains, strict=True)), bands, x, [spans[row] for row in level])


def _layers(count: int, edges: Sequence[tuple[int, int]], bands: Sequence[int]) -> list[int]:
    sources: list[list[int]] = [[] for _ in range(count)]
    sinks: list[list[int]] = [[] for _ in range(count)]
    for source, sink in edges:
        sources[sink].append(source)
        sinks[source].append(sink)
    layer = [0] * count
    floor = top = 0
    for box in range(count):
        if box and bands[box] != bands[box - 1]:
            floor = top + 1
        layer[box] = max((layer[source] + 1 for source in sources[box]), default=floor)
        layer[box] = max(layer[box], floor)
        top = max(top, layer[box])
    for box in reversed(range(count)):
        # What starts from nothing belongs beside its first reader.
        near = min((layer[sink] for sink in sinks[box] if bands[sink] == bands[box]), default=layer[box] + 1)
        if not sources[box] and len(sinks[box]) > 0:
            layer[box] = max(layer[box], near - 1)
    return layer


def _chains(edges: Sequence[tuple[int, int]], layers: Sequence[int], count: int) -> list[list[int]]:
    """For each edge the points on its way: source, one for each layer between, sink."""
    chains = []
    for source, sink in edges:
        between = layers[sink] - layers[source] - 1
        chains.append([source, *range(count, count + between), sink])
        count += between
    return chains


def _reorder(rows: list[list[int]], links: Sequence[tuple[int, int]], count: int) -> None:
    """Sort each row by the mean place of its neighbours in the row before, down and up in turns."""
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in links:
        below[a].append(b)
        above[b].append(a)
    place = [0.0] * count
    for row in rows:
        _number(row, place)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            near = above if down else below
            mean = {p: sum(place[q] for q in near[p]) / len(near[p]) if near[p] else place[p] for p in row}
            row.sort(key=lambda p: mean[p])
            _number(row, place)


def _number(row: Sequence[int], place: list[float]) -> None:
    for position, point in enumerate(row):
        place[point] = (position + 0.5) / len(row)


def _straighten(
    rows: Sequence[Sequence[int]], links: Sequence[tuple[int, int]], widths: Sequence[float]
) -> list[float]:
    """Centres along the rows: near the neighbours' above and below, no two closer than their widths allow."""
    above: list[list[tuple[int, float]]] = [[] for _ in widths]
    below: list[list[tuple[int, float]]] = [[] for _ in widths]
    for a, b in links:
        # Long lines bend most visibly, so they are held straight the hardest.
        weight = float(2 ** ((widths[a] == _PASS) + (widths[b] == _PASS)))
        below[a].append((b, weight))
        above[b].append((a, weight))
    x = [0.0] * len(widths)
    for row in rows:
        offsets = _offsets(row, widths)
        for point, offset in zip(row, offsets, strict=True):
            x[point] = offset - offsets[-1] / 2
    for sweep in range(_SWEEPS):
        # One side at a time carries a chain's place through all its rows in one sweep; both sides settle the rest.
        sides = (above, below) if sweep >= _SWEEPS - 2 else (above,) if sweep % 2 == 0 else (below,)
        for row in rows if sweep % 2 == 0 else reversed(rows):
            _settle(row, [[link for side in sides for link in side[point]] for point in row], widths, x)
    left = min(x[point] - widths[point] / 2 for row in rows for point in row)
    return [value - left for value in x]


def _settle(
    row: Sequence[int], near: Sequence[Sequence[tuple[int, float]]], widths: Sequence[float], x: list[float]
) -> None:
    """Move the points of a row to the weighted means of their neighbours, as far as they do not meet."""
    wanted = [
        sum(weight * x[q] for q, weight in links) / sum(weight for _, weight in links) if links else x[point]
        for point, links in zip(row, near, strict=True)
    ]
    offsets = _offsets(row, widths)
    kept = _isotonic([want - offset for want, offset in zip(wanted, offsets, strict=True)])
    for point, value, offset in zip(row, kept, offsets, strict=True):
        x[point] = value + offset


def _offsets(row: Sequence[int], widths: Sequence[float]) -> list[float]:
    """Centres of a row's points when packed, the first at 0."""
    offsets = [0.0]
    for a, b in pairwise(row):
        offsets.append(offsets[-1] + (widths[a] + widths[b]) / 2 + _APART)
    return offsets


def _isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in the sum of squares."""
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for value in values:
        mean, size = value, 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    return [mean for mean, size in pools for _ in range(size)]


def _spans(
    sizes: Sequence[tuple[float, float]],
    bands: Sequence[int],
    level: Sequence[int],
    rows: Sequence[Sequence[int]],
    least: Mapping[int, float],
) -> list[tuple[float, float]]:
    """Top and bottom of each row."""
    count = len(sizes)
    band_of_row = {level[box]: bands[box] for box in range(count)}
    spans: list[tuple[float, float]] = []
    y = start = 0.0
    for number, row in enumerate(rows):
        band = band_of_row[number]
        if number and band != band_of_row[number - 1]:
            y = start = max(y, start + least.get(band_of_row[number - 1], 0.0)) + _LAYER_GAP + _BAND_GAP
        elif number:
            y += _LAYER_GAP
        bottom = y + max(sizes[box][1] for box in row if box < count)
        spans.append((y, bottom))
        y = bottom
    return spans


def _finish(
    sizes: Sequence[tuple[float, float]],
    chains: Mapping[tuple[int, int], Sequence[int]],
    bands: Sequence[int],
    x: Sequence[float],
    spans: Sequence[tuple[float, float]],
) -> Layout:
    """Points of the boxes and lines; `spans` are top and bottom of the row of each box and point."""
    count = len(sizes)
    centres = tuple((x[box], sum(spans[box]) / 2) for box in range(count))
    routes = {}
    for (source, sink), chain in chains.items():
        points = [(x[source], centres[source][1] + sizes[source][1] / 2)]
        for point in chain[1:-1]:
            points += [(x[point], spans[point][0]), (x[point], spans[point][1])]
        points.append((x[sink], centres[sink][1] - sizes[sink][1] / 2))
        routes[source, sink] = tuple(points)
    heights: dict[int, tuple[float, float]] = {}
    for box, band in enumerate(bands):
        top, bottom = spans[box]
        low, high = heights.get(band, (top, bottom))
        heights[band] = min(low, top), max(high, bottom)
    right = max([x[box] + sizes[box][0] / 2 for box in range(count)] + list(x))
    return Layout(centres, routes, heights, right, max(bottom for _, bottom in spans))
