"""Loads of devices and links under any split, kept up to date while items move: for local search on throughput."""

from __future__ import annotations

from collections.abc import Sequence

from edgert.partitioner.indexed import Indexed

__all__ = ["Loads"]


class Loads:
    """Loads of devices and links, kept up to date while items move."""

    def __init__(self, indexed: Indexed, start: Sequence[int]) -> None:
        self.indexed = indexed
        self.place = list(start)
        devices = len(indexed.capacity)
        self.devices = devices
        self.host = [False] * devices
        for t, host in enumerate(indexed.host):
            self.host[indexed.device_of[t]] = host
        self.on_device = indexed.problem.transfers == "device"
        self.readers = [[0] * devices for _ in indexed.wires]
        """[wire][device] -> blocks there that read it."""
        self.loads = [0.0] * (devices * devices)
        """[a * devices + b]: of a link; of a device where a = b."""
        self.held = [0.0] * devices
        self.energy = 0.0
        device_of = [indexed.device_of[t] for t in indexed.spread(start)]
        for number, wire in enumerate(indexed.wires):
            for sink in wire.sinks:
                self.readers[number][device_of[sink]] += 1
            self._charge(number, device_of[wire.source], 1)
        for item, t in enumerate(start):
            self._settle(item, t, 1)

    def _settle(self, item: int, target: int, sign: int) -> None:
        d = self.indexed.device_of[target]
        share = self.indexed.lanes[target] / self.indexed.device_lanes[d]
        cost = self.indexed.item_costs[item][target]
        self.loads[d * self.devices + d] += sign * share * cost
        self.held[d] += sign * self.indexed.item_memory[item]
        self.energy += sign * self.indexed.watts[target] * cost

    def _charge(self, number: int, home: int, sign: int) -> None:
        """Add or take off what one wire costs as things stand."""
        times = self.indexed.wires[number].times[home]
        away = 0.0
        for d, readers in enumerate(self.readers[number]):
            if readers and d != home:
                if not self.on_device:
                    self.loads[home * self.devices + d] += sign * times[d]
                elif not self.host[d]:
                    self.loads[d * self.devices + d] += sign * times[d]
                away = max(away, times[d])
        if self.on_device and not self.host[home]:
            self.loads[home * self.devices + home] += sign * away

    def move(self, item: int, target: int) -> None:
        """Put the item on the target."""
        indexed = self.indexed
        old = self.place[item]
        before, after = indexed.device_of[old], indexed.device_of[target]
        self._settle(item, old, -1)
        self._settle(item, target, 1)
        self.place[item] = target
        if before == after:
            return
        touched: dict[int, int] = {}  # wire -> device of its source before
        for block in indexed.items[item]:
            for number in indexed.wires_from[block]:
                touched[number] = before
            for number in indexed.wires_into[block]:
                source = indexed.item_of[indexed.wires[number].source]
                touched.setdefault(number, before if source == item else indexed.device_of[self.place[source]])
        for number, home in touched.items():
            self._charge(number, home, -1)
        for block in indexed.items[item]:
            for number in indexed.wires_into[block]:
                self.readers[number][before] -= 1
                self.readers[number][after] += 1
        for number in touched:
            source = indexed.item_of[indexed.wires[number].source]
            self._charge(number, indexed.device_of[self.place[source]], 1)

    def valid(self) -> bool:
        """Whether memory and energy keep their limits."""
        most = self.indexed.problem.most_energy_j
        fits = all(held <= limit for held, limit in zip(self.held, self.indexed.capacity, strict=True))
        return fits and (most is None or self.energy <= most)

    def height(self, scale: float) -> float:
        """A smooth stand-in for the largest load over `scale`, in which a second largest one counts too."""
        return float(sum((abs(load) / scale) ** 8 for load in self.loads) ** 0.125)
