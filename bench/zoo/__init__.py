"""Models of real shapes with seeded weights, for tests and benchmarks without downloads.

    python -m bench.zoo FOLDER [--only NAME ...]

`build(name, precision, folder)` writes one. Weights are scaled so that activations stay near one through the depth;
nothing is trained, so that only speed, agreement between backends and numerics mean something.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx

from bench.zoo import language, vision
from bench.zoo.network import Network, to_onnx
from bench.zoo.qdq import JOINED, quantise
from edgert.errors import OptionError

__all__ = ["NAMES", "PRECISIONS", "TFLITE_NAMES", "build", "default_folder"]

VERSION = 2
"""Part of every file name: raised whenever a builder changes."""
Format: TypeAlias = Literal["onnx", "tflite"]

NAMES = ("kws", "dlrm", "mobilenet_v2", "unet", "lstm", "bert_4x256", "resnet50", "bert_12x768")
"""ONNX models, small to large."""
TFLITE_NAMES = ("kws", "anomaly", "person")
PRECISIONS = ("f32", "i8")
_CONVOLUTIONAL = frozenset({"kws", "mobilenet_v2", "unet", "resnet50"})
_SAMPLES = 4
"""Inputs that the ranges of an INT8 model are taken from."""


def default_folder() -> Path:
    """Where built models are kept: EDGERT_CACHE, else the user's cache folder."""
    base = os.environ.get("EDGERT_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgert-zoo"


def build(
    name: str, precision: str, folder: Path | None = None, *, format: Format = "onnx", batch: int | str = 1
) -> Path:
    """One model's file, written unless it is there already; two processes may write the same one at once.

    Args:
        name: of `NAMES`, or for TFLite of `TFLITE_NAMES`.
        precision: 'f32' or 'i8'.
        folder: where to; `default_folder()` when None.
        format: which kind of file.
        batch: size of axis 0 of every input, or its name if it is to be free (ONNX only).

    Raises:
        OptionError: there is no such model, precision or form.
    """
    known = NAMES if format == "onnx" else TFLITE_NAMES
    if name not in known or precision not in PRECISIONS:
        raise OptionError(
            f"the zoo has no {format} model {name!r} at {precision!r}.",
            f"It has {', '.join(known)}, at {' and '.join(PRECISIONS)}.",
        )
    if format == "tflite" and batch != 1:
        raise OptionError(f"batch is {batch!r}.", "The zoo's TFLite models take one input at a time.")
    folder = default_folder() if folder is None else Path(folder)
    suffix = "" if batch == 1 else f"-b{batch}"
    path = folder / f"{name}-{precision}{suffix}-v{VERSION}.{format}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, _onnx(name, precision, batch) if format == "onnx" else _tflite(name, precision))
    return path


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            file.write(content)
            file.close()
            Path(file.name).replace(path)
        except BaseException:  # also an interrupt: no half file stays behind
            Path(file.name).unlink(missing_ok=True)
            raise


def _onnx(name: str, precision: str, batch: int | str) -> bytes:
    model = _builders()[name](batch)
    if precision == "i8":
        joined = JOINED if name in _CONVOLUTIONAL else frozenset[str]()
        model = quantise(model, _samples(model), joined=joined)
    return bytes(model.SerializeToString(deterministic=True))


def _builders() -> Mapping[str, Callable[[int | str], onnx.ModelProto]]:
    return {
        "kws": lambda batch: to_onnx(vision.kws_network(), batch),
        "dlrm": language.dlrm,
        "mobilenet_v2": vision.mobilenet_v2,
        "unet": vision.unet,
        "lstm": language.lstm,
        "bert_4x256": lambda batch: language.bert("bert_4x256", 4, 256, batch, seed=31),
        "resnet50": vision.resnet50,
        "bert_12x768": lambda batch: language.bert("bert_12x768", 12, 768, batch, seed=32),
    }


def _tflite(name: str, precision: str) -> bytes:
    from bench.zoo.tflite import to_tflite  # the ONNX half of the zoo works where LiteRT has no wheel

    network = _networks()[name]()
    rng = np.random.default_rng(41)
    shape = (1, *network.shape)
    samples = [rng.standard_normal(shape, np.float32) for _ in range(8 * _SAMPLES)] if precision == "i8" else []
    return to_tflite(network, samples)


def _networks() -> Mapping[str, Callable[[], Network]]:
    return {"kws": vision.kws_network, "anomaly": vision.anomaly_network, "person": vision.person_network}


def _samples(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Seeded inputs to take ranges from. Written out here, so that a file never depends on anything else's version."""
    rng = np.random.default_rng(42)

    def normal(shape: tuple[int, ...]) -> Any:
        return rng.standard_normal(shape, np.float32)

    special: Mapping[str, Callable[[tuple[int, ...]], Any]] = {
        "input_ids": lambda shape: rng.integers(0, language.VOCABULARY, shape),
        "attention_mask": lambda shape: np.broadcast_to(np.arange(shape[-1]) < 100, shape),
        "token_type_ids": lambda shape: rng.integers(0, 2, shape),
        "indices": lambda shape: rng.integers(0, np.asarray(language.TABLES), shape),
        "image": lambda shape: rng.random(shape, np.float32),
    }
    samples = []
    for _ in range(_SAMPLES):
        sample = {}
        for value in model.graph.input:
            shape = tuple(axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim)
            dtype = np.int64 if value.type.tensor_type.elem_type == onnx.TensorProto.INT64 else np.float32
            sample[value.name] = special.get(value.name, normal)(shape).astype(dtype)
        samples.append(sample)
    return samples
