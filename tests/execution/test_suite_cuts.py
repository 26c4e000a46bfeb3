"""Cases of the ONNX standard's own suite with several blocks: cut in two, they give the standard's answer."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.errors import EdgertError, ModelUnsupported
from edgert.execution.pipeline import Pipeline
from edgert.formats import open_model
from edgert.partitioner.blocks import blocks_of
from edgert.plan import Instance, Plan, Segment
from edgert.profile import Target
from edgert.verify import draws_random_numbers

onnx = pytest.importorskip("onnx")
FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data"
KINDS = ("simple", "pytorch-converted", "pytorch-operator")
UNKNOWN = frozenset({"ai.onnx.preview.training::Gradient"})
"""Ops that no backend has."""


def tensors(folder, kind, values):
    """The case's inputs or outputs by name; None where one is no tensor."""
    found = {}
    for number, value in enumerate(values):
        if value.kind != "tensor":
            return None
        proto = onnx.TensorProto.FromString((folder / f"{kind}_{number}.pb").read_bytes())
        found[value.name] = onnx.numpy_helper.to_array(proto)
    return found


def plan_in_two(file, machine, choose):
    graph, blocks = file.graph, blocks_of(file.graph)
    place = random.Random(file.digest).randrange(1, len(blocks))
    segments = []
    for part in (blocks[:place], blocks[place:]):
        nodes = sorted(node for block in part for node in block.nodes)
        target = choose(len(segments))
        segments.append(Segment(target, tuple(graph.nodes[n].name for n in nodes), *graph.boundary(frozenset(nodes))))
    names = dict.fromkeys(name for segment in segments for name in (*segment.inputs, *segment.outputs))
    return Plan(
        file.digest, machine.fingerprint, {}, "latency", "own", "onnx", file.precision, graph.inputs, graph.outputs,
        tuple(segments), (Instance(0), Instance(1)), values=tuple(graph.values[name] for name in names),
    )  # fmt: skip


def answer(file, machine, folder, inputs):
    """By ONNX Runtime and the evaluator, in this order or the other; by the evaluator alone where both are refused."""
    own = file.precision
    fast, slow = Target("onnxruntime", "cpu:0", own, 1), Target("reference", "cpu:0", own)
    source = Source(file.path, "onnx", file.graph.inputs, file.graph.outputs, own)
    refusal = None
    for pair in ((fast, slow), (slow, fast), (slow, slow)):
        try:
            pipeline = Pipeline(plan_in_two(file, machine, pair.__getitem__), source, machine, folder)
        except ModelUnsupported:
            raise
        except EdgertError as error:
            refusal = error
            continue
        try:
            return pipeline.run(inputs).outputs
        except EdgertError as error:
            refusal = error
        finally:
            pipeline.close()
    raise refusal


@pytest.fixture(scope="module")
def machine():
    return glance()


def differences(expected, made, rtol=1e-3, atol=1e-5):
    for output, array in expected.items():
        if made[output].shape != array.shape or made[output].dtype != array.dtype:
            yield output
            continue
        if array.dtype.kind == "V":  # bfloat16 and other small floats, of which numpy knows nothing
            array, made = array.astype(np.float32), {**made, output: made[output].astype(np.float32)}  # noqa: PLW2901
        same = np.allclose(made[output], array, rtol, atol, equal_nan=True) if array.dtype.kind in "fc" else None
        if not (np.array_equal(made[output], array) if same is None else same):
            yield output


def test_each_case_of_the_standard_cut_in_two_gives_its_answer(machine, tmp_path):
    tried, wrong = [], []
    for path in sorted(path for kind in KINDS for path in FOLDER.glob(f"{kind}/*/model.onnx")):
        file, folder = open_model(path), path.parent / "test_data_set_0"
        if len(blocks_of(file.graph)) < 2 or any(node.op in UNKNOWN for node in file.graph.nodes):
            continue
        inputs, expected = tensors(folder, "input", file.graph.inputs), tensors(folder, "output", file.graph.outputs)
        if inputs is None or expected is None:
            continue
        tried.append(path.parent.name)
        found = list(differences(expected, answer(file, machine, tmp_path / path.parent.name, inputs)))
        wrong += [(path.parent.name, found)] if found else []
    assert not wrong
    assert len(tried) >= 10


WRONG_UNSPLIT = frozenset({"test_range_bfloat16_type_positive_delta_expanded"})
"""Cases that onnx's evaluator, which alone takes both pieces, gets wrong as a whole: it makes (n, 1) of a Loop's n
scalars.
"""


def node_cases():
    """The suite's cases of single ops that are written as several nodes (functions, expanded), as they are made."""
    import warnings

    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what makes the cases overflows on purpose
        return [case for case in collect_testcases(None) if len(case.model.graph.node) > 1]


def named(values, arrays):
    """The case's inputs or outputs by name; None where one is no array of numbers."""
    fit = all(value.kind == "tensor" for value in values) and all(isinstance(each, np.ndarray) for each in arrays)
    return {value.name: array for value, array in zip(values, arrays, strict=False)} if fit else None


@pytest.mark.cuts
def test_each_case_of_several_nodes_cut_in_two_gives_its_answer(machine, tmp_path):
    tried, wrong = [], []
    for case in node_cases():
        path = tmp_path / f"{case.name}.onnx"
        onnx.save(case.model, path)
        file = open_model(path)
        if len(blocks_of(file.graph)) < 2 or draws_random_numbers(file.graph) or case.name in WRONG_UNSPLIT:
            continue
        given, made = case.data_sets[0]
        inputs, expected = named(file.graph.inputs, given), named(file.graph.outputs, made)
        if inputs is None or expected is None:
            continue
        try:
            answered = answer(file, machine, tmp_path / case.name, inputs)
        except EdgertError as error:
            wrong.append((case.name, str(error)[:300]))
            continue
        tried.append(case.name)
        found = list(differences(expected, answered, max(case.rtol, 1e-3), max(case.atol, 1e-5)))
        wrong += [(case.name, found)] if found else []
    assert not wrong
    assert len(tried) >= 200
