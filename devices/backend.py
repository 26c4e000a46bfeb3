"""What a backend is: a library that prepares models and runs them on devices.

One module a backend, each with a class that satisfies `Backend`; `edgert.devices.BACKENDS` names them, and the
entry point group `edgert.backends` adds those of other packages. Nothing here imports a vendor library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from edgert.formats.artefacts import Artefact
from edgert.graph import Format, Value
from edgert.machine import Device, Reach
from edgert.profile import Precision, Target
from edgert.tensor import Array, Data, DType, dtype_of
from edgert.transport.clock import Clock


@dataclass(frozen=True, slots=True)
class Source:
    """A model file to prepare."""

    path: Path
    """Absolute. ONNX external data lies beside it."""
    format: Format
    inputs: tuple[Value, ...]
    """The model's signature as its file says it; names and order that `Runnable` must keep."""
    outputs: tuple[Value, ...]
    precision: Precision
    """The model's own: 'i8' when it carries quantised arithmetic, else that of its floats."""
    artefact: Artefact | None = None
    """What was compiled from it, where there is such a file; see `on`."""

    def on(self, target: Target) -> Source:
        """What a target prepares: the artefact where it reads that, else the model."""
        if self.artefact is None:
            return self
        path = self.artefact.path if self.artefact.read_on(target) else self.path
        return replace(self, path=path, artefact=None)


class Place(Protocol):
    """Gives the memory that an output is to be written to."""

    def __call__(self, name: str, dtype: DType, shape: tuple[int, ...]) -> Array:
        """A C-contiguous, writable array of just that type and shape. When it is asked again for a name, the array that
        it gave before is not used.
        """
        ...


@runtime_checkable
class RunsInto(Protocol):
    """A Runnable that can write its outputs to memory of the caller's choice, and reads inputs where they lie, also
    read-only ones.
    """

    def run_into(self, inputs: Mapping[str, Data], place: Place) -> dict[str, Data]:
        """As `Runnable.run`, but an output for which `place` was asked is the array that it gave. It is asked for
        arrays of numbers only: text, sequences, maps and absent values come as from `run`.
        """
        ...


class Runnable(Protocol):
    """A model or segment prepared on a target. `run` may be called from one thread at a time; `Backend.reentrant` says
    whether from several.
    """

    ran_on: Mapping[str, int]
    """What really runs where, read back from the library: device id (or 'cpu:0' for what fell back) -> number of
    nodes; a count of 0 means that the library does not count."""

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        """One inference. Inputs are checked already: every name that the model needs, right dtype, C-contiguous.

        Returns arrays that belong to the caller, by output name: no later call changes them.

        Raises:
            RunFailed: the library failed; its words are in the message.
        """
        ...

    def close(self) -> None:
        """Release what the library holds; closing twice is harmless."""
        ...


@runtime_checkable
class Virtual(Protocol):
    """A runnable in virtual time: `clock` tells what its runs take, whatever computing the answers takes here."""

    clock: Clock

    def pass_run(self, inputs: Mapping[str, Data]) -> None:
        """Let the time of one run pass on `clock`, without an answer."""
        ...


@runtime_checkable
class Signs(Protocol):
    """A backend that can tell a model's signature by itself, for formats whose reader may be missing."""

    def signature(self, path: Path) -> tuple[tuple[Value, ...], tuple[Value, ...], Precision]:
        """Inputs, outputs and own precision of a model file.

        Raises:
            PrepareRefused: the library does not take the file.
            MissingPackage: the library is not there.
        """
        ...


class Backend(Protocol):
    """One library."""

    name: str
    reentrant: bool
    """Whether one Runnable may run in several threads at once."""

    def version(self) -> str:
        """Version of the library, without importing more than needed.

        Raises:
            MissingPackage: it is not installed or does not load; with the command that would fix it.
        """
        ...

    def reaches(self, devices: Sequence[Device]) -> tuple[Reach, ...]:
        """Which of the devices that discovery found it can drive, and by which variant; health is 'untested'.

        May start the library (so it is called in a child process). A device that it should drive and does not is a
        Reach with health 'failed' and the reason.
        """
        ...

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        """The targets worth trying for a model on a device: every precision that the backend can be told to use there,
        for each number of threads (where threads mean something). Empty when it cannot read the format.
        Does not import the library.
        """
        ...

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        """A model made ready on a target, all of it: what would fall back to another device is refused.

        Args:
            source: the model file.
            target: one of `targets`.
            device: `target.device`, with its cores.
            cache: folder where the library may keep compiled models; None for nowhere.

        Raises:
            PrepareRefused: the library will not run this model on this target; its words are in the message.
            MissingPackage: the library is not there.
        """
        ...


def into(runnable: Runnable) -> Callable[[Mapping[str, Data], Place], dict[str, Data]]:
    """The runnable's `run_into`; for one that has none its `run` and a copy of each array."""
    if isinstance(runnable, RunsInto):
        return runnable.run_into

    def run_and_copy(inputs: Mapping[str, Data], place: Place) -> dict[str, Data]:
        return {name: placed(name, value, place) for name, value in runnable.run(inputs).items()}

    return run_and_copy


def placed(name: str, value: Data, place: Place) -> Data:
    """An array of numbers, copied to where it is to lie; anything else as it is."""
    if not isinstance(value, np.ndarray) or dtype_of(value) == "string":
        return value
    array = place(name, dtype_of(value), value.shape)
    np.copyto(array, value, casting="no")
    return array
