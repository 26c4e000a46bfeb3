"""From what a person has (arrays, a picture, a sound, or nothing) to the inputs of a model.

    --input name=FILE     .npy, .npz, .png/.jpg/..., .wav;  --input FILE where the model has one input, or FILE is .npz
    --input name=random   numbers that mean something to the model;  --input random for all inputs

`read` looks at the files alone, so that a bad one is told before anything is measured; `fit` makes them what the
model takes and says in words what was done to them.
"""

from __future__ import annotations

import difflib
import warnings
import wave
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from edgert.errors import InputError, MissingPackage, OptionError, ShapeMismatch, UnknownInput
from edgert.graph import Value
from edgert.tensor import FLOATS, Array, Data, numpy_dtype, shape_text
from edgert.transforms import Cast, Fit, Grayscale, Layout, Normalise, Quantise, Resize, ToLayout, Transform, apply

Kind: TypeAlias = Literal["array", "image", "sound", "random"]

_IMAGES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
_CHANNELS = (1, 3)
_PIXEL = 1 / 255


@dataclass(frozen=True, slots=True)
class Given:
    """One thing that the user gave."""

    name: str
    """The input that it is for; '' when the user did not say."""
    kind: Kind
    data: Array | None
    """Image: H x W x C uint8. Sound: samples, or samples x channels. None for random."""
    source: str
    """Where it is from, for messages."""
    note: str = ""
    """What a person should know of it: a sound's sample rate."""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How a picture becomes a tensor; None where the model decides."""

    size: tuple[int, int] | None = None
    """Height, width."""
    fit: Fit = "stretch"
    layout: Layout | None = None
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    grayscale: bool = False

    @property
    def normalised(self) -> bool:
        """Whether the user said anything about the range of the pixels."""
        return self.scale is not None or self.mean != (0.0,) or self.std != (1.0,)


def read(specs: Sequence[str]) -> list[Given]:
    """Everything that `--input` names, read.

    Raises:
        InputError: a file is missing, damaged or of a kind that is not read.
        MissingPackage: pictures need Pillow.
    """
    return [given for spec in specs for given in _read_one(spec)]


def _read_one(spec: str) -> list[Given]:
    name, equals, place = spec.partition("=")
    if not equals or Path(spec).is_file():
        name, place = "", spec
    if place == "random":
        return [Given(name, "random", None, "random")]
    path = Path(place)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(
            f"input file {place!r} is not there.", "Check the path; write --input NAME=FILE or NAME=random."
        )
    if suffix == ".npz":
        return _read_npz(path, name)
    if suffix == ".npy":
        return [Given(name, "array", _load(path), place)]
    if suffix in _IMAGES:
        return [Given(name, "image", read_image(path), place)]
    if suffix == ".wav":
        samples, rate = read_wav(path)
        return [Given(name, "sound", samples, place, f"{rate} Hz")]
    raise InputError(
        f"input file {place!r} is of no kind that is read.", "Use .npy, .npz, .png, .jpg, .wav or 'random'."
    )


def _read_npz(path: Path, name: str) -> list[Given]:
    arrays: Mapping[str, Array] = _load(path)
    if not name:
        return [Given(key, "array", array, f"{path}:{key}") for key, array in arrays.items()]
    if name in arrays:
        return [Given(name, "array", arrays[name], f"{path}:{name}")]
    if len(arrays) == 1:
        key, array = next(iter(arrays.items()))
        return [Given(name, "array", array, f"{path}:{key}")]
    raise InputError(f"{path} has no array {name!r}.", f"It has: {', '.join(arrays)}.")


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # numpy leaves a damaged file open that it opened itself
            loaded = np.load(file, allow_pickle=False)
            return {key: loaded[key] for key in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, SyntaxError, MemoryError) as error:
        raise InputError(
            f"{path} is not an array file that can be read: {_first_line(error)}.",
            "Make it with numpy.save or numpy.savez, without Python objects in it.",
        ) from error


def read_image(path: Path) -> Array:
    """The pixels, H x W x 3 uint8 (H x W x 1 of a grey picture), turned as the camera was held.

    Raises:
        InputError: the file is damaged, or absurdly large.
        MissingPackage: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingPackage(
            f"reading {path} needs the package pillow ({error}).", 'pip install "edgert[image]"', package="pillow"
        ) from error
    try:
        # A small file can hold gigabytes of pixels: what Pillow only warns of is refused before it is unpacked.
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(path) as opened,
        ):
            turned = ImageOps.exif_transpose(opened)
            pixels = np.asarray(turned.convert("L" if turned.mode in ("1", "L", "LA") else "RGB"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is too large: {_first_line(error)}.", "Make it smaller first.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{path} is not a picture that can be read: {_first_line(error)}.", "Open and save it anew with a viewer."
        ) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def read_wav(path: Path) -> tuple[Array, int]:
    """Samples in [-1, 1) as float32, (n,) or (n, channels), and the rate in Hz. PCM of 8, 16, 24 and 32 bits.

    Raises:
        InputError: the file is damaged or compressed.
    """
    try:
        with wave.open(str(path), "rb") as opened:
            channels, width, rate, count = opened.getparams()[:4]
            raw = opened.readframes(count)
        samples = _pcm(raw, width).reshape(-1, channels)
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a sound that can be read: {_first_line(error)}.",
            "Convert it to PCM, such as with: ffmpeg -i IN -c:a pcm_s16le OUT.wav",
        ) from error
    return (samples[:, 0] if channels == 1 else samples), rate


def _pcm(raw: bytes, width: int) -> Array:
    if width == 1:  # the only unsigned one
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # numpy has no 24 bits: widen at the lower end
        padded = np.zeros((len(raw) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        raw, width = padded.tobytes(), 4
    bits = 8 * width
    return (np.frombuffer(raw, f"<i{width}").astype(np.float64) / (1 << (bits - 1))).astype(np.float32)


def fit(
    given: Sequence[Given], values: Sequence[Value], options: ImageOptions, random: Callable[[], Mapping[str, Data]]
) -> tuple[dict[str, Data], list[str]]:
    """The inputs for `Model.run`, and a line on each that says what was done to it.

    Args:
        given: from `read`.
        values: the model's inputs.
        options: for pictures.
        random: makes all inputs; called when some are random.

    Raises:
        UnknownInput, InputError: what was given does not fit the model.
    """
    inputs: dict[str, Data] = {}
    lines: list[str] = []
    everything = random() if any(item.kind == "random" for item in given) else {}
    for item in given:
        if item.kind == "random" and not item.name:
            named = {other.name for other in given}
            lines += [f"{name}: random" for name in everything if name not in inputs and name not in named]
            inputs = {**everything, **inputs}
            continue
        value = _value_of(item, values)
        if value.name in inputs and any(other.name == value.name for other in given if other is not item):
            raise OptionError(f"input {value.name!r} is given twice.", "Give each --input once.")
        data, words = (everything[value.name], "random") if item.kind == "random" else _fit_one(item, value, options)
        inputs[value.name] = data
        lines.append(f"{value.name}: {words}")
    return inputs, lines


def _value_of(item: Given, values: Sequence[Value]) -> Value:
    found = next((value for value in values if value.name == item.name), None)
    if found is not None:
        return found
    names = [value.name for value in values]
    if not item.name and len(values) == 1:
        return values[0]
    if not item.name:
        raise UnknownInput(
            f"{item.source} is for no input by name.", f"Write --input NAME=FILE; it has: {', '.join(names)}."
        )
    near = difflib.get_close_matches(item.name, names, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UnknownInput(f"the model has no input {item.name!r}.", f"{hint}It has: {', '.join(names)}.")


def _fit_one(item: Given, value: Value, options: ImageOptions) -> tuple[Array, str]:
    assert item.data is not None
    if item.kind == "array":
        return item.data, f"{item.source}, {item.data.dtype} {shape_text(item.data.shape)}"
    about = f"{item.source}, {shape_text(item.data.shape)}" + (f" at {item.note}" if item.note else "")
    if item.kind == "sound":
        return _sound(item, value), about
    steps = image_steps(item.data, value, options)
    words = " → ".join([about, *(_words(step) for step in steps)])
    return apply(steps, item.data), words


def image_steps(image: Array, value: Value, options: ImageOptions) -> list[Transform]:
    """What makes a picture the model's input: the user's word where there is one, else what shape and dtype tell.

    Without a word on the range, floats get pixels / 255; uint8 the pixels themselves; int8 pixels - 128 (what the
    TFLite converter makes of all three usual ranges).

    Raises:
        InputError: the input is not one for pictures, or its layout is not clear.
    """
    layout = options.layout or _layout(value)
    shape = dict(zip(layout, value.shape or (), strict=False))
    size = options.size or (_size(shape.get("h"), image.shape[0]), _size(shape.get("w"), image.shape[1]))
    steps: list[Transform] = []
    if size != image.shape[:2]:
        steps.append(Resize(*size, fit=options.fit))
    if options.grayscale or "c" not in layout or shape.get("c") == 1:
        steps.append(Grayscale())
    elif image.shape[2] == 1:
        raise InputError(f"input {value.name!r} wants colours and the picture is grey.", "Give a picture in colour.")
    return [*steps, *_range_steps(value, options), ToLayout(layout)]


def _range_steps(value: Value, options: ImageOptions) -> list[Transform]:
    dtype = value.dtype or "float32"
    real = Normalise(
        _PIXEL if options.scale is None and dtype in FLOATS else options.scale or 1.0, options.mean, options.std
    )
    if dtype in FLOATS:
        return [real] if dtype == "float32" else [real, Cast(dtype)]
    if options.normalised:
        return [real, Cast(dtype) if value.quantization is None else Quantise(value.quantization, dtype)]
    return [Normalise(mean=(128.0,)), Cast(dtype)] if dtype == "int8" else [Cast(dtype)] if dtype != "uint8" else []


def _layout(value: Value) -> Layout:
    """Where the channels are, by the only axis of size 1 or 3 in its place."""
    shape = value.shape or ()
    match len(shape):
        case 4:
            first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
            named: tuple[Layout, Layout] = ("nchw", "nhwc")
        case 3:
            first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
            named = ("chw", "hwc")
        case 2:
            return "hw"
        case _:
            raise InputError(
                f"input {value} is not one for a picture.", "Prepare it yourself and give --input NAME=FILE.npy."
            )
    if first == last:
        raise InputError(
            f"input {value} does not tell where its channels are.",
            f"Say it: --layout {named[0]} or --layout {named[1]}.",
        )
    return named[0] if first else named[1]


def _size(wanted: int | str | None, own: int) -> int:
    return wanted if isinstance(wanted, int) else own


def _sound(item: Given, value: Value) -> Array:
    """Samples in the shape of an input that has one axis longer than 1."""
    assert item.data is not None
    samples, shape = item.data, value.shape or ("",)
    long = [axis for axis, size in enumerate(shape) if size != 1]
    if samples.ndim != 1 or len(long) > 1:
        raise InputError(
            f"{item.source} of shape {shape_text(samples.shape)} does not fit input {value}.",
            "Give one channel; what is not a plain row of samples has to be prepared: --input NAME=FILE.npy.",
        )
    wanted = shape[long[0]] if long else 1
    if isinstance(wanted, int) and wanted != len(samples):
        raise ShapeMismatch(
            f"input {value.name!r} takes {wanted} samples, {item.source} has {len(samples)}.",
            "Cut or pad the sound; `edgert` does not guess which part counts.",
            name=value.name, got=samples.shape, expected=shape, axis=long[0] if long else None,
        )  # fmt: skip
    fitted = samples.reshape([-1 if axis in long else 1 for axis in range(len(shape))] or [-1])
    if value.dtype == "int16":
        return Cast("int16")(fitted * 32768)
    return fitted.astype(numpy_dtype(value.dtype or "float32"))


def _words(step: Transform) -> str:
    match step:
        case Resize():
            return f"{step.fit} to {step.height}x{step.width}"
        case Grayscale():
            return "grey"
        case Normalise():
            return _normalise_words(step)
        case Quantise() | Cast():
            return step.dtype
        case ToLayout():
            return step.layout
        case _:
            return type(step).__name__


def _normalise_words(step: Normalise) -> str:
    words = "pixel" if step.scale == 1.0 else "pixel/255" if step.scale == _PIXEL else f"pixel*{step.scale:g}"
    if step.mean != (0.0,):
        words = f"({words} - {_numbers(step.mean)})"
    return words if step.std == (1.0,) else f"{words}/{_numbers(step.std)}"


def _numbers(numbers: Sequence[float]) -> str:
    text = ", ".join(f"{number:g}" for number in numbers)
    return text if len(numbers) == 1 else f"[{text}]"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
