"""LiteRT: TFLite models on the CPU, by ai-edge-litert or its older form tflite-runtime (the one for 32-bit ARM).

A model's variables start at zero in every run: a request may be answered by any of several instances, so nothing may
be carried from one to the next (resource variables, which the library cannot reset, are the exception; they belong
to the one Runnable).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgert.devices.backend import Place, Runnable, Source, placed
from edgert.devices.quiet import stderr_without
from edgert.devices.words import SIMULATED, failed, installed, refused, unusable
from edgert.errors import EdgertError, MissingPackage, PrepareRefused, UnknownTarget
from edgert.graph import Quantization, Value
from edgert.machine import Device, Reach
from edgert.profile import Precision, Target
from edgert.tensor import Array, Data

_LOG = logging.getLogger(__name__)
_REMEDY = 'pip install "edgert[tflite]"'
_OLD_REMEDY = 'pip install ai-edge-litert, or where it has no wheel: pip install "numpy<2"'

_PACKAGES: Mapping[str, str] = {  # module -> distribution, preferred first
    "ai_edge_litert": "ai-edge-litert",
    "tflite_runtime": "tflite-runtime",
}
_RESOLVERS: Mapping[str, str] = {  # variant -> member of OpResolverType
    "": "AUTO",  # with XNNPACK, the library's default
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "ref": "BUILTIN_REF",
    "mixed": "AUTO",
}
_WORTH_TRYING = ("", "builtin")
"""`ref`, the kernels that others are checked against, is some fifty times slower: for who names it. `mixed` runs the
operators that have no integer kernel in floats: tried only where the others refused a quantised model.
"""

MIXED = "mixed"
_AT_FAULT = re.compile(r"Node number (\d+) \([^)]*\) failed to (prepare|invoke)")
_ABOUT_TYPES = re.compile(r"\b(U?INT8|INT16)\b|unsupported|not supported", re.IGNORECASE)
"""A kernel may also refuse values, such as the root of a negative number: that is no lack of a kernel."""
_CHATTER = b"INFO: Created TensorFlow Lite XNNPACK delegate"
"""What it says once a process when it makes an interpreter with XNNPACK."""
_first = threading.Lock()
"""Held by who makes the process's first interpreter with XNNPACK; never released, for there is only one first."""


class Backend:
    """LiteRT; see `edgert.devices.backend.Backend`."""

    name = "litert"
    reentrant = False

    def version(self) -> str:
        module, distribution = _package()
        found = installed(module, (distribution,), _REMEDY)
        if module == "tflite_runtime":
            # Built against numpy 1: with a later one its import succeeds and making an interpreter crashes.
            numpy_version = version("numpy")
            if int(numpy_version.partition(".")[0]) > 1:
                reason = RuntimeError(f"it needs numpy before 2, here is {numpy_version}")
                raise unusable(distribution, reason, _OLD_REMEDY)
        return found

    def reaches(self, devices: Sequence[Device]) -> tuple[Reach, ...]:
        _interpreter_module()
        return tuple(
            Reach(self.name, device.id, variant)
            for device in devices
            if device.kind == "cpu" and device.driver != SIMULATED
            for variant in _WORTH_TRYING
        )

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        _resolver(variant)
        if source.format != "tflite" or device.kind != "cpu":
            return ()
        return tuple(Target(self.name, device.id, source.precision, count, variant) for count in threads)

    def signature(self, path: Path) -> tuple[tuple[Value, ...], tuple[Value, ...], Precision]:
        """Inputs, outputs and own precision as the interpreter has them: quantised when any of its tensors is.

        Raises:
            PrepareRefused: LiteRT does not take the file.
            MissingPackage: it is not installed.
        """
        library = _interpreter_module()
        try:
            interpreter = library.Interpreter(str(path), num_threads=1)
            inputs = tuple(_value(detail) for detail in interpreter.get_input_details())
            outputs = tuple(_value(detail) for detail in interpreter.get_output_details())
            quantised = any(
                len(detail["quantization_parameters"]["scales"]) for detail in interpreter.get_tensor_details()
            )
        except Exception as error:  # as in `prepare`
            raise PrepareRefused(
                f"{path}: LiteRT refuses it ({error}).", "Export or download it again.", target=self.name
            ) from error
        return inputs, outputs, "i8" if quantised else "f32"

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        library = _interpreter_module()
        if target.precision != source.precision:
            raise refused(target, f"LiteRT computes at the model's own precision, {source.precision}")
        try:
            with _quietly(target.variant):
                interpreter = (_mixed if target.variant == MIXED else _whole)(library, source, target)
            inputs = _ports(source.inputs, interpreter.get_input_details())
            outputs = _ports(source.outputs, interpreter.get_output_details())
        except SystemError as error:  # how tflite-runtime fails beside a numpy that it was not built for
            raise unusable(_package()[1], error, _OLD_REMEDY) from error
        except EdgertError:  # of the reader, for `mixed`
            raise
        except Exception as error:  # the bindings raise ValueError, RuntimeError and what numpy raises
            raise refused(target, error) from error
        return Prepared(interpreter, inputs, outputs, target, {device.id: _count(interpreter, target)})


def _whole(library: Any, source: Source, target: Target, content: bytes | None = None) -> Any:
    """An interpreter with its tensors, for the source's file or for `content` in its place."""
    interpreter = library.Interpreter(
        None if content is not None else str(source.path),
        model_content=content,
        num_threads=target.threads or 1,
        experimental_op_resolver_type=library.OpResolverType[_resolver(target.variant)],
    )
    interpreter.allocate_tensors()
    return interpreter


def _mixed(library: Any, source: Source, target: Target) -> Any:
    """An interpreter for the model with each operator in floats whose integer kernel is missing.

    Which ones these are the library says itself, one at a time: when it prepares its tensors, or in a first run.

    Raises:
        PrepareRefused: every operator has its kernel, or one fails in floats too.
        MissingPackage: the schema of .tflite files is not installed.
        ModelUnsupported: a value beside such an operator cannot be converted.
    """
    from edgert.formats import open_model
    from edgert.formats.tflite import TfliteFile
    from edgert.formats.tflite_float import float_nodes

    file = open_model(source.path)
    if not isinstance(file, TfliteFile):
        raise refused(target, "only a .tflite has operators of one arithmetic each")
    names = {index: name for name, index in file.operators.items()}
    floated: list[str] = []
    content = None
    origin: tuple[int | None, ...] = tuple(range(len(names)))
    while True:
        try:
            interpreter = _whole(library, source, target, content)
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            index = _without_kernel(str(error))
            place = origin[index] if index is not None and index < len(origin) else None
            if place is None or names[place] in floated:
                raise
            floated.append(names[place])
            content, origin = float_nodes(file, floated)
            continue
        if not floated:
            raise refused(target, "every operator has an integer kernel")
        _LOG.info("%s: %s run in floats, for want of integer kernels", source.path.name, ", ".join(floated))
        return interpreter


def _without_kernel(words: str) -> int | None:
    """Which node an error is about, where it is about the node's types: its index among the file's operators."""
    found = _AT_FAULT.search(words)
    if found is None or (found[2] == "invoke" and not _ABOUT_TYPES.search(words)):
        return None
    return int(found[1])


@dataclass(slots=True)
class _Port:
    name: str
    """The model file's name for it."""
    index: int
    """The interpreter's tensor index."""
    shape: tuple[int, ...]
    """What the interpreter has room for at present."""
    text: bool


class Prepared:
    """An interpreter; one run at a time."""

    def __init__(
        self, interpreter: Any, inputs: list[_Port], outputs: list[_Port], target: Target, ran_on: Mapping[str, int]
    ) -> None:
        self.ran_on = ran_on
        self._interpreter: Any = interpreter
        self._inputs = inputs
        self._outputs = outputs
        self._target = target

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        try:
            self._invoke(inputs)
            return {port.name: _read(self._interpreter, port) for port in self._outputs}
        except Exception as error:  # as in `prepare`
            raise failed(self._target, error) from error

    def run_into(self, inputs: Mapping[str, Data], place: Place) -> dict[str, Data]:
        """As `edgert.devices.backend.RunsInto`: one copy out of the interpreter's memory."""
        try:
            self._invoke(inputs)
            return {port.name: self._read_into(port, place) for port in self._outputs}
        except EdgertError:  # of `place`
            raise
        except Exception as error:  # as in `prepare`
            raise failed(self._target, error) from error

    def _invoke(self, inputs: Mapping[str, Data]) -> None:
        interpreter = self._interpreter
        if any(cast("Array", inputs[port.name]).shape != port.shape for port in self._inputs):
            self._resize(inputs)
        interpreter.reset_all_variables()
        for port in self._inputs:
            interpreter.set_tensor(port.index, inputs[port.name])
        interpreter.invoke()

    def _read_into(self, port: _Port, place: Place) -> Data:
        if port.text:
            return _read(self._interpreter, port)
        # The view must be gone before the next run: the interpreter refuses to run while one is there.
        return placed(port.name, self._interpreter.tensor(port.index)(), place)

    def close(self) -> None:
        self._interpreter = _Closed()

    def _resize(self, inputs: Mapping[str, Data]) -> None:
        wanted = {port.name: cast("Array", inputs[port.name]).shape for port in self._inputs}
        for port in self._inputs:
            self._interpreter.resize_tensor_input(port.index, wanted[port.name], strict=False)
            port.shape = (-1,)  # unknown, should the allocation fail
        self._interpreter.allocate_tensors()
        for port in self._inputs:
            port.shape = wanted[port.name]


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("it was closed")


def _package() -> tuple[str, str]:
    """Module and distribution: the first that is installed, else the preferred one."""
    for module, distribution in _PACKAGES.items():
        if importlib.util.find_spec(module) is not None:
            return module, distribution
    return next(iter(_PACKAGES.items()))


def _interpreter_module() -> Any:
    module, distribution = _package()
    try:
        return importlib.import_module(f"{module}.interpreter")
    except ModuleNotFoundError as error:
        raise MissingPackage(f"package {distribution} is not installed.", _REMEDY, package=distribution) from error
    except Exception as error:  # a broken installation fails in any way
        raise unusable(distribution, error, _REMEDY) from error


def _quietly(variant: str) -> contextlib.AbstractContextManager[None]:
    """Without LiteRT's greeting, the first time that XNNPACK is used."""
    first = variant in ("", MIXED) and _first.acquire(blocking=False)
    return stderr_without(_CHATTER) if first else contextlib.nullcontext()


def _resolver(variant: str) -> str:
    try:
        return _RESOLVERS[variant]
    except KeyError:
        known = ", ".join(name for name in _RESOLVERS if name)
        raise UnknownTarget(f"litert has no variant {variant!r}.", f"Known: {known}.") from None


def _ports(values: Sequence[Value], details: Sequence[Mapping[str, Any]]) -> list[_Port]:
    """The interpreter's tensors under the file's names, by name, else by position (names need not be unique)."""
    names = [str(detail["name"]) for detail in details]
    ports = []
    for position, value in enumerate(values):
        if names.count(value.name) == 1:
            detail = details[names.index(value.name)]
        elif len(details) == len(values):
            detail = details[position]
        else:
            raise ValueError(f"{value.name!r} is not among the interpreter's {names}")
        kind = np.dtype(detail["dtype"])
        text = kind.kind in "SUO"
        if value.dtype not in (None, "string" if text else kind.name):
            raise ValueError(f"{value.name!r} is {value.dtype}, LiteRT makes it {kind.name}")
        ports.append(_Port(value.name, int(detail["index"]), tuple(int(size) for size in detail["shape"]), text))
    return ports


def _value(detail: Mapping[str, Any]) -> Value:
    """An input or output as the interpreter describes it; free dimensions are -1 in its signature."""
    shape = tuple(int(size) if size >= 0 else "" for size in detail["shape_signature"])
    kind = np.dtype(detail["dtype"])
    parameters = detail["quantization_parameters"]
    quantization = None
    if len(parameters["scales"]):
        scales = tuple(float(scale) for scale in parameters["scales"])
        zero_points = tuple(int(point) for point in parameters["zero_points"])
        axis = int(parameters["quantized_dimension"]) if len(scales) > 1 else None
        quantization = Quantization(scales, zero_points, axis)
    dtype = "string" if kind.kind in "SUO" else kind.name
    return Value(str(detail["name"]), dtype, shape, quantization=quantization)


def _read(interpreter: Any, port: _Port) -> Array:
    """A copy of an output (the interpreter makes it); strings decoded."""
    array = cast("Array", interpreter.get_tensor(port.index))
    if not port.text:
        return array
    texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.flat]
    decoded = np.empty(array.shape, dtype=object)
    decoded.flat[:] = texts
    return decoded


def _count(interpreter: Any, target: Target) -> int:
    """Nodes of the model; those that a delegate took stay in the interpreter's list, beside the delegate's own."""
    read = getattr(interpreter, "_get_ops_details", None)
    if read is None:
        return 0
    names = [str(detail["op_name"]) for detail in read()]
    delegated = names.count("DELEGATE")
    _LOG.debug("%s: %d nodes, %d pieces of them by XNNPACK", target, len(names) - delegated, delegated)
    return len(names) - delegated
