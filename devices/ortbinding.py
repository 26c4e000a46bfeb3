"""ONNX Runtime reading and writing where it is told: inputs and outputs bound by address.

`bind_input` with an address, not `bind_cpu_input`, which was seen to copy (1 MB: 87 us against 53). Binding costs about
5 us a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgert.devices.backend import Place, placed
from edgert.errors import EdgertError
from edgert.tensor import Array, Data

_DTYPES: Mapping[str, str] = {  # ONNX Runtime's name -> numpy's
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Port:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    """As the session says: a size, a symbol, or nothing."""


class Binding:
    """Runs a session with bound inputs and outputs. As reentrant as the session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs, outputs = _ports(session.get_inputs()), _ports(session.get_outputs())
        self._inputs = {port.name: port for port in inputs or ()}
        self._outputs = outputs or ()
        self._names = [value.name for value in session.get_outputs()]
        self._usable = inputs is not None and outputs is not None
        self._symbols_hold = True

    def run(self, inputs: Mapping[str, Data], place: Place) -> dict[str, Data]:
        """As `RunsInto.run_into`, with the library's own exceptions."""
        arrays = self._bindable(inputs)
        if arrays is None:
            return self._copied(inputs, place)
        shapes = [self._shape(port, arrays) for port in self._outputs]
        try:
            return self._bound(arrays, shapes, place)
        except EdgertError:  # of `place`
            raise
        except Exception:
            if all(isinstance(size, int) for port in self._outputs for size in port.shape):
                raise
            # Perhaps a symbol of the model's outputs does not hold what the same symbol of its inputs does.
            outputs = self._copied(inputs, place)
            self._symbols_hold = False
            return outputs

    def _bindable(self, inputs: Mapping[str, Data]) -> dict[str, Array] | None:
        """The inputs as arrays that can be bound; None when one cannot."""
        if not self._usable:
            return None
        arrays: dict[str, Array] = {}
        for name, value in inputs.items():
            port = self._inputs.get(name)
            if port is None or not isinstance(value, np.ndarray) or value.dtype != port.dtype or not value.size:
                return None
            if not value.flags.c_contiguous:
                return None
            arrays[name] = value
        return arrays

    def _shape(self, port: _Port, inputs: Mapping[str, Array]) -> tuple[int, ...] | None:
        """An output's shape, as far as it can be told from the inputs'."""
        sizes: list[int] = []
        for size in port.shape:
            known = size if isinstance(size, int) else self._size(size, inputs)
            if known is None:
                return None
            sizes.append(known)
        return tuple(sizes) if 0 not in sizes else None

    def _size(self, symbol: str | None, inputs: Mapping[str, Array]) -> int | None:
        if not symbol or not self._symbols_hold:
            return None
        for name, array in inputs.items():
            shape = self._inputs[name].shape
            if symbol in shape and len(shape) == array.ndim:
                return int(array.shape[shape.index(symbol)])
        return None

    def _bound(
        self, inputs: Mapping[str, Array], shapes: Sequence[tuple[int, ...] | None], place: Place
    ) -> dict[str, Data]:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.__array_interface__["data"][0])
        given: dict[str, Array] = {}
        for port, shape in zip(self._outputs, shapes, strict=True):
            if shape is None:
                binding.bind_output(port.name, "cpu")
            else:
                array = given[port.name] = place(port.name, port.dtype.name, shape)
                binding.bind_output(port.name, "cpu", 0, array.dtype, shape, array.__array_interface__["data"][0])
        self._session.run_with_iobinding(binding)
        if len(given) == len(self._outputs):
            return dict(given)
        made = zip(self._names, binding.get_outputs(), strict=True)
        return {name: given[name] if name in given else placed(name, value.numpy(), place) for name, value in made}

    def _copied(self, inputs: Mapping[str, Data], place: Place) -> dict[str, Data]:
        outputs = self._session.run(self._names, inputs)
        return {name: placed(name, value, place) for name, value in zip(self._names, outputs, strict=True)}


def _ports(values: Sequence[Any]) -> tuple[_Port, ...] | None:
    """The session's inputs or outputs; None when one is no tensor of numbers that numpy knows."""
    ports = []
    for value in values:
        dtype = _DTYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        if dtype is None:
            return None
        ports.append(_Port(value.name, np.dtype(dtype), tuple(value.shape)))
    return tuple(ports)
