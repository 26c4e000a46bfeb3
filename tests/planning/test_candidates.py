"""What is worth trying for a model on a machine, and what is left out with which reason."""

from __future__ import annotations

import dataclasses

import pytest

from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.errors import OptionError, UnknownTarget
from edgert.formats import open_model
from edgert.machine import Device, Reach
from edgert.planning.candidates import candidates, thread_counts

pytest.importorskip("onnxruntime", reason="its targets are looked at")

GPU = Device("gpu:0", "gpu", "a device on paper", 0, driver="simulated")


@pytest.fixture
def source(line):
    graph = open_model(line).graph
    return Source(line, "onnx", graph.inputs, graph.outputs, "f32")


@pytest.fixture
def machine():
    seen = glance()
    reaches = (Reach("onnxruntime", "cpu:0"), Reach("reference", "cpu:0"), Reach("simulated", "gpu:0"))
    return dataclasses.replace(seen, devices=(*seen.devices, GPU), reaches=reaches)


def texts(targets):
    return [str(target) for target in targets]


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (0, (1,))]
)
def test_thread_counts_are_the_powers_of_two_and_all_cores(cores, counts):
    assert thread_counts(cores) == counts


def test_the_formats_own_library_on_the_cpu_comes_first_with_most_threads(source, machine):
    found = candidates(source, machine).targets
    threads = [target.threads for target in found if target.backend == "onnxruntime" and not target.variant]
    assert (found[0].backend, found[0].device) == ("onnxruntime", "cpu:0")
    assert threads == sorted(threads, reverse=True)
    assert found[-1].device == "gpu:0"


def test_another_precision_on_all_cores_comes_before_fewer_threads(source, machine):
    cores = dataclasses.replace(machine.device("cpu:0"), cores=(0, 1))
    machine = dataclasses.replace(
        machine,
        devices=(cores,),
        reaches=(Reach("onnxruntime", "cpu:0"), Reach("onnxruntime", "cpu:0", variant="spin")),
    )
    found = [(target.variant, target.threads) for target in candidates(source, machine, "any").targets]
    assert found[:3] == [("", 2), ("spin", 2), ("", 1)]


def test_the_last_resort_is_left_out_with_its_reason(source, machine):
    found = candidates(source, machine)
    assert "reference" not in {target.backend for target in found.targets}
    (row,) = [row for row in found.left_out if row.target.backend == "reference"]
    assert (row.outcome, row.reason[:11]) == ("untried", "last resort")


def test_an_emulated_device_is_used_only_when_named(source, machine):
    emulated = dataclasses.replace(machine, devices=(*machine.devices[:-1], dataclasses.replace(GPU, software=True)))
    assert all(target.device != "gpu:0" for target in candidates(source, emulated).targets)
    named = candidates(source, emulated, wanted=["simulated@gpu:0/f32"])
    assert texts(named.targets) == ["simulated@gpu:0/f32"]


@pytest.mark.parametrize(
    ("own", "asked", "allowed"),
    [("f32", "own", {"f32"}), ("f32", "f32", {"f32"}), ("i8", "own", {"i8"}), ("f32", "any", None)],
)
def test_no_precision_below_the_models_own_unless_asked(source, machine, own, asked, allowed):
    found = candidates(dataclasses.replace(source, precision=own), machine, asked)
    precisions = {target.precision for target in found.targets}
    assert allowed is None or precisions == allowed
    for row in found.left_out:
        if row.target.backend != "reference":
            assert "precision" in row.reason


def test_an_unknown_precision_is_refused(source, machine):
    with pytest.raises(OptionError, match="'own', 'any'"):
        candidates(source, machine, "f31")


def test_a_precision_that_nothing_has_is_refused_rather_than_answered_at_another(source, machine):
    with pytest.raises(UnknownTarget, match=r"precision 'i8'.*f32"):
        candidates(source, machine, "i8")


def test_a_precision_that_only_an_emulated_device_has_is_refused_with_its_name(source, machine):
    emulated = dataclasses.replace(
        machine, devices=(dataclasses.replace(GPU, software=True),), reaches=(Reach("simulated", "gpu:0"),)
    )
    with pytest.raises(UnknownTarget, match=r"simulated@gpu:0/f32: an emulated device.*targets="):
        candidates(source, emulated, "f32")


def test_the_last_resort_answers_at_the_precision_that_was_asked_for(source, machine):
    alone = dataclasses.replace(machine, reaches=(Reach("reference", "cpu:0"),))
    assert candidates(source, alone, "f32").targets == ()


def test_what_failed_its_conformance_run_is_no_candidate(source, machine):
    lying = dataclasses.replace(machine, reaches=(Reach("onnxruntime", "cpu:0", health="wrong"), *machine.reaches[1:]))
    assert "onnxruntime" not in {target.backend for target in candidates(source, lying).targets}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(["onnxruntime@cpu:0/f32/1t"], {"onnxruntime@cpu:0/f32/1t"}),
     (["onnxruntime@cpu:0/f32/*1t"], {"onnxruntime@cpu:0/f32/1t"}),
     (["reference@*"], {"reference@cpu:0/f32"}), (["reference@cpu:0/f32"], {"reference@cpu:0/f32"}),
     (["*@gpu:0/*", "reference@*"], {"simulated@gpu:0/f32", "reference@cpu:0/f32"})],
)  # fmt: skip
def test_wanted_targets_and_patterns_are_obeyed(source, machine, wanted, expected):
    assert set(texts(candidates(source, machine, wanted=wanted).targets)) == expected


def test_a_target_without_threads_means_any_number_of_them(source, machine):
    found = candidates(source, machine, wanted=["onnxruntime@cpu:0/f32"]).targets
    assert {target.threads for target in found} == set(thread_counts(len(machine.devices[0].cores)))


def test_what_matches_nothing_is_refused_with_what_there_is(source, machine):
    with pytest.raises(UnknownTarget, match="simulated@gpu:0/f32"):
        candidates(source, machine, wanted=["openvina@*"])
