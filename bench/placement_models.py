"""Graphs of whole networks, layer by layer or operator by operator, as problems like those that are published.

BERT, ResNet-50, an Inception and a GNMT, forward alone or with the backward pass. Nothing is measured: an operator
takes the longer of its arithmetic and its memory traffic (the roofline; Williams, Waterman and Patterson,
Communications of the ACM 52, 2009) on an accelerator, and 10 to 25 times as long on the CPU. As in the published
graphs, operator graphs hold weights and side outputs as nodes of their own, of one colour with their operator; a
backward node has the colour of the forward one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

__all__ = ["NETWORKS", "Pass", "network_file"]

Pass: TypeAlias = Literal["forward", "mirrored", "training"]
"""forward: inference. mirrored: a backward pass beside it, not connected but by colours, with edges in the same
direction (as published for layer graphs). training: backward edges run back, and read what the forward nodes made."""

_FLOPS_PER_MS, _BYTES_PER_MS = 2e9, 1e8


class _Network:
    """Nodes as they come; each reads earlier ones."""

    def __init__(self, chance: random.Random, operators: bool) -> None:
        self.chance = chance
        self.operators = operators
        self.slower = chance.uniform(18, 25) if operators else 10.0
        self.nodes: list[dict[str, Any]] = []
        self.reads: list[tuple[int, ...]] = []
        self.out_bytes: list[float] = []

    def add(self, reads: Sequence[int], out: float, flops: float = 0.0, weights: float = 0.0, extra: int = 0) -> int:
        """One operator: what it reads, bytes that it makes, arithmetic, bytes of weights, side outputs; its number."""
        colour = len(self.nodes)
        parameters: list[int] = []
        if weights and self.operators:
            parameters = [self._put((), weights, 0.0, weights, colour), self._put((), out**0.5, 0.0, out**0.5, colour)]
        traffic = out + weights + sum(self.out_bytes[r] for r in reads)
        time = max(flops / _FLOPS_PER_MS, traffic / _BYTES_PER_MS) * self.chance.uniform(0.9, 1.1)
        held = out if self.operators else out + weights
        number = self._put((*reads, *parameters), out, time, held, colour)
        for _ in range(extra if self.operators else 0):
            self._put((number,), 0.0, 0.0, 0.0, colour)
        return number

    def _put(self, reads: Sequence[int], out: float, time: float, size: float, colour: int) -> int:
        self.nodes.append({
            "id": len(self.nodes), "cpuLatency": time * self.slower, "fpgaLatency": time, "size": size,
            "supportedOnFpga": 1, "isBackwardNode": 0, "colorClass": colour,
        })  # fmt: skip
        self.reads.append(tuple(reads))
        self.out_bytes.append(out)
        return len(self.nodes) - 1


def _bert(net: _Network, layers: int) -> None:
    tokens, width = 512.0, 1024.0
    shape = 4 * tokens * width
    x = net.add((), shape, weights=30_522 * width * 4)
    x = net.add((x,), shape, weights=8 * width, extra=2)
    if not net.operators:
        mask = net.add((), 0.0)
        for _ in range(layers):
            x = net.add((x, mask), shape, 24 * tokens * width**2, 48 * width**2)
        net.add((net.add((x,), 4 * width, 2 * width**2, 4 * width**2),), 8.0, weights=8 * width)
        return
    mask = net.add((net.add((), tokens * 4),), tokens * 4)
    for _ in range(layers):
        heads = [net.add((_bias(net, x, shape, width, width),), shape) for _ in range(3)]
        scores = net.add(heads[:2], 16 * tokens**2 * 4, 2 * tokens**2 * width)
        scores = net.add((net.add((scores,), 16 * tokens**2 * 4), mask), 16 * tokens**2 * 4)
        scores = net.add((net.add((scores,), 16 * tokens**2 * 4),), 16 * tokens**2 * 4, extra=1)
        y = _bias(net, net.add((scores, heads[2]), shape, 2 * tokens**2 * width), shape, width, width)
        x = net.add((net.add((x, y), shape),), shape, weights=8 * width, extra=2)
        y = net.add((_bias(net, x, 4 * shape, width, 4 * width),), 4 * shape)
        x = net.add((net.add((x, _bias(net, y, shape, 4 * width, width)), shape),), shape, weights=8 * width, extra=2)
    net.add((_bias(net, x, 4 * tokens * 30_522, width, 30_522),), 4.0)


def _bias(net: _Network, x: int, out: float, wide: float, far: float) -> int:
    """A product with weights, and the bias added to it."""
    return net.add((net.add((x,), out, 512 * 2 * wide * far, 4 * wide * far),), out, weights=4 * far)


def _convolution(net: _Network, x: int, side: int, inner: int, outer: int, *, kernel: int = 1) -> int:
    """Convolution, normalisation and activation on side x side pixels of a batch of 8."""
    out = 8.0 * side * side * outer * 4
    weights = 4.0 * kernel**2 * inner * outer
    x = net.add((x,), out, 16.0 * side * side * kernel**2 * inner * outer, weights)
    return net.add((net.add((x,), out, weights=16.0 * outer, extra=4),), out)


def _resnet50(net: _Network, _: int) -> None:
    x = _convolution(net, net.add((), 8 * 224 * 224 * 12.0), 112, 3, 64, kernel=7)
    x, wide = net.add((x,), 8 * 56 * 56 * 64 * 4.0), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        side, inner = 56 >> stage, 64 << stage
        for block in range(blocks):
            y = _convolution(net, x, side, wide, inner)
            y = _convolution(net, _convolution(net, y, side, inner, inner, kernel=3), side, inner, 4 * inner)
            x = x if block else _convolution(net, x, side, wide, 4 * inner)
            wide = 4 * inner
            out = 8.0 * side * side * wide * 4
            x = net.add((net.add((x, y), out),), out)
    net.add((net.add((x,), 8 * 2048 * 4.0),), 8 * 4000.0, 16 * 2048 * 1000, 2048 * 4000.0)


def _inception(net: _Network, _: int) -> None:
    x = net.add((), 8 * 299 * 299 * 12.0)
    for side, inner, outer in ((149, 3, 32), (147, 32, 64), (73, 64, 80), (71, 80, 192)):
        x = _convolution(net, x, side, inner, outer, kernel=3)
    wide = 192
    for side, modules, branch in ((35, 3, 64), (17, 5, 192), (8, 3, 320)):
        for _ in range(modules):
            ways = [_convolution(net, x, side, wide, branch)]
            for depth in (1, 2, 3)[: net.chance.randint(2, 3)]:
                way = _convolution(net, x, side, wide, branch)
                for _ in range(depth):
                    way = _convolution(net, way, side, branch, branch, kernel=3)
                ways.append(way)
            ways.append(_convolution(net, net.add((x,), 8.0 * side * side * wide * 4), side, wide, branch))
            wide = branch * len(ways)
            x = net.add(ways, 8.0 * side * side * wide * 4)
    net.add((net.add((x,), 8.0 * wide * 4),), 8 * 4000.0, 16.0 * wide * 1000, 4000.0 * wide)


def _gnmt(net: _Network, _: int) -> None:
    """Encoder and decoder of LSTM layers with skip connections; every decoder layer reads the attention."""
    width, steps = 1024.0, 50.0
    out, cell = 64 * steps * width * 4, 8 * width**2 * 4

    def layer(*reads: int) -> int:
        return net.add(reads, out, 64 * steps * 16 * width**2, cell)

    x = net.add((), out, weights=32_000 * width * 4)
    x = net.add((layer(x), layer(x)), 2 * out)
    for depth in range(6):
        y = net.add((layer(x),), out)
        x = y if depth < 2 else net.add((x, y), out)
    y = layer(net.add((), out, weights=32_000 * width * 4))
    attention = net.add((x, y), out, 64 * steps**2 * 4 * width, 3 * width**2 * 4)
    for depth in range(7):
        z = net.add((layer(net.add((y, attention), 2 * out)),), out)
        y = z if depth < 1 else net.add((y, z), out)
    net.add((net.add((y,), 64 * steps * 32_000 * 4, 128 * steps * width * 32_000, width * 32_000 * 4),), 64.0)


NETWORKS: Mapping[str, tuple[Callable[[_Network, int], None], bool, int]] = {
    # name -> what adds its nodes, whether operator by operator, layers
    "bert3_operators": (_bert, True, 3),
    "bert6_operators": (_bert, True, 6),
    "bert12_operators": (_bert, True, 12),
    "bert24_layers": (_bert, False, 24),
    "resnet50_operators": (_resnet50, True, 0),
    "resnet50_layers": (_resnet50, False, 0),
    "inception_operators": (_inception, True, 0),
    "inception_layers": (_inception, False, 0),
    "gnmt_operators": (_gnmt, True, 0),
    "gnmt_layers": (_gnmt, False, 0),
}


def network_file(
    name: str, accelerators: int, slack: float, *, kind: Pass = "forward", seed: int = 0
) -> dict[str, Any]:
    """A network as a problem in the form of the published files.

    Args:
        name: of `NETWORKS`.
        accelerators: how many.
        slack: memory of all accelerators together over what the network holds; below 1 the CPU must take some.
        kind: inference, or with a backward pass.
        seed: for the jitter of 10% on costs, and for how fast moving is.
    """
    make, operators, layers = NETWORKS[name]
    chance = random.Random(f"{name} {seed}")
    net = _Network(chance, operators)
    make(net, layers)
    count = len(net.nodes)
    edges = [(source, sink) for sink, reads in enumerate(net.reads) for source in reads]
    if kind != "forward":
        for node in net.nodes[:count]:
            back = chance.uniform(1.5, 2.5)
            net.nodes.append(
                node
                | {"id": node["id"] + count, "isBackwardNode": 1}
                | {key: node[key] * back for key in ("cpuLatency", "fpgaLatency")}
            )
        pairs = [(a + count, b + count) if kind == "mirrored" else (b + count, a + count) for a, b in edges]
        if kind == "training":  # what the forward pass made is read again, and the loss begins the way back
            pairs += [(a, b + count) for a, b in edges] + [(count - 1, 2 * count - 1)]
        edges = sorted({*edges, *pairs})
    per_ms = 2.0**31 / 1000 * chance.choice((1.0, 4.0) if operators else (4.0, 64.0))
    held = sum(node["size"] for node in net.nodes)
    return {
        "maxSizePerFPGA": slack * held / accelerators, "maxFPGAs": accelerators, "maxCPUs": 1, "nodes": net.nodes,
        "edges": [{"sourceId": a, "destId": b, "cost": net.out_bytes[a % count] / per_ms} for a, b in edges],
    }  # fmt: skip
