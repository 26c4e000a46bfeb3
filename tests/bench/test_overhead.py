"""The script that measures what edgert adds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.overhead import Figure, interval, run_figure, show


def test_the_interval_holds_the_centre_in_95_of_100_repetitions_in_spite_of_outliers():
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        values = 5.0 + rng.standard_t(2, 24)  # heavy tails, as of a machine that is shared
        _, low, high = interval(list(values))
        held += low <= 5.0 <= high
    assert 930 <= held <= 985


def test_one_wild_round_moves_the_figure_little():
    calm = list(np.random.default_rng(1).normal(7.0, 0.1, 20))
    assert interval([*calm[:-1], 1e6])[0] == pytest.approx(interval(calm)[0], abs=0.1)


def test_a_figure_is_met_when_its_interval_reaches_the_limit(capsys):
    met, missed = (Figure("x", "what", low + 1, low, low + 2, 10.0, "us", 1.0, 0.5) for low in (9.5, 10.5))
    show([met, missed], as_json=True)
    assert [figure["met"] for figure in json.loads(capsys.readouterr().out)["figures"]] == [True, False]
    show([missed], as_json=False)
    assert "MISSED" in capsys.readouterr().out


def test_calls_by_hand_and_through_edgert_are_compared(monkeypatch):
    pytest.importorskip("onnxruntime", reason="the one that is called by hand")
    pytest.importorskip("onnx", reason="edgert.load reads the model")
    monkeypatch.setattr("bench.overhead.CALLS", 5)
    figure = run_figure(8)
    assert figure.low <= figure.value <= figure.high
    assert figure.first > 0 < figure.second
