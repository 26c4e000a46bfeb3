"""What it costs to hand values to a device and to take them back, measured.

A device's segments run in a child process, so a link is the way of an array into that child and out of it; the device's
own copy is part of its segments' time. The planner and `probe` measure with the same function.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgert.devices.remote import Remote
from edgert.machine import Device, Link, Machine

_BYTES = (1 << 10, 1 << 14, 1 << 18, 1 << 22)
"""Sizes at which a link is measured: a small tensor to a large one."""
_REPEATS = 7
_HOST = "cpu:0"


def measure(devices: Mapping[str, Remote], machine: Machine) -> tuple[Link, ...]:
    """Links between the CPU and each device, both ways, and between any two devices.

    Latency and bandwidth are fitted to several sizes by least squares. Between two devices a value passes through this
    process: those links are the sums of what was measured.

    Args:
        devices: device id -> the child in which it is driven, without the CPU; what it holds stays there.
        machine: which describes them.

    Raises:
        ChildError: a child died or hung.
    """
    into, back = {}, {}
    for name, remote in devices.items():
        into[name], back[name] = _both(remote, machine.device(name))
    links = []
    for name in devices:
        links += [Link(_HOST, name, *into[name]), Link(name, _HOST, *back[name])]
        links += [_through(name, back[name], other, into[other]) for other in devices if other != name]
    return tuple(links)


def _both(remote: Remote, device: Device) -> Iterator[tuple[float, float]]:
    """Latency in seconds and bytes per second of the way into a child, and of the way out."""
    yield _fit(lambda size: remote.transfer(device, np.zeros(size, np.uint8)))
    yield _fit(lambda size: remote.fetch(device, size))


def _fit(seconds: Callable[[int], float]) -> tuple[float, float]:
    # The first call of a size makes room for it, and the very first waits until the child is up.
    medians = [statistics.median([seconds(size) for _ in range(_REPEATS)][1:]) for size in _BYTES]
    slope, latency_s = np.polyfit(_BYTES, medians, 1, w=1 / np.asarray(medians))
    return max(float(latency_s), 1e-7), 1 / max(float(slope), 1e-12)


def _through(name: str, back: tuple[float, float], other: str, into: tuple[float, float]) -> Link:
    return Link(name, other, back[0] + into[0], 1 / (1 / back[1] + 1 / into[1]))
