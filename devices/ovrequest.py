"""A model that OpenVINO compiled, with the one request that runs it, and the arrays that go in and out.

`edgert.devices.openvino` prepares it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from edgert.devices.backend import Place, placed
from edgert.devices.words import failed
from edgert.errors import EdgertError
from edgert.profile import Target
from edgert.tensor import Array, Data, DType, numpy_dtype

DTYPES: Mapping[str, DType] = {  # OpenVINO's name -> ours; 4-bit types and smaller have no way in or out
    "boolean": "bool", "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e8m0": "float8_e8m0fnu", "string": "string",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
}  # fmt: skip
_CARRIED = {"bfloat16": np.uint16, "float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8, "float8_e8m0fnu": np.uint8}
_NARROWED = {"int64": (-(2**31), 2**31 - 1), "uint64": (0, 2**31 - 1), "uint32": (0, 2**31 - 1)}
"""Integers that OpenVINO's plugins compute in int32, and what of them fits."""
_SHAPES_KEPT = 4096
_LARGE_BYTES = 1 << 16
"""From here on an input is lent to OpenVINO; below, copying it is quicker than making a tensor of it."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the compiled model."""

    name: str
    """The model file's name for it."""
    index: int
    """OpenVINO's."""
    dtype: DType
    shape: tuple[int, ...] | None
    """None when it is not static."""

    @property
    def preset(self) -> bool:
        """Whether one tensor serves every run: the shape is static, and numpy has a view of it."""
        return self.shape is not None and self.dtype != "string"

    @property
    def small(self) -> bool:
        return self.preset and int(np.prod(self.shape or ())) * 8 <= _LARGE_BYTES


class Prepared:
    """A compiled model with one inference request.

    Tensors of static shape are set up once, because making them costs more than running a small model.
    """

    def __init__(
        self,
        compiled: Any,
        ports: tuple[list[Port], list[Port]],
        checks: tuple[Shapes, frozenset[str]],
        target: Target,
        ran_on: Mapping[str, int],
    ) -> None:
        """Take inputs and outputs as `ports`; `checks` are of shapes, and the names that the model asks for."""
        inputs, outputs = ports
        self.ran_on = ran_on
        self._request: Any = compiled.create_infer_request()
        self._stateful = bool(self._request.query_state())
        self._target = target
        self._fixed = {port.name: self._input_view(port) for port in inputs if port.small}
        self._others = [port for port in inputs if not port.small]
        self._shapes, self._known = checks
        self._narrowed = [(port.name, *_NARROWED[port.dtype]) for port in inputs if port.dtype in _NARROWED]
        self._reads = [(port.name, self._reader(port)) for port in outputs]
        self._lendable = [
            (port, self._request.get_output_tensor(port.index))
            for port in outputs
            if port.preset and port.dtype not in _CARRIED and 0 not in (port.shape or ())
        ]
        # Asked to share a text, OpenVINO warns that it copies it; where warnings are errors that ends in a crash.
        self._share = all(port.dtype != "string" for port in outputs)

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        try:
            self._infer(inputs)
            return {name: read() for name, read in self._reads}
        except Exception as error:  # as in `prepare`
            raise failed(self._target, error) from error

    def run_into(self, inputs: Mapping[str, Data], place: Place) -> dict[str, Data]:
        """As `edgert.devices.backend.RunsInto`."""
        import openvino

        request, lendable = self._request, self._lendable
        given: dict[str, Data] = {}
        try:
            for port, _ in lendable:
                array = given[port.name] = place(port.name, port.dtype, port.shape or ())
                request.set_output_tensor(port.index, openvino.Tensor(array, shared_memory=True))
            self._infer({name: _lent(value) for name, value in inputs.items()})
            return {name: given[name] if name in given else placed(name, read(), place) for name, read in self._reads}
        except EdgertError:  # of `place`
            raise
        except Exception as error:  # as in `prepare`
            raise failed(self._target, error) from error
        finally:
            # `run` reads the request's own tensors; and who gave the memory may give it to somebody else.
            for port, own in lendable[: len(given)]:
                request.set_output_tensor(port.index, own)

    def _infer(self, inputs: Mapping[str, Data]) -> None:
        if self._shapes.open:
            self._shapes.check(inputs)
        for name, low, high in self._narrowed:
            _check_fits(name, cast("Array", inputs[name]), low, high)
        for name, view in self._fixed.items():
            _copy(name, cast("Array", inputs[name]), view)
        for port in self._others:
            self._set(port, cast("Array", inputs[port.name]))
        if len(inputs) > len(self._known):
            _check_known(inputs, self._known)
        if self._stateful:
            self._request.reset_state()  # variables start at zero: runs do not depend on one another
        self._request.infer(share_outputs=self._share)

    def close(self) -> None:
        self._fixed, self._others, self._reads, self._narrowed, self._lendable = {}, [], [], [], []
        self._shapes.open, self._request = [], _Closed()

    def _input_view(self, port: Port) -> Array:
        return _viewed(self._request.get_input_tensor(port.index).data, port.dtype)

    def _set(self, port: Port, value: Array) -> None:
        """Give the request an input: lent where OpenVINO can read it in place, else copied."""
        import openvino

        if port.dtype == "string":
            tensor = openvino.Tensor(_text(port.name, value), shared_memory=False)
        elif port.dtype in _CARRIED or not value.flags.writeable:
            # OpenVINO refuses to borrow read-only memory, and knows ml_dtypes' types only by name
            element = next(name for name, dtype in DTYPES.items() if dtype == port.dtype)
            tensor = openvino.Tensor(getattr(openvino.Type, element), openvino.Shape(list(value.shape)))
            if value.size:
                _viewed(tensor.data, port.dtype)[...] = value
        else:
            tensor = openvino.Tensor(value, shared_memory=True)
        self._request.set_input_tensor(port.index, tensor)

    def _reader(self, port: Port) -> Callable[[], Array]:
        """A function that copies the output out: what a caller gets is never written again."""
        request, index, dtype = self._request, port.index, port.dtype
        if port.preset:
            # asked for once: the request keeps its output tensors when shapes are static
            return cast("Callable[[], Array]", _viewed(request.get_output_tensor(index).data, dtype).copy)
        if dtype == "string":
            return lambda: np.array(request.get_output_tensor(index).str_data, dtype=object)
        return lambda: _viewed(request.get_output_tensor(index).data, dtype).copy()


class Shapes:
    """Checks each new combination of input shapes against the whole model before it runs.

    OpenVINO does not: a product of matrices that do not fit reads beyond their ends and returns what lies there.
    """

    def __init__(self, model: Any, inputs: list[Port]) -> None:
        self.open = [port for port in inputs if port.shape is None]
        self._model = model if self.open else None
        self._fitting: set[tuple[tuple[int, ...], ...]] = set()

    def check(self, inputs: Mapping[str, Data]) -> None:
        shapes = tuple(cast("Array", inputs[port.name]).shape for port in self.open)
        if shapes in self._fitting:
            return
        copy = cast("Any", self._model).clone()  # which shares the weights
        copy.reshape({port.index: list(shape) for port, shape in zip(self.open, shapes, strict=True)})
        if len(self._fitting) >= _SHAPES_KEPT:
            self._fitting.clear()
        self._fitting.add(shapes)


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("it was closed")


def _viewed(data: Array, dtype: DType) -> Array:
    """OpenVINO's array as the type that it is: bfloat16 and float8 come under a carrier's name."""
    return data.view(_CARRIED[dtype]).view(numpy_dtype(dtype)) if dtype in _CARRIED else data


def _copy(name: str, value: Array, view: Array) -> None:
    if value.shape != view.shape:  # numpy would broadcast
        raise ValueError(f"input {name!r} has shape {value.shape}, prepared for {view.shape}")
    np.copyto(view, value, casting="no")


def _lent(value: Data) -> Data:
    """An array that OpenVINO will borrow: the same memory, said to be writable. OpenVINO does not write to inputs that
    were set; in a slot of another process, which is mapped read-only, it could not.
    """
    if not isinstance(value, np.ndarray) or value.flags.writeable or not value.size or value.dtype.hasobject:
        return value
    memory = (ctypes.c_char * value.nbytes).from_address(value.__array_interface__["data"][0])
    return cast("Array", np.frombuffer(cast("Any", memory), value.dtype)).reshape(value.shape)


def _check_fits(name: str, value: Array, low: int, high: int) -> None:
    if value.size and (value.max() > high or value.min() < low):
        raise OverflowError(f"input {name!r} leaves the range of int32, in which OpenVINO computes")


def _check_known(inputs: Mapping[str, Data], known: frozenset[str]) -> None:
    given = ", ".join(repr(name) for name in inputs if name not in known)
    raise ValueError(f"input {given} has a default in the file, which OpenVINO took for a constant")


def _text(name: str, value: Array) -> Array:
    """Strings as numpy's own text type, the only one that OpenVINO takes; it cannot end in NUL."""
    texts = value.astype(str) if value.size else np.zeros(value.shape, "U1")
    if any(str(text).endswith("\0") for text in value.flat):
        raise ValueError(f"a string in input {name!r} ends with NUL, which OpenVINO would drop")
    return texts
