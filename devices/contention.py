"""When segments on processors that exist on paper end: they wait for each other, for links and for shared memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgert.devices.simulation import Load
from edgert.errors import OptionError

__all__ = ["Move", "Task", "end_s"]


@dataclass(frozen=True, slots=True)
class Task:
    """One segment in `end_s`."""

    device: str
    load: Load


@dataclass(frozen=True, slots=True)
class Move:
    """A value on its way from the segment that makes it to those on one other device that read it, in `end_s`."""

    source: int
    sinks: tuple[int, ...]
    """Tasks; on one device."""
    seconds: float
    """0 where it stays on its device."""


def end_s(tasks: Sequence[Task], moves: Sequence[Move], dram_bytes_per_s: float) -> float:
    """When the last of these segments ends.

    A segment starts when all that it reads is there and its device is idle, the first of those that wait in their
    order; a link carries one value at a time. Where the devices that work at once want more bytes a second than memory
    has, the part of each segment that waits for memory is stretched by the excess.
    """
    timeline = _Timeline(tasks, moves, dram_bytes_per_s)
    while timeline.step():
        pass
    return timeline.now


class _Timeline:
    """Progress of `end_s`, event by event."""

    def __init__(self, tasks: Sequence[Task], moves: Sequence[Move], dram_bytes_per_s: float) -> None:
        self.tasks, self.moves, self.limit = tasks, moves, dram_bytes_per_s
        self.now = 0.0
        self.missing = [0] * len(tasks)
        """Moves that each task still waits for."""
        for move in moves:
            for sink in move.sinks:
                self.missing[sink] += 1
        self.waiting = list(range(len(tasks)))
        self.running: dict[int, float] = {}
        """Task -> seconds alone that are left."""
        self.queues: dict[tuple[str, str], list[int]] = {}
        """Link -> moves; the first is under way."""
        self.left: dict[int, float] = {}
        """Move under way -> seconds that are left."""

    def step(self) -> bool:
        """On to the next event; False when all is done."""
        busy = {self.tasks[task].device for task in self.running}
        for task in list(self.waiting):
            device = self.tasks[task].device
            if not self.missing[task] and device not in busy:
                busy.add(device)
                self.waiting.remove(task)
                self.running[task] = self.tasks[task].load.seconds
        if not self.running and not self.left:
            if self.waiting:
                raise OptionError(f"segments {self.waiting} wait for each other.", "Give them in an order.")
            return False
        speed = self._speeds()
        ends = [left / speed[task] for task, left in self.running.items()]
        passed = min([*ends, *self.left.values()])
        self.now += passed
        self.running = {task: left - passed * speed[task] for task, left in self.running.items()}
        self.left = {move: left - passed for move, left in self.left.items()}
        tiny = 1e-12 * max(self.now, 1e-9)
        for task in [task for task, left in self.running.items() if left <= tiny]:
            self._finish(task)
        for move in [move for move, left in self.left.items() if left <= tiny]:
            self._arrive(move)
        return True

    def _speeds(self) -> dict[int, float]:
        """Task -> how fast it goes, 1 where memory suffices."""
        wanted = {}
        for task in self.running:
            load = self.tasks[task].load
            wanted[task] = load.bytes / load.seconds if load.seconds > 0 else 0.0
        excess = max(1.0, math.fsum(wanted.values()) / self.limit)
        speeds = {}
        for task in self.running:
            load = self.tasks[task].load
            share = load.memory_s / load.seconds if load.seconds > 0 else 0.0
            alone = len(self.running) == 1  # its own time alone counts what memory can give it
            speeds[task] = 1.0 if alone else 1.0 / (1.0 - share + share * excess)
        return speeds

    def _finish(self, task: int) -> None:
        del self.running[task]
        for number, move in enumerate(self.moves):
            if move.source != task:
                continue
            if move.seconds <= 0:
                self._deliver(move)
                continue
            link = (self.tasks[task].device, self.tasks[move.sinks[0]].device)
            queue = self.queues.setdefault(link, [])
            queue.append(number)
            if len(queue) == 1:
                self.left[number] = move.seconds

    def _arrive(self, number: int) -> None:
        move = self.moves[number]
        del self.left[number]
        queue = self.queues[self.tasks[move.source].device, self.tasks[move.sinks[0]].device]
        queue.pop(0)
        if queue:
            self.left[queue[0]] = self.moves[queue[0]].seconds
        self._deliver(move)

    def _deliver(self, move: Move) -> None:
        for sink in move.sinks:
            self.missing[sink] -= 1
