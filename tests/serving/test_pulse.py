"""When the daemon's watchdog is fed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgert.serving.pulse import Pulse
from edgert.serving.service import Limits
from tests.serving.test_service import Box

LIMIT_S = 30.0


@pytest.fixture
def box(folder: Path) -> Iterator[Box]:
    made = Box(folder, Limits(workers=2))
    yield made
    made.close()


def pulse(box: Box) -> Pulse:
    """Of a service whose clock stands still unless the test says otherwise; nobody listens at its endpoint."""
    return Pulse("ipc:///nonexistent/nobody.sock", box.service, LIMIT_S)


def test_a_run_beyond_the_limit_is_no_progress_but_for_a_model_that_is_slow_by_nature(box: Box) -> None:
    box.ask("a")
    assert box.models["a"].begun.wait(60)
    began_s = box.service._now_s()
    box.service._now_s = lambda: began_s + LIMIT_S + 1
    beat = pulse(box)
    assert beat._trouble() == "model a runs since 31 s"
    with box.roster.lend("a") as loaded:
        loaded.proof_s = LIMIT_S / 2
    assert [run.model for run in box.service.running() if beat._hangs(run)] == []


def test_slow_and_unproven_models_are_not_asked(box: Box) -> None:
    with box.roster.lend("a") as slow, box.roster.lend("b") as other:
        assert sorted(pulse(box)._samples()) == ["a", "b"]
        slow.proof_s = 5.0
        other.unproven = "it refused zeros"
        assert pulse(box)._samples() == {}
