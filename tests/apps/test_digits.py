"""The bundled digits network: what is committed is as good as it says, and its trainer computes true gradients."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apps.digits import train
from edgert.data import path
from edgert.errors import OptionError

FILES = ("digits_f32.onnx", "digits_i8.onnx", "digits_f32.tflite", "digits_i8.tflite")


@pytest.mark.parametrize("name", FILES)
def test_each_bundled_model_reads_as_many_digits_as_recorded(name: str) -> None:
    bundled = np.load(path("digits.npz"))
    answer = train.answers_onnx if name.endswith("onnx") else train.answers_tflite
    right = float((answer(path(name).read_bytes(), bundled["images"]) == bundled["labels"]).mean())
    recorded = json.loads(path("digits.json").read_text())["accuracy"][name]
    assert recorded >= 0.97
    assert abs(right - recorded) <= 1.5 / len(bundled["labels"])  # another CPU's rounding may turn one digit


def test_the_bundled_test_images_are_not_training_images() -> None:
    images, _, test_images, test_labels = train.digits()
    bundled = np.load(path("digits.npz"))
    assert np.array_equal(bundled["images"], test_images)
    assert np.array_equal(bundled["labels"], test_labels)
    assert len(images) + len(test_images) == 1797


def test_the_gradients_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    weights = train.initial(rng)
    x, labels = rng.random((4, 8, 8, 1)), np.asarray([3, 1, 4, 1])

    def loss() -> float:
        y = np.maximum(train.patches(x, 1) @ weights["w1"] + weights["b1"], 0)
        y = np.maximum(train.patches(y, 2) @ weights["w2"] + weights["b2"], 0)
        scores = y.reshape(4, -1) @ weights["w3"] + weights["b3"]
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(4), labels]))

    exact = train.gradients(weights, x, labels)
    for name, array in weights.items():
        index = tuple(rng.integers(0, size) for size in array.shape)
        before = array[index]
        array[index] = before + 1e-5
        high = loss()
        array[index] = before - 1e-5
        slope = (high - loss()) / 2e-5
        array[index] = before
        assert slope == pytest.approx(exact[name][index], abs=1e-6)


def test_the_network_that_is_written_is_the_one_that_was_trained() -> None:
    weights = train.initial(np.random.default_rng(1))
    images = train.digits()[2][:50]
    y = np.maximum(train.patches(images[..., None] / 16.0, 1) @ weights["w1"], 0)
    y = np.maximum(train.patches(y, 2) @ weights["w2"], 0)
    expected = (y.reshape(50, -1) @ weights["w3"]).argmax(1)
    written = train.network_of(weights)
    onnx_file = train.to_onnx(written, batch="batch").SerializeToString()
    assert np.array_equal(train.answers_onnx(onnx_file, images), expected)
    assert np.array_equal(train.answers_tflite(train.to_tflite(written), images), expected)


def test_a_bundled_file_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(OptionError, match=r"'nothing'.*digits_f32\.onnx"):
        path("nothing")
    with pytest.raises(OptionError):
        path("../errors.py")
