"""OpenVINO: CPU, and Intel's GPUs and NPUs; reads ONNX and TFLite.

Left alone it computes in bfloat16 where the CPU can, quantises activations on the fly, pins threads and reports its
use to its makers: each of these is settled here, and the precision that it settled on is read back.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgert.devices.backend import Place, Runnable, Source, placed
from edgert.devices.words import SIMULATED, failed, installed, refused, unusable
from edgert.errors import EdgertError, MissingPackage, PrepareRefused, UnknownTarget
from edgert.graph import Value
from edgert.machine import Device, Reach
from edgert.profile import Precision, Target
from edgert.tensor import Array, Data, DType, numpy_dtype

_REMEDY = 'pip install "edgert[openvino]"'
_DRIVERS = {
    "gpu": "Install Intel's compute runtime (package intel-opencl-icd) and join the group render.",
    "npu": "Install Intel's NPU driver (linux-npu-driver) and join the group render.",
}

# Below the model's own precision: (device kind, precision) -> features of which the device must have one; () for none.
_LOWER: Mapping[tuple[str, Precision], tuple[str, ...]] = {
    ("cpu", "bf16"): ("avx512_bf16", "amx_bf16"),
    ("cpu", "f16"): ("avx512_fp16", "amx_fp16", "asimdhp"),
    ("gpu", "f16"): (),
    ("npu", "f16"): (),
}

_DTYPES: Mapping[str, DType] = {  # OpenVINO's name -> ours; 4-bit types and smaller have no way in or out
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


class Backend:
    """OpenVINO; see `edgert.devices.backend.Backend`."""

    name = "openvino"
    reentrant = False
    """A Runnable has one inference request with tensors of its own."""

    def version(self) -> str:
        return installed("openvino", ("openvino",), _REMEDY)

    def reaches(self, devices: Sequence[Device]) -> tuple[Reach, ...]:
        available = _core().available_devices
        found = []
        for device in devices:
            if _name(device, available):
                found.append(Reach(self.name, device.id))
            elif _is_intels(device):
                detail = f"OpenVINO sees no {device.kind.upper()}. {_DRIVERS[device.kind]}"
                found.append(Reach(self.name, device.id, "", "failed", detail))
        return tuple(found)

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        if variant:
            raise UnknownTarget(f"openvino has no variant {variant!r}.", "Leave it out.")
        counts = tuple(threads) if device.kind == "cpu" else (0,)
        return tuple(
            Target(self.name, device.id, precision, count)
            for precision in _precisions(source.precision, device)
            for count in counts
        )

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        core = _core()
        name = _name(device, core.available_devices)
        if not name:
            reason = f"OpenVINO sees no {device.kind.upper()} for {device.id}."
            raise PrepareRefused(reason, _DRIVERS.get(device.kind, ""), target=str(target))
        for value in (*source.inputs, *source.outputs):
            if value.kind != "tensor":
                raise refused(target, f"{value.name!r} is a {value.kind}, OpenVINO passes tensors only")
        try:
            model, compiled = _compiled(core, source, name, _settings(target, device, cache))
            ports = _ports(source.inputs, model.inputs), _ports(source.outputs, model.outputs)
            _check_hint(compiled, target)
            nodes = compiled.get_runtime_model().get_ops()
            _check_text(nodes)
            shapes = Shapes(model, ports[0])
            names = frozenset(value.name for value in source.inputs)
            return Prepared(compiled, ports, (shapes, names), target, _ran_on(compiled, nodes, name, device))
        except EdgertError:
            raise
        except Exception as error:  # the bindings raise RuntimeError, ValueError, TypeError and types of their own
            raise refused(target, error) from error


@dataclass(frozen=True, slots=True)
class _Port:
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
        ports: tuple[list[_Port], list[_Port]],
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

    def _input_view(self, port: _Port) -> Array:
        return _viewed(self._request.get_input_tensor(port.index).data, port.dtype)

    def _set(self, port: _Port, value: Array) -> None:
        """Give the request an input: lent where OpenVINO can read it in place, else copied."""
        import openvino

        if port.dtype == "string":
            tensor = openvino.Tensor(_text(port.name, value), shared_memory=False)
        elif port.dtype in _CARRIED or not value.flags.writeable:
            # OpenVINO refuses to borrow read-only memory, and knows ml_dtypes' types only by name
            element = next(name for name, dtype in _DTYPES.items() if dtype == port.dtype)
            tensor = openvino.Tensor(getattr(openvino.Type, element), openvino.Shape(list(value.shape)))
            if value.size:
                _viewed(tensor.data, port.dtype)[...] = value
        else:
            tensor = openvino.Tensor(value, shared_memory=True)
        self._request.set_input_tensor(port.index, tensor)

    def _reader(self, port: _Port) -> Callable[[], Array]:
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

    def __init__(self, model: Any, inputs: list[_Port]) -> None:
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


_importing = threading.Lock()


@functools.cache
def _core() -> Any:
    with _importing:
        silenced = "openvino_telemetry" not in sys.modules
        if silenced:
            # Importing openvino sends an event to its makers and writes files into the home folder unless its
            # telemetry package is missing; None in sys.modules makes it so.
            sys.modules["openvino_telemetry"] = cast("Any", None)
        try:
            return importlib.import_module("openvino").Core()
        except ModuleNotFoundError as error:
            raise MissingPackage("package openvino is not installed.", _REMEDY, package="openvino") from error
        except Exception as error:  # a broken installation fails in any way
            raise unusable("openvino", error, _REMEDY) from error
        finally:
            if silenced:
                del sys.modules["openvino_telemetry"]


def _is_intels(device: Device) -> bool:
    return device.kind != "cpu" and "intel" in f"{device.name} {device.driver}".lower() and not device.software


def _name(device: Device, available: Sequence[str]) -> str:
    """OpenVINO's name of a device: 'CPU', 'GPU.1', 'NPU'; '' when it does not reach it."""
    if device.driver == SIMULATED:
        return ""
    if device.kind == "cpu":
        return "CPU" if "CPU" in available else ""
    kin = [name for name in available if name.partition(".")[0] == device.kind.upper()]
    index = int(device.attributes.get("index", device.id.partition(":")[2]))
    return kin[index] if _is_intels(device) and index < len(kin) else ""


def _precisions(own: Precision, device: Device) -> tuple[Precision, ...]:
    """What OpenVINO can be told to use: float32 (with the model's integers as they are), and what the device has."""
    full: tuple[Precision, ...] = ("i8" if own == "i8" else "f32",)
    if device.kind == "npu":
        full = ()  # it has no float32
    lower: tuple[Precision, ...] = ("bf16", "f16")
    return full + tuple(precision for precision in lower if _has(device, precision))


def _has(device: Device, precision: Precision) -> bool:
    wanted = _LOWER.get((device.kind, precision))
    return wanted is not None and (not wanted or any(feature in device.features for feature in wanted))


def _hint(precision: Precision) -> str:
    return "f32" if precision == "i8" else precision


def _settings(target: Target, device: Device, cache: Path | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _hint(target.precision),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    if device.kind != "npu":
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # else activations beside compressed weights become int8
    if device.kind == "cpu":
        settings |= {"INFERENCE_NUM_THREADS": target.threads or 1, "ENABLE_CPU_PINNING": False}
        if _hint(target.precision) == "f32":
            settings["KV_CACHE_PRECISION"] = "f32"  # else uint8
    if cache is not None:
        # OpenVINO's own key leaves the number of threads out, and what was compiled for two runs slower on one: a
        # small DLRM 31 us instead of 22.
        settings["CACHE_DIR"] = str(cache / f"openvino-{target.threads}t")
    return settings


def _compiled(core: Any, source: Source, name: str, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """What has the model's inputs and outputs, and the compiled model.

    With a cache and static shapes OpenVINO is given the file alone: it then recognises the file and need not parse it,
    which is half the time of a second preparation.
    """
    if "CACHE_DIR" in settings and all(
        isinstance(size, int) for value in source.inputs for size in value.shape or ("",)
    ):
        compiled = core.compile_model(str(source.path), name, settings)
        if not any(port.get_partial_shape().is_dynamic for port in compiled.inputs):
            return compiled, compiled
    model = core.read_model(str(source.path))
    _settle_shapes(model, source.inputs)
    return model, core.compile_model(model, name, settings)


def _check_text(nodes: Sequence[Any]) -> None:
    """Refuse what copies text with OpenVINO's Identity: it copies the pointers, frees them twice, and the process ends.

    Seen with 2026.4; the other nodes that move text are sound.
    """
    for node in nodes:
        if _layer(node) == "Identity" and node.get_output_element_type(0).to_string() == "string":
            raise ValueError(f"node {node.get_friendly_name()!r} copies text, which OpenVINO frees twice")


def _check_hint(compiled: Any, target: Target) -> None:
    got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if got != _hint(target.precision):
        raise refused(target, f"asked for {_hint(target.precision)}, OpenVINO settled on {got}")


def _settle_shapes(model: Any, values: Sequence[Value]) -> None:
    """Give inputs that OpenVINO left open the sizes that the file states: its tensors can then be set up once."""
    stated = {value.name: value.shape for value in values}
    sizes = {}
    for port in model.inputs:
        shape = next((stated[name] for name in port.get_names() if name in stated), None)
        if port.get_partial_shape().is_dynamic and shape and all(isinstance(size, int) for size in shape):
            sizes[port] = list(shape)
    if sizes:
        model.reshape(sizes)


def _ports(values: Sequence[Value], found: Sequence[Any]) -> list[_Port]:
    """OpenVINO's inputs or outputs under the model file's names, checked against the file.

    A name that is missing: an output must be found (by position when all are there); an input may have become a
    constant, or be needless.
    """
    indices = {name: index for index, port in enumerate(found) for name in port.get_names()}
    ports = []
    for position, value in enumerate(values):
        index = indices.get(value.name, position if len(found) == len(values) else None)
        if index is not None:
            ports.append(_port(value, index, found[index]))
        elif len(found) >= len(values):
            raise ValueError(f"{value.name!r} is not among OpenVINO's {sorted(indices)}")
    if len({port.index for port in ports}) != len(found):
        raise ValueError(f"OpenVINO has {sorted(indices)} where the model has {[value.name for value in values]}")
    return ports


def _port(value: Value, index: int, found: Any) -> _Port:
    element = found.get_element_type().to_string()
    dtype = _DTYPES.get(element)
    if dtype is None:
        raise ValueError(f"{value.name!r} has type {element}, which OpenVINO does not pass in or out")
    if value.dtype not in (None, dtype):
        raise ValueError(f"{value.name!r} is {value.dtype}, OpenVINO makes it {dtype}")
    partial = found.get_partial_shape()
    shape = tuple(partial.to_shape()) if partial.is_static else None
    declared = value.shape
    if shape is not None and declared is not None:
        fits = len(shape) == len(declared) and all(
            isinstance(want, str) or want == size for want, size in zip(declared, shape, strict=True)
        )
        if not fits:
            raise ValueError(f"{value.name!r} has shape {declared}, OpenVINO makes it {shape}")
    return _Port(value.name, index, dtype, shape)


def _ran_on(compiled: Any, nodes: Sequence[Any], name: str, device: Device) -> Mapping[str, int]:
    """Device id -> nodes after OpenVINO's fusions; refused when another device takes part."""
    used = list(compiled.get_property("EXECUTION_DEVICES"))
    if any(each.strip("()").partition(".")[0] != name.partition(".")[0] for each in used):
        raise ValueError(f"it would run on {', '.join(used)}, not on {name} alone")
    passive = ("Input", "Output", "Const", "Parameter", "Result", "Constant")
    return {device.id: sum(_layer(node) not in passive for node in nodes)}


def _layer(node: Any) -> str:
    """Kind of a node of a runtime model."""
    kind = node.get_rt_info()["layerType"]
    return str(getattr(kind, "value", kind))


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
