"""A board that throttles, and what its models do about it."""

from __future__ import annotations

import queue
from dataclasses import replace

import numpy as np
import pytest

import edgert
from edgert.execution.climate import Climate, cooler
from edgert.execution.pipeline import Pipeline
from edgert.model import Model
from edgert.plan import Instance
from edgert.profile import Row, Target, Timing
from tests.devices.boards import Board

PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
ONE, TWO, FOUR = (Target.parse(f"onnxruntime@cpu:0/f32/{count}t") for count in (1, 2, 4))


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path / "board").write(PI, "0\n")


@pytest.fixture
def climate(board):
    return Climate(board.root, every_s=0.005)


@pytest.fixture
def planned(line, machine_of, tmp_path):
    """A plan on four threads, with one and two threads checked and timed, and what it takes to run it."""
    machine = machine_of("onnxruntime")
    with edgert.load(line, machine=machine, budget_s=0.5, targets=["onnxruntime@cpu:0/f32/1t"]) as model:
        plan, source = model.plan, model._source
    (known,) = (row for row in plan.candidates if row.target == ONE)
    rows = [replace(known, target=target, timing=Timing(1.0, 1.0, 1.0, 1, 1)) for target in (FOUR, TWO, ONE)]
    (segment,) = plan.segments
    plan = replace(plan, segments=(replace(segment, target=FOUR),), candidates=tuple(rows), fallbacks=())
    return plan, source, machine


def test_listeners_hear_when_it_begins_and_when_it_is_over(board, climate):
    heard = queue.Queue()
    stop = climate.heed(heard.put)
    board.write(PI, "4\n")
    assert heard.get(timeout=30) == "throttled"
    assert climate.throttled == "throttled"
    board.write(PI, "40000\n")
    assert heard.get(timeout=30) == ""
    stop()
    stop()


def test_who_comes_while_the_board_throttles_hears_at_once(board, climate):
    heard, late = queue.Queue(), queue.Queue()
    stops = [climate.heed(heard.put)]
    board.write(PI, "4\n")
    heard.get(timeout=30)
    stops.append(climate.heed(late.put))
    assert late.get_nowait() == "throttled"
    for stop in stops:
        stop()


def test_a_listener_that_fails_keeps_no_other_from_hearing(board, climate):
    heard = queue.Queue()
    stops = [climate.heed(lambda _: 1 / 0), climate.heed(heard.put)]
    board.write(PI, "4\n")
    assert heard.get(timeout=30) == "throttled"
    for stop in stops:
        stop()


def test_a_board_that_tells_nothing_costs_no_thread(tmp_path):
    climate = Climate(tmp_path)
    climate.heed(lambda _: None)()
    assert climate._stop is None


def test_a_model_runs_on_fewer_threads_until_the_board_is_cool(board, climate, planned, x):
    plan, source, machine = planned
    changed = queue.Queue()
    with Model(Pipeline(plan, source, machine), source, machine) as model:
        model.heed(climate, lambda plan: Pipeline(plan, source, machine))
        stop = climate.heed(changed.put)  # hears after the model
        before = model.run(x)
        assert (before.receipt.targets, before.receipt.throttled) == ((FOUR,), "")
        board.write(PI, "8\n")
        changed.get(timeout=30)
        hot = model.run(x)
        assert hot.receipt.targets == (TWO,)
        assert hot.receipt.throttled == f"soft temperature limit: {TWO} instead of {FOUR}"
        assert hot.receipt.verified == before.receipt.verified
        np.testing.assert_array_equal(hot["y"], before["y"])
        board.write(PI, "80000\n")
        changed.get(timeout=30)
        cool = model.run(x)
        assert (cool.receipt.targets, cool.receipt.throttled) == ((FOUR,), "")
        stop()


def test_a_model_that_is_closed_hears_no_more(climate, planned, x):
    plan, source, machine = planned
    model = Model(Pipeline(plan, source, machine), source, machine)
    model.heed(climate, lambda plan: Pipeline(plan, source, machine))
    model.close()
    assert climate._listeners == {}
    assert climate._stop is None


def test_half_of_the_instances_run_before_threads_are_taken_away(planned):
    plan, _, _ = planned
    plan = replace(plan, instances=tuple(Instance(0, (core,)) for core in range(4)))
    cheap = cooler(plan)
    assert cheap is not None
    assert (len(cheap.instances), cheap.targets) == (2, (FOUR,))


def test_there_is_nothing_cheaper_than_one_thread_or_than_what_was_wrong(planned):
    plan, _, _ = planned
    (segment,) = plan.segments
    assert cooler(replace(plan, segments=(replace(segment, target=ONE),))) is None
    wrong = tuple(Row(row.target, "wrong") for row in plan.candidates)
    assert cooler(replace(plan, candidates=wrong)) is None
