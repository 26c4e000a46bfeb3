"""ONNX Runtime's execution providers: one table, what each drives, and whether it is to be had here.

A provider is a variant of the backend (`edgert.devices.onnxruntime`): `onnxruntime+webgpu@gpu:0/f32`.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from edgert.devices.words import SIMULATED, shortened
from edgert.errors import UnknownTarget
from edgert.machine import Device, DeviceKind
from edgert.profile import Precision

_Options = Mapping[str, str]
_NONE: Mapping[Any, Any] = MappingProxyType({})
CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider: how it is named, found and told what to do.

    Option values may hold `{kind}` (CPU, GPU, NPU), `{index}` (the device's number among its kind), `{threads}`
    and `{cache}` (the folder for compiled models). Keys with a dot are session settings, the others the provider's.
    """

    ep: str
    """Its name inside ONNX Runtime."""
    kinds: tuple[DeviceKind, ...]
    """What it drives."""
    vendors: tuple[str, ...] = ()
    """It drives devices whose name or driver contains one of these, in lower case; empty for all of the kind."""
    plugin: str = ""
    """Module of the package that carries it; '' when it is part of the onnxruntime wheel."""
    remedy: str = ""
    """The command that installs it; '' when nobody misses it."""
    options: _Options = field(default_factory=lambda: _NONE)
    """Always given."""
    precisions: Mapping[Precision, _Options] = field(default_factory=lambda: _NONE)
    """Given at a precision. A 'bf16' or 'f16' here is offered for models of f32 and i8 too."""
    features: Mapping[Precision, str] = field(default_factory=lambda: _NONE)
    """Feature that a device needs for a precision below the model's own."""
    cache: _Options = field(default_factory=lambda: _NONE)
    """Given when there is a cache folder."""

    threads: int = 1
    """The fewest with which it differs from another variant."""
    lean: bool = False
    """Made for little memory: tried only where a model does not fit, so discovery does not offer it."""

    def drives(self, device: Device) -> bool:
        known_as = f"{device.name} {device.driver}".lower()
        right = not self.vendors or any(vendor in known_as for vendor in self.vendors)
        return right and device.kind in self.kinds and device.driver != SIMULATED


PROVIDERS: Mapping[str, Provider] = {  # variant -> provider
    # On ARM with bf16 instructions the CPU's matrix products can be told to use them; elsewhere it has no such switch.
    "": Provider(CPU, ("cpu",), precisions={"bf16": {"mlas.enable_gemm_fastmath_arm64_bfloat16": "1"}},
                 features={"bf16": "bf16"}),
    # Threads that wait for each other without sleeping, and only within a run: faster on quiet cores, slower on shared
    # ones, so it is measured like any other way.
    "spin": Provider(CPU, ("cpu",), threads=2, options={"session.intra_op.allow_spinning": "1",
                                                         "session.force_spinning_stop": "1"}),
    # Weights stay where the file's external data is mapped: nothing is packed anew, no arena is kept. A session is then
    # made in milliseconds and holds 1.0 times the weights that it used; products of matrices are slower.
    "lean": Provider(CPU, ("cpu",), lean=True, options={"session.disable_prepacking": "1"}),
    "xnnpack": Provider("XnnpackExecutionProvider", ("cpu",), options={"intra_op_num_threads": "{threads}"}),
    "openvino": Provider("OpenVINOExecutionProvider", ("cpu", "gpu", "npu"), vendors=("intel",),
                         options={"device_type": "{kind}", "num_of_threads": "{threads}"},
                         precisions={"f32": {"precision": "FP32"}, "i8": {"precision": "FP32"},
                                     "f16": {"precision": "FP16"}},
                         features={"f16": "fp16"}, cache={"cache_dir": "{cache}"}),
    "cuda": Provider("CUDAExecutionProvider", ("gpu",), vendors=("nvidia",), remedy="pip install onnxruntime-gpu",
                     options={"device_id": "{index}", "use_tf32": "0"}),
    "tensorrt": Provider("TensorrtExecutionProvider", ("gpu",), vendors=("nvidia",),
                         options={"device_id": "{index}"},
                         precisions={"f16": {"trt_fp16_enable": "1"}, "bf16": {"trt_bf16_enable": "1"},
                                     "i8": {"trt_int8_enable": "1"}},
                         cache={"trt_engine_cache_enable": "1", "trt_engine_cache_path": "{cache}"}),
    "migraphx": Provider("MIGraphXExecutionProvider", ("gpu",), vendors=("amd", "radeon"),
                         options={"device_id": "{index}"}, precisions={"f16": {"migraphx_fp16_enable": "1"}}),
    "webgpu": Provider("WebGpuExecutionProvider", ("gpu",), plugin="onnxruntime_ep_webgpu",
                       remedy='pip install "edgert[webgpu]"'),
    # Without the switch, floats would be halved in silence.
    "qnn": Provider("QNNExecutionProvider", ("npu",), vendors=("qualcomm", "qnn", "hexagon", "snapdragon"),
                    plugin="onnxruntime_qnn", remedy='pip install "edgert[qnn]"', options={"backend_type": "htp"},
                    precisions={"f32": {"enable_htp_fp16_precision": "0"}, "i8": {"enable_htp_fp16_precision": "0"},
                                "f16": {"enable_htp_fp16_precision": "1"}}),
    "coreml": Provider("CoreMLExecutionProvider", ("gpu", "npu"), vendors=("apple",),
                       options={"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAnd{unit}"},
                       cache={"ModelCacheDirectory": "{cache}"}),
    "dml": Provider("DmlExecutionProvider", ("gpu",), options={"device_id": "{index}"}),
    "nnapi": Provider("NnapiExecutionProvider", ("npu",)),
}  # fmt: skip

_registering = threading.Lock()
_registered: set[str] = set()  # a library registers once a process, also when it finds no device


def way_of(provider: str) -> str:
    """Pattern of the ways that read what a provider compiled; '' for one that is not known.

    Args:
        provider: as `EPContext` nodes name it in `source`: 'QNNExecutionProvider', or shorter, 'QNN'.
    """
    wanted = provider.removesuffix("ExecutionProvider").lower()
    known = (name for name, each in PROVIDERS.items() if each.ep.removesuffix("ExecutionProvider").lower() == wanted)
    return next((f"onnxruntime+{name}@*" for name in known if name), "")


def provider_of(variant: str) -> Provider:
    try:
        return PROVIDERS[variant]
    except KeyError:
        known = ", ".join(name for name in PROVIDERS if name)
        raise UnknownTarget(f"onnxruntime has no variant {variant!r}.", f"Known: {known}.") from None


def lower_precisions(provider: Provider, own: Precision, device: Device) -> tuple[Precision, ...]:
    """Precisions below the model's own that the provider can be told to use."""
    if own not in ("f32", "i8"):
        return ()
    offered: tuple[Precision, ...] = ("bf16", "f16")
    return tuple(
        precision
        for precision in offered
        if precision in provider.precisions
        and (device.kind != "cpu" or provider.features.get(precision) in device.features)
    )


def why_not(ort: Any, provider: Provider, device: Device) -> str:
    """Why the provider cannot be used on the device; '' when it can."""
    if not provider.plugin:
        return "" if provider.ep in ort.get_available_providers() else f"this onnxruntime has no {provider.ep}."
    try:
        _register(ort, provider)
    except ModuleNotFoundError:
        return f"package {provider.plugin.replace('_', '-')} is not installed."
    except Exception as error:  # noqa: BLE001 - a plugin library fails in any way while it loads
        return f"{provider.plugin} does not load: {shortened(error)}."
    count = len(ep_devices(ort, provider, device.kind))
    if index_of(device) < count:
        return ""
    return f"{provider.ep} finds {count or 'no'} device(s) here: the driver is missing, too old or not allowed."


def _register(ort: Any, provider: Provider) -> None:
    """Load a plugin's library into ONNX Runtime, once a process; harmless when the application did so itself."""
    plugin = importlib.import_module(provider.plugin)
    with _registering:
        known = provider.ep in _registered or any(found.ep_name == provider.ep for found in ort.get_ep_devices())
        if not known:
            ort.register_execution_provider_library(provider.ep, plugin.get_library_path())
        _registered.add(provider.ep)


def ep_devices(ort: Any, provider: Provider, kind: DeviceKind) -> list[Any]:
    """The plugin's devices; those of the right hardware type when it tells types apart (software devices count as
    CPUs, so the type alone decides nothing).
    """
    found = [each for each in ort.get_ep_devices() if each.ep_name == provider.ep]
    right = [each for each in found if each.device.type.name.lower() == kind]
    return right or found


def index_of(device: Device) -> int:
    """The device's number among those of its provider: discovery's word, else its number among its kind."""
    return int(device.attributes.get("index", device.id.partition(":")[2]))
