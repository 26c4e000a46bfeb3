"""A .tflite where nothing reads it: held whole or refused, never cut."""

from __future__ import annotations

import pytest

import edgert
from edgert import data, formats
from edgert.errors import Infeasible, MissingPackage

pytest.importorskip("ai_edge_litert", reason="the interpreter says what goes in and comes out")


@pytest.fixture
def no_schema(monkeypatch):
    """As on a 32-bit board, whose tflite-runtime brings no schema."""

    def refuse(_path):
        raise MissingPackage("there is no schema here.", "pip install ai-edge-litert", package="ai-edge-litert")

    monkeypatch.setattr(formats, "open_model", refuse)


def test_a_model_that_cannot_be_cut_is_refused_with_the_figures(no_schema, tmp_path):
    with pytest.raises(Infeasible, match="1000000 bytes as a whole") as raised:
        edgert.load(data.path("digits_i8.tflite"), memory_limit_bytes=1_000_000, cache_dir=tmp_path)
    assert raised.value.limit == "memory"
    assert raised.value.excess > 0


def test_a_model_that_fits_as_a_whole_runs_within_the_limit(no_schema, tmp_path):
    with edgert.load(
        data.path("digits_i8.tflite"), memory_limit_bytes=1 << 40, cache_dir=tmp_path, budget_s=1
    ) as model:
        assert model.plan.residency is None
