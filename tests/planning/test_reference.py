"""Whom to believe: the evaluator, two libraries that agree against it, or nobody."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgert.devices.backend import Source
from edgert.devices.probe import glance
from edgert.formats import open_model
from edgert.plan import Tolerance
from edgert.planning.choose import check, split_cores
from edgert.planning.reference import Checker, Reference, settle
from edgert.planning.trials import Course, Trial
from edgert.profile import Row, Target

RIGHT, WRONG, OTHER = ({"y": np.float32([[1, 2, 3, number]])} for number in (4, 5, 6))


@pytest.fixture
def checker(line):
    graph = open_model(line).graph
    course = Course(Source(line, "onnx", graph.inputs, graph.outputs, "f32"), glance(), [], None, time.monotonic(), 0.0)
    return Checker(graph, course, Tolerance())


def trial(backend, answer, device="cpu:0", precision="f32", variant=""):
    answers = [] if answer is None else [answer]
    return Trial(Row(Target(backend, device, precision, 1, variant), "ok"), None, answers)


ONNX = Reference("onnx", (RIGHT,))
NONE = Reference("", reason="it took too long")


def settled(evaluated, checker, *trials):
    return settle(evaluated, trials, checker, "f32")


def test_one_library_that_agrees_confirms_the_evaluator(checker):
    assert settled(ONNX, checker, trial("a", RIGHT), trial("b", WRONG), trial("c", WRONG)).name == "onnx"


def test_one_library_alone_does_not_outweigh_the_evaluator(checker):
    assert settled(ONNX, checker, trial("a", WRONG)).name == "onnx"
    assert settled(ONNX, checker, trial("a", WRONG), trial("a", WRONG, variant="v")).name == "onnx"


def test_two_that_share_no_kernels_outweigh_it_and_the_dispute_is_told(checker):
    found = settled(ONNX, checker, trial("a", WRONG), trial("b", WRONG))
    assert found.name == "a and b agree"
    assert "evaluator says otherwise" in found.disputed
    assert found.answers == (WRONG,)


def test_without_the_evaluator_two_libraries_that_agree_are_the_reference(checker):
    found = settled(NONE, checker, trial("a", WRONG), trial("b", RIGHT), trial("c", RIGHT))
    assert (found.name, found.answers) == ("b and c agree", (RIGHT,))
    assert found.reason == "it took too long"


def test_two_kernels_of_one_library_are_better_than_none(checker):
    found = settled(NONE, checker, trial("litert", RIGHT), trial("litert", RIGHT, variant="xnnpack"))
    assert found.name == "litert and litert+xnnpack agree"


def test_where_nobody_agrees_nothing_is_verified_and_the_reason_is_kept(checker):
    found = settled(NONE, checker, trial("a", RIGHT), trial("b", WRONG), trial("c", OTHER))
    assert found.name == ""
    assert found.reason == "it took too long; a and b and c differ"


def test_where_one_library_ran_it_is_the_yardstick_and_proves_nothing(checker):
    found = settled(NONE, checker, trial("a", RIGHT), trial("b", None))
    assert (found.name, found.answers) == ("", (RIGHT,))
    assert "only a ran" in found.reason


@pytest.mark.parametrize("odd", [{"device": "gpu:0"}, {"precision": "bf16"}])
def test_only_cpus_at_the_models_own_precision_have_a_say(checker, odd):
    assert settled(NONE, checker, trial("a", RIGHT), trial("b", RIGHT, **odd)).name == ""


def test_without_answers_nothing_is_called_wrong(checker):
    trials = [trial("a", RIGHT)]
    assert check(trials, Reference("", reason="none"), checker) == trials


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [((0, 1), 1, [(0,), (1,)]), ((0, 1), 2, [()]), ((0, 1, 2, 3), 2, [(0, 1), (2, 3)]), ((0, 1, 2), 2, [()]),
     ((0, 1, 2, 3, 4), 2, [(0, 1), (2, 3)]), ((), 0, [()]), ((3,), 1, [()]), ((0, 1), 0, [()])],
)  # fmt: skip
def test_cores_are_split_into_as_many_disjoint_sets_as_fit(cores, threads, expected):
    assert split_cores(cores, threads) == expected


def test_a_variant_with_the_same_kernels_confirms_nothing(checker):
    assert settled(NONE, checker, trial("a", RIGHT), trial("a", RIGHT, variant="spin")).name == ""
    assert settled(NONE, checker, trial("a", RIGHT), trial("a", RIGHT, variant="other")).name == "a and a+other agree"


def test_a_variant_with_the_same_kernels_is_not_said_to_differ(checker):
    found = settled(NONE, checker, trial("a", RIGHT), trial("a", RIGHT, variant="spin"))
    assert found.reason == "it took too long; only a ran"


def test_noise_on_a_quantised_model_does_not_make_the_evaluator_answer(checker):
    noisy = {"y": np.float32([[1.3, 2, 3, 3.7]])}
    found = settle(ONNX, [trial("a", noisy, precision="i8")], checker, "i8")
    assert (found.name, found.answers) == ("", (noisy,))
    assert "noise" in found.reason


def test_a_quantised_model_that_is_plainly_wrong_leaves_the_evaluator_in_force(checker):
    nonsense = {"y": np.float32([[-4, 1, 0, -1]])}
    assert settle(ONNX, [trial("a", nonsense, precision="i8")], checker, "i8").name == "onnx"
