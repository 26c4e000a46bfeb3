"""ONNX Runtime: its CPU kernels, and its execution providers (`edgert.devices.ortproviders`).

A session off the CPU is made with the fallback to the CPU disabled, so a model that a provider takes only in part is
refused; what each node was assigned to is read back from the session.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgert.devices import ortvalues
from edgert.devices.backend import Place, Runnable, Source, into
from edgert.devices.ortbinding import Binding
from edgert.devices.ortproviders import (
    CPU,
    PROVIDERS,
    Provider,
    ep_devices,
    index_of,
    lower_precisions,
    provider_of,
    why_not,
)
from edgert.devices.words import failed, installed, refused, unusable
from edgert.errors import EdgertError, MissingPackage, PrepareRefused
from edgert.machine import Device, Reach
from edgert.profile import Target
from edgert.tensor import Data

_SILENT = 4  # onnxruntime's severity 'fatal': errors reach the caller as exceptions, not also as lines on stderr
_REMEDY = 'pip install "edgert[onnx]"'
_VNNI = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
                  "onnxruntime-migraphx")  # fmt: skip


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
                reason = why_not(ort, provider, device)
                if not reason:
                    found.append(Reach(self.name, device.id, variant))
                elif provider.remedy:
                    found.append(Reach(self.name, device.id, variant, "failed", reason))
        return tuple(found)

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        provider = provider_of(variant)
        if source.format != "onnx" or device.kind not in provider.kinds:
            return ()
        counts = tuple(count for count in threads if count >= provider.threads) if device.kind == "cpu" else (0,)
        precisions = (source.precision, *lower_precisions(provider, source.precision, device))
        return tuple(
            Target(self.name, device.id, precision, count, variant) for precision in precisions for count in counts
        )

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        provider = provider_of(target.variant)
        ort = _library()
        reason = why_not(ort, provider, device)
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


def _runnable(session: Any, source: Source, target: Target, device: Device) -> Runnable:
    """The session, checked to run where it should."""
    provider = PROVIDERS[target.variant]
    ran_on = _assigned(session, provider, device)
    if provider.ep != CPU and ran_on.get(device.id) is None:
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
        chosen = ep_devices(ort, provider, device.kind)[index_of(device)]
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
        "index": str(index_of(device)),
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
    return counts or ({device.id: 0} if provider.ep == CPU else {})
