"""onnx's own evaluator: slow, and hardly ever refuses. The last resort, and what other backends are checked against."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgert.devices.backend import Runnable, Source
from edgert.devices.reference_ops import NEWEST, corrected
from edgert.devices.words import SIMULATED, failed, installed, refused, unusable
from edgert.errors import MissingPackage, UnknownTarget
from edgert.graph import Value
from edgert.machine import Device, Reach
from edgert.profile import Target
from edgert.tensor import Array, Data, DType, numpy_dtype

_REMEDY = 'pip install "edgert[onnx]"'


class Backend:
    """onnx.reference; see `edgert.devices.backend.Backend`."""

    name = "reference"
    reentrant = True

    def version(self) -> str:
        return installed("onnx", ("onnx",), _REMEDY)

    def reaches(self, devices: Sequence[Device]) -> tuple[Reach, ...]:
        _evaluator()
        return tuple(
            Reach(self.name, device.id) for device in devices if device.id == "cpu:0" and device.driver != SIMULATED
        )

    def targets(self, source: Source, device: Device, variant: str, threads: Sequence[int]) -> tuple[Target, ...]:
        if variant:
            raise UnknownTarget(f"reference has no variant {variant!r}.", "Leave it out.")
        if source.format != "onnx" or device.id != "cpu:0":
            return ()
        return (Target(self.name, device.id, source.precision),)

    def prepare(self, source: Source, target: Target, device: Device, cache: Path | None = None) -> Runnable:
        evaluator = _evaluator()
        if target.precision != source.precision:
            raise refused(target, f"the evaluator computes at the model's own precision, {source.precision}")
        try:
            made = _made(evaluator, source.path)
        except Exception as error:  # it raises what its ops' Python raises
            raise refused(target, error) from error
        return Prepared(made, source, target, device)


class Prepared:
    """A model in the evaluator, which holds no state between runs."""

    def __init__(self, evaluator: Any, source: Source, target: Target, device: Device) -> None:
        self.ran_on: Mapping[str, int] = {device.id: len(evaluator.nodes_ or ())}
        self._evaluator: Any = evaluator
        self._outputs = source.outputs
        self._target = target

    def run(self, inputs: Mapping[str, Data]) -> dict[str, Data]:
        try:
            if self._evaluator is None:
                raise RuntimeError("it was closed")
            # Numpy would turn a division by zero into a warning; the standard's answer is the infinity that it gives.
            with np.errstate(all="ignore"):
                results = self._evaluator.run([value.name for value in self._outputs], dict(inputs))
            return {
                value.name: _declared(value, result, inputs)
                for value, result in zip(self._outputs, results, strict=True)
            }
        except Exception as error:  # as in `prepare`
            raise failed(self._target, error) from error

    def close(self) -> None:
        if self._evaluator is not None:
            self._evaluator = None
            gc.collect()  # its nodes refer to one another in circles: their weights would stay until somebody collects


def _made(evaluator: Any, path: Path) -> Any:
    import onnx

    model = onnx.load(str(path))
    opsets = {each.version for part in (model, *model.functions) for each in part.opset_import if not each.domain}
    fixes = [corrected(opset) for opset in opsets or {NEWEST - 1}]
    if len({len(each) for each in fixes}) > 1:
        # The evaluator takes one class an op, for the model and its functions alike.
        raise NotImplementedError("its functions are of an older opset than itself")
    return evaluator(model, new_ops=fixes[0])


def _evaluator() -> Any:
    try:
        return importlib.import_module("onnx.reference").ReferenceEvaluator
    except ModuleNotFoundError as error:
        raise MissingPackage(f"package onnx is not usable ({error}).", _REMEDY, package="onnx") from error
    except Exception as error:  # a broken installation fails in any way
        raise unusable("onnx", error, _REMEDY) from error


def _declared(value: Value, result: Any, inputs: Mapping[str, Data]) -> Data:
    """The result for an output of the model. One of another rank is a fault of the evaluator's: it loses count of the
    axes that a Loop stacks up.
    """
    if value.kind != "tensor":
        return _owned(result, None, inputs)
    made = _owned(result, value.dtype, inputs)
    if isinstance(made, np.ndarray) and value.shape is not None and made.ndim != len(value.shape):
        raise TypeError(f"the evaluator made {value.name!r} of rank {made.ndim}, the model says {len(value.shape)}")
    return made


def _owned(result: Any, dtype: DType | None, inputs: Mapping[str, Data]) -> Data:
    """The evaluator's result as a value of ours: arrays of their own, never an input or a weight handed through."""
    if result is None or isinstance(result, Mapping):
        return cast("Data", result)
    if isinstance(result, list):
        return [_owned(item, None, inputs) for item in result]
    array = np.array(result)  # copies, and makes an array of the numpy scalars that reductions return
    if array.dtype.kind in "US":
        array = array.astype(object)
    if dtype is not None and dtype != "string" and array.dtype != numpy_dtype(dtype):
        raise TypeError(f"the evaluator made {array.dtype}, the model says {dtype}")
    return cast("Array", array)
