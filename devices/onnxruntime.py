"""ONNX Runtime: its CPU kernels, and its execution providers by one table.

A provider is a variant of the backend: `onnxruntime+webgpu@gpu:0/f32`. A session off the CPU is made with the
fallback to the CPU disabled, so a model that a provider takes only in part is refused; what each node was
assigned to is read back from the session.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgert.devices import ortvalues
from edgert.devices.backend import Place, Runnable, Source, into
from edgert.devices.ortbinding import Binding
from edgert.devices.words import SIMULATED, failed, installed, refused, shortened, unusable
from edgert.errors import EdgertError, MissingPackage, PrepareRefused, UnknownTarget
from edgert.machine import Device, DeviceKind, Reach
from edgert.profile import Precision, Target
from edgert.tensor import Data

_Options = Mapping[str, str]
_NONE: Mapping[Any, Any] = MappingProxyType({})
_CPU = "CPUExecutionProvider"
_SILENT = 4  # onnxruntime's severity 'fatal': errors reach the caller as exceptions, not also as lines on stderr
_REMEDY = 'pip install "edgert[onnx]"'
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
                  "onnxruntime-migraphx")  # fmt: skip


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
    "": Provider(_CPU, ("cpu",), precisions={"bf16": {"mlas.enable_gemm_fastmath_arm64_bfloat16": "1"}},
                 features={"bf16": "bf16"}),
    # Threads that wait for each other without sleeping, and only within a run: faster on quiet cores, slower on shared
    # ones, so it is measured like any other way.
    "spin": Provider(_CPU, ("cpu",), threads=2, options={"session.intra_op.allow_spinning": "1",
                                                         "session.force_spinning_stop": "1"}),
    # Weights stay where the file's external data is mapped: nothing is packed anew, no arena is kept. A session is then
    # made in milliseconds and holds 1.0 times the weights that it used; products of matrices are slower.
    "lean": Provider(_CPU, ("cpu",), lean=True, options={"session.disable_prepacking": "1"}),
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

_VNNI = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
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


class Backend:
    """ONNX Runtime; see `edgert.devices.backend.Backend`."""

    name = "onnxruntime"
    reentrant = True

    def version(self) -> str:
        return installed("onnxruntime", _DISTRIBUTIONS, _REMEDY)

    def reaches(self, devices: Sequence[Device]) -> tuple[Reach, ...]:
        ort = _library()
        found = []
        for variant, provider in ((name, each) for name, each in PROVIDERS.items() if not each.lean):
            for device in filter(provider.drives, devices):
                reason = _why_not(ort, provider, device)
                if not reason:
                    found.append(Reach(self.name, device.id, variant))
                elif provider.remedy:
                    found.append(Reach(self.name, device.id, variant, "failed", reason))
        return tuple(found)

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        provider = _provider(variant)
        if source.format != "onnx" or device.kind not in provider.kinds:
            return ()
        counts = tuple(count for count in threads if count >= provider.threads) if device.kind == "cpu" else (0,)
        precisions = (source.precision, *_lower(provider, source.precision, device))
        return tuple(
            Target(self.name, device.id, precision, count, variant) for precision in precisions for count in counts
        )

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        provider = _provider(target.variant)
        ort = _library()
        reason = _why_not(ort, provider, device)
        if reason:
            raise PrepareRefused(f"{target} is not to be had: {reason}", provider.remedy, target=str(target))
        try:
            session = _session(ort, source, target, device, cache)
            if not session.get_overridable_initializers() or importlib.util.find_spec("onnx") is None:
                return _runnable(session, source, target, device)
            del session  # one that holds the defaults for constants follows: never both in memory
            fixed = _session(ort, source, target, device, cache, content=_with_constants(source.path))
            return WithDefaults(
                _runnable(fixed, source, target, device),
                lambda: _runnable(_session(ort, source, target, device, cache), source, target, device),
                len(source.inputs),
            )
        except EdgertError:
            raise
        except Exception as error:  # the library raises a dozen types of its own, RuntimeError, ValueError
            raise refused(target, error) from error


class Plain:
    """A session whose values numpy can hold: nearly every model."""

    def __init__(self, session: Any, names: list[str], target: Target, ran_on: Mapping[str, int]) -> None:
        self.ran_on = ran_on
        self._session: Any = session
        self._run = session.run
        self._binding: Binding | None = None
        self._names = names
        self._target = target

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        try:
            return dict(zip(self._names, self._run(self._names, inputs), strict=True))
        except Exception as error:  # as in `prepare`
            raise failed(self._target, error) from error

    def run_into(self, inputs: Mapping[str, Data], place: Place) -> dict[str, Data]:
        """As `edgert.devices.backend.RunsInto`."""
        try:
            if self._binding is None:
                self._binding = Binding(self._session or _closed())
            return self._binding.run(inputs, place)
        except EdgertError:  # of `place`
            raise
        except Exception as error:  # as in `prepare`
            raise failed(self._target, error) from error

    def close(self) -> None:
        self._session = self._binding = None
        self._run = _closed


class WithDefaults:
    """A model whose inputs include weights, with defaults in the file, as older exporters wrote them.

    ONNX Runtime fuses nothing that touches such an input (a face detector ran six times slower), so the session
    takes them for constants; the first run that is given one makes a second session, in which they are inputs.
    """

    def __init__(self, fixed: Runnable, make_open: Callable[[], Runnable], needed: int) -> None:
        self.ran_on = fixed.ran_on
        self._fixed = fixed
        self._make_open = make_open
        self._open: Runnable | None = None
        self._needed = needed
        self._making = threading.Lock()

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        return self._fit(inputs).run(inputs)

    def run_into(self, inputs: Mapping[str, Data], place: Place) -> dict[str, Data]:
        """As `edgert.devices.backend.RunsInto`."""
        return into(self._fit(inputs))(inputs, place)

    def _fit(self, inputs: Mapping[str, Data]) -> Runnable:
        if len(inputs) <= self._needed:
            return self._fixed
        with self._making:
            self._open = self._open or self._make_open()
        return self._open

    def close(self) -> None:
        self._fixed.close()
        self._make_open = lambda: self._fixed  # which says that it was closed
        if self._open is not None:
            self._open.close()


def _closed(*_: object) -> Any:
    raise RuntimeError("it was closed")


def _library() -> Any:
    try:
        ort = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise MissingPackage("package onnxruntime is not installed.", _REMEDY, package="onnxruntime") from error
    except Exception as error:  # a broken installation fails in any way
        raise unusable("onnxruntime", error, _REMEDY) from error
    ort.set_default_logger_severity(_SILENT)
    return ort


def _provider(variant: str) -> Provider:
    try:
        return PROVIDERS[variant]
    except KeyError:
        known = ", ".join(name for name in PROVIDERS if name)
        raise UnknownTarget(f"onnxruntime has no variant {variant!r}.", f"Known: {known}.") from None


def _lower(provider: Provider, own: Precision, device: Device) -> tuple[Precision, ...]:
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


def _why_not(ort: Any, provider: Provider, device: Device) -> str:
    """Why the provider cannot be used on the device; '' when it can."""
    if not provider.plugin:
        return "" if provider.ep in ort.get_available_providers() else f"this onnxruntime has no {provider.ep}."
    try:
        _register(ort, provider)
    except ModuleNotFoundError:
        return f"package {provider.plugin.replace('_', '-')} is not installed."
    except Exception as error:  # noqa: BLE001 - a plugin library fails in any way while it loads
        return f"{provider.plugin} does not load: {shortened(error)}."
    count = len(_ep_devices(ort, provider, device.kind))
    if _index(device) < count:
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


def _ep_devices(ort: Any, provider: Provider, kind: DeviceKind) -> list[Any]:
    """The plugin's devices; those of the right hardware type when it tells types apart (software devices count as
    CPUs, so the type alone decides nothing).
    """
    found = [each for each in ort.get_ep_devices() if each.ep_name == provider.ep]
    right = [each for each in found if each.device.type.name.lower() == kind]
    return right or found


def _index(device: Device) -> int:
    """The device's number among those of its provider: discovery's word, else its number among its kind."""
    return int(device.attributes.get("index", device.id.partition(":")[2]))


def _runnable(session: Any, source: Source, target: Target, device: Device) -> Runnable:
    """The session, checked to run where it should."""
    provider = PROVIDERS[target.variant]
    ran_on = _assigned(session, provider, device)
    if provider.ep != _CPU and ran_on.get(device.id) is None:
        raise refused(target, f"{provider.ep} took none of its nodes")
    names = [value.name for value in source.outputs]
    kind = ortvalues.Extended if ortvalues.needed(session) else Plain
    return kind(session, names, target, ran_on)


def _with_constants(path: Path) -> bytes:
    """The model file with no input that has a default, which makes constants of those."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    defaults = {value.name for value in model.graph.initializer} | {
        value.values.name for value in model.graph.sparse_initializer
    }
    kept = [value for value in model.graph.input if value.name not in defaults]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    content: bytes = model.SerializeToString()
    return content


def _session(
    ort: Any, source: Source, target: Target, device: Device, cache: Path | None, *, content: bytes | None = None
) -> Any:
    """A session for the source's file, or for `content` in its place (external data still lies beside the file)."""
    provider = PROVIDERS[target.variant]
    settings, choices = _settings(provider, target, device, cache)
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = target.threads or 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = not provider.lean
    model: str | bytes = str(source.path)
    if content is not None:
        model = content
        settings["session.model_external_initializers_file_folder_path"] = str(source.path.parent)
    for name, value in settings.items():
        options.add_session_config_entry(name, value)
    if provider.plugin:
        chosen = _ep_devices(ort, provider, device.kind)[_index(device)]
        options.add_provider_for_devices([chosen], choices)
        session = ort.InferenceSession(model, options)
    else:
        session = ort.InferenceSession(model, options, providers=[(provider.ep, choices)])
    session.disable_fallback()  # otherwise a provider that fails in a run is replaced by the CPU, with a print
    return session


def _settings(
    provider: Provider, target: Target, device: Device, cache: Path | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Settings of the session, and options of the provider."""
    settings = {
        "session.intra_op.allow_spinning": "0",  # spinning burns twice the CPU: only where it was measured to pay
        "session.inter_op.allow_spinning": "0",
        "session.record_ep_graph_assignment_info": "1",
    }
    if not _VNNI.intersection(device.features):
        # Without those instructions sums of int8 products overflow int16 in silence; with them this only costs time.
        settings["session.x64quantprecision"] = "1"
    if device.kind != "cpu":
        settings["session.disable_cpu_ep_fallback"] = "1"
    values = {
        "kind": device.kind.upper(),
        "unit": {"gpu": "GPU", "npu": "NeuralEngine"}.get(device.kind, "Only"),
        "index": str(_index(device)),
        "threads": str(target.threads or 1),
        "cache": str(cache),
    }
    wanted = {**provider.options, **provider.precisions.get(target.precision, {}), **(provider.cache if cache else {})}
    choices: dict[str, str] = {}
    for name, value in wanted.items():
        (settings if "." in name else choices)[name] = value.format(**values)
    return settings, choices


def _assigned(session: Any, provider: Provider, device: Device) -> Mapping[str, int]:
    """Device id -> number of nodes, as the session says; a count of 0 where this version does not say."""
    read = getattr(session, "get_provider_graph_assignment_info", None)
    if read is None:  # onnxruntime before 1.24: only which providers the session has
        return {device.id: 0} if provider.ep in session.get_providers() else {"cpu:0": 0}
    counts: dict[str, int] = {}
    for part in read():
        where = device.id if part.ep_name == provider.ep else "cpu:0"
        counts[where] = counts.get(where, 0) + len(part.get_nodes())
    return counts or ({device.id: 0} if provider.ep == _CPU else {})
