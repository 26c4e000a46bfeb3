"""Machines on paper, described in bench/machines, and the models that are planned for them.

Besides the zoo, in both formats, there are

    NAME+top5     the model and a TopK behind it, which no NPU here takes
    pair          two ResNet-50 on two images, their scores side by side
    FILE.tflite   real models, where EDGERT_MODELS names their folder
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from bench.zoo import NAMES, TFLITE_NAMES, build
from edgert.errors import OptionError
from edgert.machine import Machine

__all__ = ["MACHINES", "MODELS", "machine", "model_file", "names"]

MACHINES = Path(__file__).parent / "machines"
REAL = ("mobilenet_v2_1.0_224_quant.tflite", "mlperf_tiny_ic_resnet_int8.tflite")
MODELS = (
    *(f"{name}-{kind}" for name in NAMES for kind in ("f32", "i8")),
    "mobilenet_v2-i8+top5", "resnet50-i8+top5", "unet-f32+top5", "pair",
    *(f"{name}-{kind}.tflite" for name in TFLITE_NAMES for kind in ("f32", "i8")), *REAL,
)  # fmt: skip


def machine(name: str) -> Machine:
    """The machine that the file of that name describes."""
    return Machine.from_json(json.loads((MACHINES / f"{name}.json").read_text(encoding="utf-8")))


def names() -> tuple[str, ...]:
    """Of all machines."""
    return tuple(sorted(path.stem for path in MACHINES.glob("*.json")))


def model_file(name: str, folder: Path) -> Path:
    """The file of one of `MODELS`; what is not in the zoo is written into the folder.

    Raises:
        OptionError: a real model, and EDGERT_MODELS does not name a folder that has it.
    """
    if name == "pair":
        return _pair(folder / "pair.onnx")
    if name in REAL:
        return _real(name)
    plain, _, tail = name.removesuffix(".tflite").partition("+")
    model, kind = plain.rsplit("-", 1)
    path = build(model, kind, format="tflite" if name.endswith(".tflite") else "onnx")
    return _with_top5(path, folder / f"{name}.onnx") if tail else path


def _with_top5(path: Path, to: Path) -> Path:
    """The model and the five largest of its last output, flattened."""
    model = onnx.load(path)
    graph, last = model.graph, model.graph.output[-1].name
    del graph.output[-1]
    graph.node.extend([
        helper.make_node("Flatten", [last], ["top5_flat"], "top5_flat"),
        helper.make_node("TopK", ["top5_flat", "top5_k"], ["top5_values", "top5_indices"], "top5"),
    ])  # fmt: skip
    graph.initializer.append(helper.make_tensor("top5_k", TensorProto.INT64, [1], [5]))
    graph.output.extend([
        helper.make_tensor_value_info("top5_values", TensorProto.FLOAT, (1, 5)),
        helper.make_tensor_value_info("top5_indices", TensorProto.INT64, (1, 5)),
    ])  # fmt: skip
    onnx.save(model, to)
    return to


def _pair(to: Path) -> Path:
    """Two ResNet-50 in int8 that share nothing."""
    model = onnx.load(build("resnet50", "i8"))
    twins = [onnx.compose.add_prefix_graph(model.graph, prefix) for prefix in ("left_", "right_")]
    graph = onnx.GraphProto(name="pair")
    for twin in twins:
        graph.node.extend(twin.node)
        graph.initializer.extend(twin.initializer)
        graph.input.extend(twin.input)
        graph.value_info.extend(twin.value_info)
        graph.value_info.extend(twin.output)
    graph.node.append(helper.make_node("Concat", [twin.output[0].name for twin in twins], ["scores"], "both", axis=1))
    shape = [axis.dim_value for axis in twins[0].output[0].type.tensor_type.shape.dim]
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 2 * shape[1]]))
    onnx.save(helper.make_model(graph, ir_version=model.ir_version, opset_imports=model.opset_import), to)
    return to


def _real(name: str) -> Path:
    path = Path(os.environ.get("EDGERT_MODELS", "")) / name
    if not os.environ.get("EDGERT_MODELS") or not path.is_file():
        raise OptionError(f"{name} is not there.", "Let EDGERT_MODELS name the folder that has it.")
    return path
