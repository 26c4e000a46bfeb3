"""Trains the digits network on scikit-learn's handwritten digits and writes everything in edgert/data.

    python -m apps.digits.train [FOLDER]

Two convolutions and a dense layer, plain numpy, seeded: on one machine, with one numpy, it writes the same bytes
each time. The INT8 forms are quantised after training, with ranges seen on training images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bench.zoo.network import Conv, Dense, Flatten, Network, Softmax, to_onnx
from bench.zoo.qdq import quantise
from bench.zoo.tflite import to_tflite

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Weights: TypeAlias = dict[str, Array]

SEED = 7
TEST_IMAGES = 360
EPOCHS = 40
BATCH = 48
CHANNELS = (16, 32)


def digits() -> tuple[Array, Array, Array, Array]:
    """Training images and labels, test images and labels; images uint8 (0 to 16), n x 8 x 8, shuffled by the seed."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    images, labels = images[order].reshape(-1, 8, 8).astype(np.uint8), labels[order].astype(np.uint8)
    return images[TEST_IMAGES:], labels[TEST_IMAGES:], images[:TEST_IMAGES], labels[:TEST_IMAGES]


def prepared(images: Array) -> Array:
    """What the network takes: n x 1 x 8 x 8, float32, 0 to 1."""
    return (images[:, None].astype(np.float32)) / np.float32(16)


def patches(x: Array, stride: int) -> Array:
    """The 3 x 3 neighbourhoods of NHWC images with 'SAME' padding: n x H/stride x W/stride x (9 C)."""
    first = 1 if stride == 1 else 0  # TensorFlow puts the odd pad of an even size at the end
    padded = np.pad(x, ((0, 0), (first, 1), (first, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::stride, ::stride]
    return np.ascontiguousarray(windows.transpose(0, 1, 2, 4, 5, 3)).reshape(*windows.shape[:3], -1)


def scatter(gradient: Array, shape: tuple[int, ...], stride: int) -> Array:
    """The transpose of `patches`: gradients of neighbourhoods summed into the image."""
    first = 1 if stride == 1 else 0
    height, width = gradient.shape[1] * stride, gradient.shape[2] * stride
    padded = np.zeros((shape[0], shape[1] + first + 1, shape[2] + first + 1, shape[3]))
    parts = gradient.reshape(*gradient.shape[:3], 3, 3, shape[3])
    for row in range(3):
        for column in range(3):
            padded[:, row : row + height : stride, column : column + width : stride] += parts[:, :, :, row, column]
    return np.asarray(padded[:, first : first + shape[1], first : first + shape[2]])


def initial(rng: np.random.Generator) -> Weights:
    """He's initialisation; float64, so that the order of sums matters as little as can be."""
    one, two = CHANNELS

    def he(fan_in: int, out: int) -> Array:
        return np.asarray(rng.standard_normal((fan_in, out)) * np.sqrt(2 / fan_in))

    return {"w1": he(9, one), "b1": np.zeros(one), "w2": he(9 * one, two), "b2": np.zeros(two),
            "w3": he(16 * two, 10), "b3": np.zeros(10)}  # fmt: skip


def gradients(weights: Weights, x: Array, labels: Array) -> Weights:
    """Of the mean cross-entropy over NHWC images `x`."""
    p1 = patches(x, 1)
    y1 = np.maximum(p1 @ weights["w1"] + weights["b1"], 0)
    p2 = patches(y1, 2)
    y2 = np.maximum(p2 @ weights["w2"] + weights["b2"], 0)
    flat = y2.reshape(len(x), -1)
    scores = flat @ weights["w3"] + weights["b3"]
    scores = np.exp(scores - scores.max(1, keepdims=True))
    d3 = scores / scores.sum(1, keepdims=True)
    d3[np.arange(len(x)), labels] -= 1
    d3 /= len(x)
    d2 = (d3 @ weights["w3"].T).reshape(y2.shape) * (y2 > 0)
    d1 = scatter(d2 @ weights["w2"].T, y1.shape, 2) * (y1 > 0)
    return {"w3": flat.T @ d3, "b3": d3.sum(0), "w2": _outer(p2, d2), "b2": d2.sum((0, 1, 2)),
            "w1": _outer(p1, d1), "b1": d1.sum((0, 1, 2))}  # fmt: skip


def _outer(inputs: Array, deltas: Array) -> Array:
    return np.asarray(inputs.reshape(-1, inputs.shape[-1]).T @ deltas.reshape(-1, deltas.shape[-1]))


def shifted(images: Array, rng: np.random.Generator) -> Array:
    """Each image moved by up to one pixel: more digits for free."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    rows, columns = rng.integers(0, 3, (2, len(images), 1, 1))
    index = np.arange(8)
    return np.asarray(padded[np.arange(len(images))[:, None, None], rows + index[:, None], columns + index])


def batches(images: Array, labels: Array, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Moved images (NHWC, 0 to 1) and labels, an epoch in random order."""
    order = rng.permutation(len(labels))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        yield shifted(images[chosen], rng)[..., None] / 16.0, labels[chosen]


def train(images: Array, labels: Array, say: Callable[[str], None]) -> Weights:
    """Adam (Kingma and Ba, 2015) with a cosine schedule and a little weight decay."""
    rng = np.random.default_rng(SEED)
    weights = initial(rng)
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    step = 0
    for epoch in range(EPOCHS):
        rate = 2e-3 * 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS))
        for x, y in batches(images, labels, rng):
            step += 1
            for name, gradient in gradients(weights, x, y).items():
                first[name] += 0.1 * (gradient - first[name])
                second[name] += 0.001 * (gradient**2 - second[name])
                mean, spread = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
                weights[name] -= rate * (mean / (np.sqrt(spread) + 1e-8) + 1e-3 * weights[name])
        if epoch % 10 == 9:
            say(f"epoch {epoch + 1} of {EPOCHS}")
    return weights


def network_of(weights: Weights) -> Network:
    """The trained weights as layers that the writers know."""
    one, two = CHANNELS
    w1 = weights["w1"].reshape(3, 3, 1, one).transpose(3, 2, 0, 1).astype(np.float32)
    w2 = weights["w2"].reshape(3, 3, one, two).transpose(3, 2, 0, 1).astype(np.float32)
    # Training flattens NHWC, the layers are written in NCHW order.
    w3 = weights["w3"].reshape(4, 4, two, 10).transpose(3, 2, 0, 1).reshape(10, -1).astype(np.float32)
    b1, b2, b3 = (weights[name].astype(np.float32) for name in ("b1", "b2", "b3"))
    layers = (Conv(w1, b1), Conv(w2, b2, stride=2), Flatten(), Dense(w3, b3), Softmax())
    return Network("digits", (1, 8, 8), layers, input="image", output="probabilities")


def answers_onnx(model: bytes, images: Array) -> Array:
    """The class that ONNX Runtime answers for each image."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": prepared(images)})[0].argmax(1))


def answers_tflite(model: bytes, images: Array) -> Array:
    """The class that LiteRT answers for each image."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = given["quantization"]
    found = []
    for image in prepared(images):
        x = image.transpose(1, 2, 0)[None]
        if scale:
            x = np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        found.append(int(interpreter.get_tensor(made["index"]).argmax()))
    return np.asarray(found)


def write(folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Train, write the files into `folder`, and return each model's share of right answers on the test images."""
    images, labels, test_images, test_labels = digits()
    network = network_of(train(images, labels, say))
    sample = prepared(images[:256])
    f32 = to_onnx(network, batch="batch")
    models = {
        "digits_f32.onnx": f32.SerializeToString(deterministic=True),
        "digits_i8.onnx": quantise(f32, [{"image": sample}]).SerializeToString(deterministic=True),
        "digits_f32.tflite": to_tflite(network),
        "digits_i8.tflite": to_tflite(network, [image[None] for image in sample]),
    }
    accuracy: dict[str, float] = {}
    for name, content in models.items():
        (folder / name).write_bytes(content)
        answer = answers_onnx if name.endswith("onnx") else answers_tflite
        accuracy[name] = round(float((answer(content, test_images) == test_labels).mean()), 4)
        say(f"{name}: {len(content)} bytes, {accuracy[name]:.2%} of {len(test_labels)} test images right")
    np.savez_compressed(folder / "digits.npz", images=test_images, labels=test_labels)
    about = {
        "classes": [str(digit) for digit in range(10)],
        "input": "image",
        "output": "probabilities",
        "preprocessing": "grey 8x8, white on black, 0 to 1; the .npz holds 0 to 16: divide by 16. "
        "ONNX wants Nx1x8x8, TFLite 1x8x8x1; the int8 TFLite model wants its input quantised.",
        "source": "scikit-learn's digits: UCI Optical Recognition of Handwritten Digits "
        "(E. Alpaydin, C. Kaynak, 1998), CC BY 4.0",
        "train_images": len(labels),
        "test_images": len(test_labels),
        "accuracy": accuracy,
    }
    (folder / "digits.json").write_text(json.dumps(about, indent=2) + "\n")
    return accuracy


def main() -> None:
    """Write into the folder of the first argument, else into the package."""
    default = Path(__file__).resolve().parents[2] / "edgert" / "data"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, say)


def say(line: str) -> None:
    """Tell the person who trains."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
