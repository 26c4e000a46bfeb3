"""Segments on simulated devices as one runnable in virtual time: their answers one after another, their time as the
devices would overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgert.devices import backend
from edgert.devices.backend import Runnable, Source
from edgert.devices.contention import Move, Task, end_s
from edgert.devices.simulated import VirtualPrepared, size_bytes
from edgert.devices.simulation import Paper, transfer_s
from edgert.devices.words import in_virtual_time
from edgert.errors import EdgertError, OptionError
from edgert.execution.segments import Relay, Step
from edgert.machine import Device
from edgert.profile import Target
from edgert.tensor import Data

__all__ = ["HOST", "VirtualChain", "all_in_virtual_time"]

_AHEAD = 16
HOST = "cpu:0"
"""Whose memory the links of devices lead to."""


def all_in_virtual_time(devices: Sequence[Device]) -> bool:
    """Whether these devices share a virtual clock.

    Raises:
        OptionError: some do and some do not: no clock tells what they take together.
    """
    virtual = {device.id: in_virtual_time(device) for device in devices}
    if len(set(virtual.values())) > 1:
        names = ", ".join(name for name, found in virtual.items() if found)
        raise OptionError(
            f"{names} run in virtual time and other devices of the plan do not.",
            "Describe every device of the machine with time = 'virtual', or none.",
        )
    return all(virtual.values()) and bool(virtual)


@dataclass(slots=True)
class _Part:
    target: Target
    device: Device
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    prepared: VirtualPrepared
    sizes: dict[str, float] = field(default_factory=dict)
    """Bytes of what it made last."""
    feed: Mapping[str, Data] = field(default_factory=dict)
    """What it read last."""


class VirtualChain:
    """A `Runnable` of several, and `Virtual`.

    A segment starts when what it reads has crossed its link and its device is idle. The request's inputs are where
    they are read, and its outputs stay where they are made, as where a target is timed alone.
    """

    def __init__(
        self, segments: Sequence[tuple[Source, Target, Device]], outputs: Sequence[str], cache: Path | None
    ) -> None:
        """Args:
        segments: in an order in which they can run; each device is in virtual time.
        outputs: the model's, by name.
        cache: as in `Backend.prepare`.

        Raises:
            PrepareRefused, MissingPackage: as `Backend.prepare`.
        """
        self._parts: list[_Part] = []
        try:
            for source, target, device in segments:
                names = [tuple(value.name for value in values) for values in (source.inputs, source.outputs)]
                made = backend(target.backend).prepare(source, target, device, cache)
                self._parts.append(_Part(target, device, names[0], names[1], _virtual(made, target)))
        except EdgertError:
            self.close()
            raise
        self.clock = self._parts[0].prepared.clock
        steps = [Step(part.target, part.inputs, part.outputs, _answer(part)) for part in self._parts]
        self._relay = Relay(steps, outputs)
        limits = [Paper.of(part.device, part.target.precision).dram_bytes_per_s for part in self._parts]
        self._dram_bytes_per_s = min(limits)
        counts: Counter[str] = Counter()
        for part in self._parts:
            counts.update(part.prepared.ran_on)
        self.ran_on: Mapping[str, int] = counts

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        answers = self._relay.run(inputs)
        self.clock.wait(self._length_s())
        return answers

    def pass_run(self, inputs: Mapping[str, Data]) -> None:
        if not all(part.sizes for part in self._parts):  # how much crosses is known once it crossed
            self._relay.run(inputs)
        self.clock.wait(self._length_s())

    def items(self, inputs: Mapping[str, Data], seconds: float) -> float:
        """How many requests end in `seconds` while others wait behind them, each segment of each its device's turn.

        Counted between the end of `_AHEAD` requests that are there at once and that of twice as many, so that neither
        the first one's way through nor the last one's is in it.
        """
        if not all(part.sizes for part in self._parts):
            self._relay.run(inputs)
        few_s, many_s = (self._length_s(count) for count in (_AHEAD, 2 * _AHEAD))
        self.clock.wait(seconds)
        return seconds * _AHEAD / (many_s - few_s)

    def close(self) -> None:
        for part in self._parts:
            with suppress(EdgertError):  # it is gone, which is what was wanted
                part.prepared.close()
        self._parts = []

    def _length_s(self, requests: int = 1) -> float:
        """When the last of so many equal requests ends that begin at once, the first of them first."""
        tasks = [Task(part.device.id, part.prepared.load(part.feed)) for _ in range(requests) for part in self._parts]
        one = self._moves()
        moves = [
            Move(move.source + first, tuple(sink + first for sink in move.sinks), move.seconds)
            for first in range(0, len(tasks), len(self._parts))
            for move in one
        ]
        return end_s(tasks, moves, self._dram_bytes_per_s)

    def _moves(self) -> list[Move]:
        """Each value's way to each device that reads it."""
        makers = {name: number for number, part in enumerate(self._parts) for name in part.outputs}
        readers: dict[tuple[str, str], list[int]] = {}
        for number, part in enumerate(self._parts):
            for name in part.inputs:
                if name in makers:
                    readers.setdefault((name, part.device.id), []).append(number)
        moves = []
        for (name, _), sinks in readers.items():
            maker = self._parts[makers[name]]
            seconds = _way_s(maker.device, self._parts[sinks[0]].device, maker.sizes[name])
            moves.append(Move(makers[name], tuple(sinks), seconds))
        return moves


def _answer(part: _Part) -> Callable[[Mapping[str, Data]], dict[str, Data]]:
    def run(feed: Mapping[str, Data]) -> dict[str, Data]:
        made = part.prepared.answer(feed)
        part.feed = feed
        part.sizes = {name: float(size_bytes(value)) for name, value in made.items()}
        return made

    return run


def _virtual(made: Runnable, target: Target) -> VirtualPrepared:
    if not isinstance(made, VirtualPrepared):
        raise OptionError(f"{target} does not run in virtual time.", "Describe its device with time = 'virtual'.")
    return made


def _way_s(source: Device, sink: Device, size: float) -> float:
    """From memory to memory, through the host's."""
    if source.id == sink.id:
        return 0.0
    return sum(transfer_s(device, size) for device in (source, sink) if device.id != HOST)
