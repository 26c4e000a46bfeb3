"""The script that shows where splits win."""

from __future__ import annotations

import json
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from bench.split_win import CASES, Flows, Runs, Win, show
from edgert.formats import open_model


@pytest.mark.parametrize("name", CASES)
def test_the_models_are_whole(name, tmp_path):
    make, *_ = CASES[name]
    assert open_model(make(tmp_path / f"{name}.onnx")).graph.outputs


def test_a_win_is_met_when_its_interval_reaches_the_limit_and_says_when_nothing_checked_it(capsys):
    met, missed = (Win("x", "a -> b", "a", high - 0.5, high - 1, high, 2.0, True) for high in (2.1, 1.9))
    show([met, missed], as_json=True)
    assert [win["met"] for win in json.loads(capsys.readouterr().out)["wins"]] == [True, False]
    show([Win("x", "a -> b", "a", 3.0, 2.9, 3.1, 2.0, verified=False)], as_json=False)
    assert "met, NOT VERIFIED" in capsys.readouterr().out


def test_a_visit_times_at_least_one_call():
    class Model:
        def run(self, feed):
            return feed

    assert len(Runs(Model(), {}).visit(5, 60.0)) == 5
    assert len(Runs(Model(), {}).visit(5, 0.0)) >= 1


def test_a_flow_has_requests_in_flight_and_tells_the_time_between_answers():
    class Waiting:
        """Answers when the last request has come."""

        def __init__(self):
            self.plan, self.futures = SimpleNamespace(instances=(0, 1, 2)), []

        def submit(self, feed):
            self.futures.append(Future())
            if len(self.futures) == 6:
                for future in self.futures:
                    future.set_result(feed)
            return self.futures[-1]

    model = Waiting()
    (seconds,) = Flows(model, {}).visit(1, 60.0)
    assert len(model.futures) == 6
    assert seconds > 0
