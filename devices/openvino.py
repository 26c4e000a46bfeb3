"""OpenVINO: CPU, and Intel's GPUs and NPUs; reads ONNX and TFLite.

Left alone it computes in bfloat16 where the CPU can, quantises activations on the fly, pins threads and reports its
use to its makers: each of these is settled here, and the precision that it settled on is read back.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from edgert.devices.backend import Runnable, Source
from edgert.devices.ovrequest import DTYPES, Port, Prepared, Shapes
from edgert.devices.words import SIMULATED, installed, refused, unusable
from edgert.errors import EdgertError, MissingPackage, PrepareRefused, UnknownTarget
from edgert.graph import Value
from edgert.machine import Device, Reach
from edgert.profile import Precision, Target

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


def _ports(values: Sequence[Value], found: Sequence[Any]) -> list[Port]:
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


def _port(value: Value, index: int, found: Any) -> Port:
    element = found.get_element_type().to_string()
    dtype = DTYPES.get(element)
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
    return Port(value.name, index, dtype, shape)


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
