"""Convolutional networks: KWS DS-CNN, MobileNetV2, ResNet-50, U-Net, and two more chains in TFLite's usual sizes.

Batch normalisation is folded into the convolutions. Every residual branch is scaled down, so that depth does not blow
the activations up.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx

from bench.zoo.builder import Builder, filter_weights
from bench.zoo.network import Conv, Dense, Layer, Mean, Network, Softmax


def _conv(rng: np.random.Generator, channels: tuple[int, int], kernel: tuple[int, int], stride: int = 1) -> Conv:
    weight = filter_weights(rng, (channels[1], channels[0], *kernel), np.sqrt(2.0))
    return Conv(weight, _bias(rng, channels[1]), stride)


def _depthwise(rng: np.random.Generator, channels: int, stride: int = 1) -> Conv:
    weight = filter_weights(rng, (channels, 1, 3, 3), np.sqrt(2.0))
    return Conv(weight, _bias(rng, channels), stride, depthwise=True)


def _dense(rng: np.random.Generator, sizes: tuple[int, int], gain: float, *, relu: bool = False) -> Dense:
    weight = filter_weights(rng, (sizes[1], sizes[0]), gain)
    return Dense(weight, _bias(rng, sizes[1]), relu=relu)


def _bias(rng: np.random.Generator, size: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return rng.standard_normal(size, np.float32) * np.float32(0.05)


def kws_network() -> Network:
    """Keyword spotting DS-CNN (Zhang et al., 2017, 'Hello Edge'): 49 frames x 10 MFCCs, 12 words."""
    rng = np.random.default_rng(11)
    layers: list[Layer] = [_conv(rng, (1, 64), (10, 4), stride=2)]
    for _ in range(4):
        layers += [_depthwise(rng, 64), _conv(rng, (64, 64), (1, 1))]
    layers += [Mean(), _dense(rng, (64, 12), 6.0), Softmax()]
    return Network("kws", (1, 49, 10), tuple(layers), input="mfcc", output="probabilities")


def person_network() -> Network:
    """Person or not: MobileNetV1 0.25 on 96 x 96, as in MLPerf Tiny."""
    rng = np.random.default_rng(12)
    layers: list[Layer] = [_conv(rng, (3, 8), (3, 3), stride=2)]
    plan = ((8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1),
            (128, 128, 1), (128, 128, 1), (128, 128, 1), (128, 256, 2), (256, 256, 1))  # fmt: skip
    for inside, out, stride in plan:
        layers += [_depthwise(rng, inside, stride), _conv(rng, (inside, out), (1, 1))]
    layers += [Mean(), _dense(rng, (256, 2), 6.0), Softmax()]
    return Network("person", (3, 96, 96), tuple(layers), input="image", output="probabilities")


def anomaly_network() -> Network:
    """Machine sounds: a dense autoencoder over 5 frames x 128 bands, as in MLPerf Tiny."""
    rng = np.random.default_rng(13)
    sizes = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    layers = [_dense(rng, pair, np.sqrt(2.0), relu=True) for pair in pairwise(sizes)]
    return Network("anomaly", (640,), (*layers, _dense(rng, (128, 640), 1.0)), input="bands", output="rebuilt")


def mobilenet_v2(batch: int | str) -> onnx.ModelProto:
    """MobileNetV2 1.0 on 224 x 224 (Sandler et al., 2018): 3.5 million weights, 0.3 G multiply-adds."""
    build = Builder("mobilenet_v2", seed=21)
    x = build.input("image", [batch, 3, 224, 224])
    x = build.conv(x, (3, 32), 3, stride=2, act="relu6")
    inside = 32
    for expand, out, repeats, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                         (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip
        for index in range(repeats):
            x = _inverted(build, x, (inside, out), expand, stride if index == 0 else 1)
            inside = out
    x = build.conv(x, (320, 1280), 1, act="relu6")
    x = build.node("Flatten", build.node("GlobalAveragePool", x))
    build.dense(x, (1280, 1000), gain=4.0, out="logits")
    build.output("logits", [batch, 1000])
    return build.model()


def _inverted(build: Builder, x: str, channels: tuple[int, int], expand: int, stride: int) -> str:
    """An inverted residual with a linear bottleneck."""
    inside, out = channels
    wide = inside * expand
    y = build.conv(x, (inside, wide), 1, act="relu6") if expand > 1 else x
    y = build.conv(y, (wide, wide), 3, stride=stride, group=wide, act="relu6")
    joins = stride == 1 and inside == out
    y = build.conv(y, (wide, out), 1, act="", gain=0.3 if joins else 1.4)
    return build.node("Add", x, y) if joins else y


def resnet50(batch: int | str) -> onnx.ModelProto:
    """ResNet-50 v1.5 (He et al., 2016) on 224 x 224: 25.5 million weights, 4.1 G multiply-adds."""
    build = Builder("resnet50", seed=22)
    x = build.input("image", [batch, 3, 224, 224])
    x = build.conv(x, (3, 64), 7, stride=2)
    x = build.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inside = 64
    for stage, (width, repeats) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for index in range(repeats):
            x = _bottleneck(build, x, inside, width, stride=2 if stage and index == 0 else 1)
            inside = 4 * width
    x = build.node("Flatten", build.node("GlobalAveragePool", x))
    build.dense(x, (2048, 1000), out="logits")
    build.output("logits", [batch, 1000])
    return build.model()


def _bottleneck(build: Builder, x: str, inside: int, width: int, stride: int) -> str:
    out = 4 * width
    y = build.conv(x, (inside, width), 1)
    y = build.conv(y, (width, width), 3, stride=stride)
    y = build.conv(y, (width, out), 1, act="", gain=0.5)
    if inside != out or stride != 1:
        x = build.conv(x, (inside, out), 1, stride=stride, act="")
    return build.node("Relu", build.node("Add", x, y))


def unet(batch: int | str) -> onnx.ModelProto:
    """A small U-Net (Ronneberger et al., 2015) on 128 x 128: three levels, long skips, a mask out."""
    build = Builder("unet", seed=23)
    x = build.input("image", [batch, 3, 128, 128])
    skips: list[tuple[str, int]] = []
    inside = 3
    for width in (16, 32, 64):
        x = build.conv(build.conv(x, (inside, width), 3), (width, width), 3)
        skips.append((x, width))
        x = build.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        inside = width
    x = build.conv(build.conv(x, (64, 128), 3), (128, 128), 3)
    inside = 128
    scales = build.weight(np.asarray([1, 1, 2, 2], np.float32), "scales")
    for skip, width in reversed(skips):
        x = build.node("Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric",
                       nearest_mode="floor")  # fmt: skip
        x = build.node("Concat", x, skip, axis=1)
        x = build.conv(build.conv(x, (inside + width, width), 3), (width, width), 3)
        inside = width
    x = build.conv(x, (16, 1), 1, act="", gain=4.0)
    build.node("Sigmoid", x, out="mask")
    build.output("mask", [batch, 1, 128, 128])
    return build.model()
