"""A backend for edgert in a package of its own: it borrows onnx's evaluator, and says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgert.devices.backend import Runnable, Source
from edgert.errors import PrepareRefused, RunFailed
from edgert.machine import Device, Reach
from edgert.profile import Target
from edgert.tensor import Data


class Backend:
    """What `edgert.devices.backend.Backend` asks for, and no more."""

    name = "example"
    reentrant = True

    def version(self) -> str:
        return "1.0"

    def reaches(self, devices: Sequence[Device]) -> tuple[Reach, ...]:
        return tuple(Reach(self.name, device.id) for device in devices if device.kind == "cpu")

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        if source.format != "onnx" or variant:
            return ()
        return tuple(Target(self.name, device.id, source.precision, count) for count in threads)

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        from onnx.reference import ReferenceEvaluator

        try:
            return Prepared(ReferenceEvaluator(str(source.path)), source, target, device)
        except (NotImplementedError, RuntimeError) as error:
            raise PrepareRefused(f"{target} refuses the model: {error}.", target=str(target)) from error


class Prepared:
    def __init__(self, evaluator: object, source: Source, target: Target, device: Device) -> None:
        self.ran_on: Mapping[str, int] = {device.id: 0}
        self._evaluator = evaluator
        self._names = [value.name for value in source.outputs]
        self._target = target

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        try:
            outputs = self._evaluator.run(self._names, dict(inputs))  # type: ignore[attr-defined]
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunFailed(f"{self._target} failed while it ran: {error}.") from error
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        self._evaluator = None
