"""A backend in a child: prepared, run and timed there; what died with it is noticed, and started again."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from edgert.devices.backend import Source
from edgert.devices.host import source_from_json, source_to_json
from edgert.devices.probe import glance
from edgert.devices.remote import Remote
from edgert.errors import ChildDied, ChildTimeout, MissingPackage, PrepareRefused, UnknownTarget
from edgert.formats import open_model
from edgert.machine import Device
from edgert.measure import Remotes
from edgert.profile import Target
from tests.conftest import open_descriptors

pytestmark = pytest.mark.usefixtures("foreign")


@pytest.fixture
def source(line):
    graph = open_model(line).graph
    return Source(line, "onnx", graph.inputs, graph.outputs, "f32")


@pytest.fixture
def remote():
    made = Remote("the remote")
    yield made
    made.close()


@pytest.fixture
def prepare(remote, source):
    return lambda name, **limit: remote.prepare(source, Target(name, "cpu:0", "f32"), glance().device("cpu:0"), **limit)


def test_a_model_prepared_there_answers_here(prepare, x):
    runnable = prepare("right")
    assert np.array_equal(runnable.run({"x": x})["y"], 2 * x + 1)
    assert runnable.ran_on == {"cpu:0": 2}
    assert runnable.prepare_s > 0


def test_inputs_may_be_left_there_and_run_and_timed(remote, prepare, x):
    runnable = prepare("right")
    remote.hold("mine", {"x": x})
    outputs, run_s = runnable.run_held("mine")
    assert np.array_equal(outputs["y"], 2 * x + 1)
    assert run_s > 0
    assert len(runnable.time("mine", 7, at_most_s=60)) == 7
    assert len(runnable.time("mine", 1000, at_most_s=0)) == 1


def test_throughput_counts_what_all_instances_finish(remote, prepare, x):
    pair = [prepare("slow"), prepare("slow")]
    remote.hold("mine", {"x": x})
    cores = sorted(os.sched_getaffinity(0))[:1]
    assert remote.throughput(pair, [cores, ()], "mine", 0.2) > 0


def test_what_a_dead_child_held_is_gone_and_said_to_be(remote, prepare, x):
    old = prepare("right")
    os.kill(remote.pid, signal.SIGKILL)
    with pytest.raises(ChildDied):
        old.run({"x": x})
    new = prepare("right")  # in another child
    with pytest.raises(ChildDied, match="is gone"):
        old.run({"x": x})
    with pytest.raises(ChildDied, match="is gone"):
        old.time("mine", 1, at_most_s=1)
    old.close()  # must not release what has the same number in the new child
    assert np.array_equal(new.run({"x": x})["y"], 2 * x + 1)


def test_refusals_keep_their_type_and_target(prepare):
    with pytest.raises(PrepareRefused, match="Mul is not known") as caught:
        prepare("refuses")
    assert caught.value.target == "refuses@cpu:0/f32"


def test_a_crash_while_preparing_is_the_childs(remote, prepare):
    with pytest.raises(ChildDied, match="tensor != nullptr"):
        prepare("crashes_in_prepare")
    assert remote.pid is None


def test_a_hang_while_preparing_ends_in_time(remote, prepare):
    remote.call("empty")
    with pytest.raises(ChildTimeout):
        prepare("hangs_in_prepare", timeout_s=0.5)
    assert remote.pid is None


def test_released_runnables_are_closed_there(remote, prepare, x):
    runnable = prepare("right")
    runnable.close()
    runnable.close()
    other = prepare("right")
    assert np.array_equal(other.run({"x": x})["y"], 2 * x + 1)


def test_reaches_are_looked_for_in_the_child(remote):
    devices = [glance().device("cpu:0"), Device("gpu:0", "gpu", "on paper", 0, attributes={"pci": "1"})]
    version, reaches = remote.reaches("right", devices, timeout_s=60)
    assert version == "1.0"
    assert [(reach.backend, reach.device, reach.health) for reach in reaches] == [
        ("right", "cpu:0", "untested"), ("right", "gpu:0", "untested"),
    ]  # fmt: skip
    with pytest.raises((UnknownTarget, MissingPackage)):
        remote.reaches("tensorfast", devices, timeout_s=60)


def test_a_source_reads_back_from_json(source):
    import json

    assert source_from_json(json.loads(json.dumps(source_to_json(source)))) == source


def test_children_are_kept_for_the_next_and_emptied(source, x):
    remotes = Remotes()
    first = remotes.borrow("right@cpu:0")
    runnable = first.prepare(source, Target("right", "cpu:0", "f32"), glance().device("cpu:0"))
    pid = first.pid
    second = remotes.borrow("right@cpu:0")  # the first is taken
    assert second is not first
    remotes.give_back(first)
    remotes.give_back(second)
    again = remotes.borrow("right@cpu:0")
    assert again.pid in (pid, second.pid)
    remotes.give_back(again)
    remotes.close()
    with pytest.raises(ChildDied):
        runnable.run({"x": x})


def test_a_child_that_died_is_not_kept(x):
    remotes = Remotes()
    remote = remotes.borrow("right@cpu:0")
    remote.call("empty")
    os.kill(remote.pid, signal.SIGKILL)
    remotes.give_back(remote)
    fresh = remotes.borrow("right@cpu:0")
    assert fresh is not remote
    remotes.give_back(fresh)
    remotes.close()


def test_closing_leaves_no_descriptor(source):
    Remote("warm").close()
    before = open_descriptors()
    remotes = Remotes()
    for _ in range(2):
        borrowed = remotes.borrow("right@cpu:0")
        borrowed.prepare(source, Target("right", "cpu:0", "f32"), glance().device("cpu:0"))
        remotes.give_back(borrowed)
    remotes.close()
    assert open_descriptors() == before
