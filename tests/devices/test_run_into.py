"""What every backend promises of `run_into`: the same answers, in the caller's memory, read from memory that nobody can
write.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgert import data as own_data
from edgert.devices.backend import into
from edgert.errors import Overloaded, RunFailed
from edgert.transport.shm import Pool, Reader
from tests.devices.sources import prepared, source, source_of
from tests.formats.models import chain, info, model


class Places:
    """Slots of a pool as a `Place`."""

    def __init__(self, pool):
        self.pool, self.slots, self.asked = pool, {}, []

    def __call__(self, name, dtype, shape):
        self.asked.append((name, dtype, shape))
        self.slots[name] = self.pool.take(dtype, shape)
        self.slots[name].array[...] = 7
        return self.slots[name].array


@pytest.fixture
def pool():
    with Pool() as made:
        yield made


def lent(pool, array):
    """The array in a slot, as a reader sees it: read-only for everybody."""
    return Reader().view(pool.put(array, ["reader"]))


def big():
    """One input and one output of 1 MB, and a small one of each."""
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Mul", ["s", "s"], ["t"])]
    return model(nodes, [info("x", shape=(512, 512)), info("s", shape=(3,))],
                 [info("y", shape=(512, 512)), info("t", shape=(3,))])  # fmt: skip


def feed():
    rng = np.random.default_rng(5)
    return {"x": rng.standard_normal((512, 512)).astype(np.float32), "s": np.array([1, 2, 3], np.float32)}


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "reference"])
def test_outputs_lie_where_the_caller_said_and_are_those_of_run(name, tmp_path, pool):
    runnable = prepared(name, source(big(), tmp_path))
    wanted = runnable.run(feed())
    places = Places(pool)
    got = into(runnable)({key: lent(pool, value) for key, value in feed().items()}, places)
    assert list(got) == list(wanted)
    for key, value in got.items():
        assert value is places.slots[key].array
        np.testing.assert_array_equal(value, wanted[key])
    np.testing.assert_array_equal(runnable.run(feed())["y"], wanted["y"])


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_later_run_writes_no_memory_that_was_lent_before(name, tmp_path, pool):
    runnable = prepared(name, source(big(), tmp_path))
    places = Places(pool)
    into(runnable)(feed(), places)
    before = {key: slot.array.copy() for key, slot in places.slots.items()}
    runnable.run({key: value + 1 for key, value in feed().items()})
    for key, slot in places.slots.items():
        np.testing.assert_array_equal(slot.array, before[key])


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_sizes_that_the_model_leaves_open_are_known_when_it_runs(name, tmp_path, pool):
    proto = model([helper.make_node("Relu", ["x"], ["y"])], [info("x", shape=("N", 4))], [info("y", shape=("N", 4))])
    runnable = prepared(name, source(proto, tmp_path))
    for rows in (2, 5):
        places = Places(pool)
        got = into(runnable)({"x": np.full((rows, 4), -1, np.float32)}, places)
        assert got["y"] is places.slots["y"].array
        np.testing.assert_array_equal(got["y"], np.zeros((rows, 4), np.float32))


def test_shapes_that_depend_on_the_numbers_are_copied_to_their_place(tmp_path, pool):
    proto = model([helper.make_node("NonZero", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["z"])],
                  [info("x", shape=(4,))], [info("y", TensorProto.INT64, (1, "K")), info("z", shape=(4,))])  # fmt: skip
    runnable = prepared("onnxruntime", source(proto, tmp_path))
    for x, where in (([0, 1, 0, 2], [[1, 3]]), ([0, 0, 0, 0], [[]])):
        places = Places(pool)
        got = into(runnable)({"x": np.array(x, np.float32)}, places)
        assert got["y"].tolist() == where
        assert got["y"] is places.slots["y"].array
        assert got["z"].tolist() == x


def test_a_symbol_that_the_model_uses_wrongly_does_not_spoil_the_answer(tmp_path, pool):
    proto = model([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], [info("x", shape=("N", 2))],
                  [info("y", shape=("N", 2))])  # fmt: skip
    runnable = prepared("onnxruntime", source(proto, tmp_path))
    for _ in range(2):
        places = Places(pool)
        got = into(runnable)({"x": np.ones((3, 2), np.float32)}, places)
        assert got["y"].shape == (6, 2)
        assert got["y"] is places.slots["y"].array


def test_text_comes_as_from_run(tmp_path, pool):
    proto = model([helper.make_node("Identity", ["x"], ["y"])], [info("x", TensorProto.STRING, (2,))],
                  [info("y", TensorProto.STRING, (2,))])  # fmt: skip
    runnable = prepared("onnxruntime", source(proto, tmp_path))
    places = Places(pool)
    assert into(runnable)({"x": np.array(["a", "b"], object)}, places)["y"].tolist() == ["a", "b"]
    assert not places.asked


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_lack_of_memory_stays_what_it_is_and_the_next_run_works(name, tmp_path, pool):
    runnable = prepared(name, source(big(), tmp_path))

    def nowhere(*_):
        raise Overloaded("no slot")

    with pytest.raises(Overloaded):
        into(runnable)(feed(), nowhere)
    assert into(runnable)(feed(), Places(pool))["t"].tolist() == [1, 4, 9]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_closed_one_fails_with_a_typed_error(name, tmp_path, pool):
    runnable = prepared(name, source(chain(), tmp_path))
    runnable.close()
    with pytest.raises(RunFailed):
        into(runnable)({"x": np.ones((1, 4), np.float32)}, Places(pool))


def test_a_network_of_litert_writes_once_into_the_place(pool):
    from importlib.resources import as_file, files

    with as_file(files(own_data) / "digits_f32.tflite") as path:
        made = source_of(path)
        runnable = prepared("litert", made)
        x = np.random.default_rng(1).random(made.inputs[0].shape, np.float32)
        wanted = runnable.run({made.inputs[0].name: x})
        for _ in range(3):  # a view that stayed would keep the second run from starting
            places = Places(pool)
            got = into(runnable)({made.inputs[0].name: lent(pool, x)}, places)
            for key, value in got.items():
                assert value is places.slots[key].array
                np.testing.assert_array_equal(value, wanted[key])
