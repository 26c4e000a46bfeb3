"""Loads of devices and links under any split, kept up to date while items move: for local search on throughput.

A value costs something for each device that reads it, however many blocks do so there. So for each value and device the
readers are counted, and only the first to come and the last to go change a load: a move takes a time proportional
to the values at the moved blocks, whatever the number of devices.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgert.partitioner.indexed import Indexed

__all__ = ["Loads"]


class Loads:
    """Loads of devices and links, kept up to date while items move."""

    def __init__(self, indexed: Indexed, start: Sequence[int]) -> None:
        self.indexed = indexed
        self.place = list(start)
        devices = self.devices = len(indexed.capacity)
        self.host = [False] * devices
        for t, host in enumerate(indexed.host):
            self.host[indexed.device_of[t]] = host
        self.on_device = indexed.problem.transfers == "device"
        self.counted = range(0, devices * devices, devices + 1 if self.on_device else 1)
        """Indices of `loads` that can be other than 0."""
        self.loads = [0.0] * (devices * devices)
        """[a * devices + b]: of a link; of a device where a = b."""
        self.held = [0.0] * devices
        self.energy = 0.0
        self.home = [0] * len(indexed.wires)
        """[wire] -> device of its source."""
        self.readers = [[0] * devices for _ in indexed.wires]
        """[wire][device] -> blocks there that read it."""
        self.away = [0] * len(indexed.wires)
        """[wire] -> devices but its source's that read it."""
        device_of = [indexed.device_of[t] for t in indexed.spread(start)]
        for number, wire in enumerate(indexed.wires):
            self.home[number] = device_of[wire.source]
            for sink in wire.sinks:
                self._read(number, device_of[sink])
        for item, t in enumerate(start):
            self._settle(item, t, 1)

    def _settle(self, item: int, target: int, sign: int) -> None:
        d = self.indexed.device_of[target]
        share = self.indexed.lanes[target] / self.indexed.device_lanes[d]
        cost = self.indexed.item_costs[item][target]
        self.loads[d * self.devices + d] += sign * share * cost
        self.held[d] += sign * self.indexed.item_memory[item]
        self.energy += sign * self.indexed.watts[target] * cost

    def _read(self, number: int, d: int) -> None:
        """One block more on device d reads the wire."""
        readers = self.readers[number]
        readers[d] += 1
        if readers[d] == 1 and d != self.home[number]:
            self._charge(number, d, 1)

    def _leave(self, number: int, d: int) -> None:
        """One block less on device d reads the wire."""
        readers = self.readers[number]
        readers[d] -= 1
        if not readers[d] and d != self.home[number]:
            self._charge(number, d, -1)

    def _charge(self, number: int, d: int, sign: int) -> None:
        """Device d, another than the source's, begins (1) or ceases (-1) to read the wire."""
        home = self.home[number]
        time = self.indexed.wires[number].times[home][d]
        if not self.on_device:
            self.loads[home * self.devices + d] += sign * time
            return
        if not self.host[d]:
            self.loads[d * self.devices + d] += sign * time
        before = self.away[number]
        self.away[number] = before + sign
        # The source's device hands it over once, whoever reads it; under these rules a value's time is one number.
        if not (before and self.away[number]) and not self.host[home]:
            self.loads[home * self.devices + home] += sign * time

    def _rehome(self, number: int, d: int) -> None:
        """The wire's source goes to device d."""
        reading = [other for other, readers in enumerate(self.readers[number]) if readers]
        for other in reading:
            if other != self.home[number]:
                self._charge(number, other, -1)
        self.home[number] = d
        for other in reading:
            if other != d:
                self._charge(number, other, 1)

    def move(self, item: int, target: int) -> None:
        """Put the item on the target."""
        indexed = self.indexed
        old = self.place[item]
        self._settle(item, old, -1)
        self._settle(item, target, 1)
        self.place[item] = target
        before, after = indexed.device_of[old], indexed.device_of[target]
        if before == after:
            return
        for block in indexed.items[item]:
            for number in indexed.wires_from[block]:
                self._rehome(number, after)
            for number in indexed.wires_into[block]:
                self._leave(number, before)
                self._read(number, after)

    def valid(self) -> bool:
        """Whether memory and energy keep their limits."""
        most = self.indexed.problem.most_energy_j
        fits = all(held <= limit for held, limit in zip(self.held, self.indexed.capacity, strict=True))
        return fits and (most is None or self.energy <= most)

    def top(self) -> float:
        """The largest load."""
        return max(self.loads)

    def critical(self) -> list[int]:
        """As a gauge of `borders`: not known."""
        return []

    def height(self, scale: float) -> float:
        """A smooth stand-in for the largest load over `scale`, in which a second largest one counts too."""
        total = 0.0
        for number in self.counted:
            share = self.loads[number] / scale
            share *= share
            share *= share
            total += share * share
        return float(total**0.125)
