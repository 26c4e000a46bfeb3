"""Who goes first when requests wait: by the service's own reckoning, and at a daemon in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.errors import OptionError, Overloaded
from edgert.serving.service import Limits
from tests.serving.conftest import put
from tests.serving.test_service import Box
from tests.test_client import Daemon, own  # noqa: F401 - a fixture

X = np.zeros((1, 8, 8, 1), np.int8)
GATED = """
import pathlib, time
from edgert.serving.service import Service
inner = Service._outcome
def gated(self, request):
    while not pathlib.Path({!r}).exists():
        time.sleep(0.005)
    return inner(self, request)
Service._outcome = gated
from edgert.cli import main
main()
"""
"""A daemon whose runs begin when a file is there."""


class Queue(Box):
    """One worker, which is busy until the gate opens; then what waited is answered in turn."""

    def __init__(self, folder: Path, waiting: int) -> None:
        super().__init__(folder, Limits(waiting=waiting, workers=1))
        self.order: list[str] = []
        self.all = threading.Semaphore(0)
        self.put("a", "running", 0)
        assert self.models["a"].begun.wait(60)

    def put(self, model: str, label: str, priority: int) -> None:
        def done(_: object) -> None:
            self.order.append(label)
            self.all.release()

        self.service.submit(model, {"image": X}, None, done, priority=priority)

    def answered(self, count: int) -> list[str]:
        """The order in which all were answered."""
        self.gate.set()
        for _ in range(count):
            assert self.all.acquire(timeout=60)
        return self.order


@pytest.fixture
def queue(folder: Path) -> Iterator[Queue]:
    made = Queue(folder, 40)
    yield made
    made.close()


def test_a_higher_priority_overtakes_and_equals_keep_their_order(queue: Queue) -> None:
    for label, priority in (("low 1", -5), ("low 2", -5), ("high 1", 7), ("low 3", -5), ("high 2", 7), ("middle", 0)):
        queue.put("a", label, priority)
    assert queue.answered(7) == ["running", "high 1", "high 2", "middle", "low 1", "low 2", "low 3"]


def test_a_higher_priority_of_another_model_overtakes_too(queue: Queue) -> None:
    for label in ("low 1", "low 2"):
        queue.put("a", label, 0)
    for label in ("high 1", "high 2"):
        queue.put("b", label, 1)
    assert queue.answered(5) == ["running", "high 1", "high 2", "low 1", "low 2"]


@pytest.mark.parametrize("patient", ["a", "b"])
def test_what_is_always_overtaken_gets_a_tenth(queue: Queue, patient: str) -> None:
    """Of the same model, and of another one."""
    for number in range(3):
        queue.put(patient, f"low {number}", 0)
    for number in range(36):
        queue.put("a", f"high {number}", 1)
    order = queue.answered(40)
    places = [order.index(f"low {number}") for number in range(3)]
    assert places == sorted(places)
    for number, place in enumerate(places, 1):
        assert 9 * number <= place <= 10 * number + 1


def test_a_queue_full_of_lower_priorities_does_not_keep_a_higher_one_out(folder: Path) -> None:
    queue = Queue(folder, 2)
    for label in ("low 1", "low 2"):
        queue.put("a", label, 0)
    with pytest.raises(Overloaded):
        queue.put("a", "low 3", 0)
    for label in ("high 1", "high 2"):
        queue.put("a", label, 1)
    with pytest.raises(Overloaded) as refused:
        queue.put("a", "high 3", 1)
    assert refused.value.waiting == 2
    assert queue.answered(5) == ["running", "high 1", "high 2", "low 1", "low 2"]
    queue.close()


def test_a_clients_high_priority_overtakes_what_waits_at_the_daemon(own: Daemon, tmp_path: Path) -> None:  # noqa: F811
    gate = tmp_path / "gate"
    put("digits_f32.tflite", own.folder, "other.tflite")
    own.start(program=GATED.format(str(gate)))
    order: list[str] = []
    with edgert.connect(own.endpoint, timeout_s=120) as client, edgert.connect(own.endpoint, timeout_s=120) as hasty:
        futures = []

        def ask(each: edgert.Client, label: str, priority: int) -> None:
            future = each.model("digits").submit(X, priority=priority)
            future.add_done_callback(lambda _: order.append(label))
            futures.append(future)

        ask(client, "first", 0)
        while not any(run["model"] == "digits" for run in client.status()["running"]):
            pass
        for number in range(30):
            ask(client, f"low {number}", 0)
        while client.status()["waiting"] < 31:
            pass
        ask(client, "high", 50)
        while client.status()["waiting"] < 32:
            pass
        late = hasty.submit("digits", X, timeout_s=0.0)  # nobody waits for it any more: it is not run
        gate.touch()
        for future in futures:
            assert future.result(timeout=120).receipt.degraded is False
        with pytest.raises(edgert.errors.EdgertError):
            late.result(timeout=120)
    assert order.index("high") <= 2, order  # two answers that are given at once may change places
    assert sorted(order) == sorted(["first", "high", *(f"low {number}" for number in range(30))])


@pytest.mark.parametrize("priority", [101, -101, 0.5, "high", None, True, float("nan")])
def test_what_is_no_priority_is_told_before_it_is_sent(own: Daemon, priority: object) -> None:  # noqa: F811
    own.start()
    with edgert.connect(own.endpoint, timeout_s=60) as client, pytest.raises(OptionError, match="priority"):
        client.submit("digits", X, priority=priority)  # type: ignore[arg-type]
