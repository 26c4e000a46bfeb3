"""Requests between front ends and models: limits, turns, deadlines, the end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.errors import Closed, DeadlineExceeded, EdgertError, ModelNotServed, Overloaded, ShapeMismatch
from edgert.result import Result
from edgert.serving.folder import Folder
from edgert.serving.repository import Repository
from edgert.serving.roster import Roster
from edgert.serving.service import Limits, Service
from tests.serving.conftest import load, put

ZEROS = {"image": np.zeros((1, 8, 8, 1), np.int8)}


class Gated:
    """A real model whose runs wait for a gate."""

    def __init__(self, model: Any, gate: threading.Event, ran: list[str], name: str) -> None:
        self._model, self._gate, self._ran, self._name = model, gate, ran, name
        self.begun = threading.Event()

    def submit(self, inputs: Any, **wishes: Any) -> Future[Result]:
        self.begun.set()
        assert self._gate.wait(60)
        self._ran.append(self._name)
        return self._model.submit(inputs, **wishes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Box:
    """Two models behind a service, and a gate before their runs."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        for name in ("a", "b"):
            put("digits_i8.tflite", folder, f"{name}.tflite")
        self.roster = Roster(Folder(folder, now_s=lambda: 1e9), Repository(folder.with_name("store")), load)
        self.roster.refresh()
        self.gate, self.ran = threading.Event(), []
        self.models: dict[str, Gated] = {}
        for name in ("a", "b"):
            with self.roster.lend(name) as loaded:
                self.models[name] = loaded.model = Gated(loaded.model, self.gate, self.ran, name)
        self.service = Service(self.roster, limits)
        self.outcomes: queue.SimpleQueue[Result | EdgertError] = queue.SimpleQueue()

    def ask(self, name: str, deadline_s: float | None = None, inputs: Any = ZEROS, priority: int = 0) -> None:
        self.service.submit(name, inputs, deadline_s, self.outcomes.put, priority=priority)

    def close(self) -> None:
        self.gate.set()
        self.service.close()
        self.roster.close()


@pytest.fixture
def box(folder: Path) -> Iterator[Box]:
    made = Box(folder, Limits(waiting=2, waiting_bytes=10_000, workers=2))
    yield made
    made.close()


def test_a_request_is_answered_with_its_receipt(box: Box) -> None:
    box.gate.set()
    box.ask("a")
    got = box.outcomes.get(timeout=60)
    assert isinstance(got, Result)
    assert not got.receipt.degraded
    assert box.service.counts().answered == 1


def test_what_is_wrong_with_the_input_comes_back_as_itself(box: Box) -> None:
    box.gate.set()
    box.ask("a", inputs={"image": np.zeros((1, 8, 8), np.int8)})
    assert isinstance(box.outcomes.get(timeout=60), ShapeMismatch)


def test_more_than_may_wait_is_refused_at_once_and_does_not_run(box: Box) -> None:
    box.ask("a")
    assert box.models["a"].begun.wait(60)
    box.ask("a")
    box.ask("a")
    with pytest.raises(Overloaded) as refused:
        box.ask("a")
    assert refused.value.waiting == 2
    box.ask("b")  # another model's queue is its own
    box.gate.set()
    assert {type(box.outcomes.get(timeout=60)) for _ in range(4)} == {Result}
    assert (len(box.ran), box.service.counts().refused) == (4, 1)


def test_inputs_may_fill_so_many_bytes_only(box: Box) -> None:
    box.ask("a", inputs={"image": np.zeros(9_000, np.int8)})
    with pytest.raises(Overloaded, match="bytes"):
        box.ask("b", inputs={"image": np.zeros(9_000, np.int8)})


def test_one_models_run_holds_no_other_up(box: Box) -> None:
    for name in ("a", "b"):
        box.ask(name)
        assert box.models[name].begun.wait(60)


def test_models_take_turns(folder: Path) -> None:
    box = Box(folder, Limits(waiting=2, workers=1))
    box.ask("a")
    assert box.models["a"].begun.wait(60)
    for name in ("a", "a", "b", "b"):
        box.ask(name)
    box.gate.set()
    for _ in range(5):
        box.outcomes.get(timeout=60)
    box.close()
    assert box.ran == ["a", "a", "b", "a", "b"]


def test_a_request_whose_deadline_passed_while_it_waited_does_not_run(box: Box) -> None:
    box.ask("a")
    assert box.models["a"].begun.wait(60)
    box.ask("a", deadline_s=time.monotonic())
    box.gate.set()
    outcomes = [box.outcomes.get(timeout=60) for _ in range(2)]
    assert [type(outcome) for outcome in outcomes] == [Result, DeadlineExceeded]
    assert len(box.ran) == 1


def test_draining_answers_what_was_taken_and_refuses_the_rest(box: Box) -> None:
    box.ask("a")
    box.ask("a")
    done: list[bool] = []
    drain = threading.Thread(target=lambda: done.append(box.service.drain(60)))
    drain.start()
    while True:  # until it has begun to drain
        try:
            box.ask("b")
        except Closed:
            break
        except Overloaded:
            pass
    box.gate.set()
    drain.join()
    assert done == [True]
    assert box.service.waiting() == 0
    assert {type(box.outcomes.get(timeout=60)) for _ in range(2)} == {Result}


def test_a_run_that_hangs_ends_the_drain_by_its_limit(box: Box) -> None:
    box.ask("a")
    assert box.models["a"].begun.wait(60)
    assert not box.service.drain(0.0)
    assert [run.model for run in box.service.running()] == ["a"]


def test_an_unknown_model_is_told_at_once(box: Box) -> None:
    with pytest.raises(ModelNotServed):
        box.ask("c")
