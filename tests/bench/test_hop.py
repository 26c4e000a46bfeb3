"""The measurement of hops runs, and every array that it times arrives with the numbers that were written."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("onnx", reason="the producer is a model")
pytest.importorskip("onnxruntime", reason="the producer runs in it")

from bench import hop


def test_every_way_is_timed_at_every_size(monkeypatch, capsys):
    monkeypatch.setattr(hop, "SIZES", (4096, 1 << 20))
    hops = hop.measure(1)
    assert {(each.way, each.size_bytes) for each in hops} == {
        *((way, size) for way in ("ipc", "inproc", hop.PLAIN) for size in hop.SIZES),
        (hop.SWEPT, hop.SIZES[0]),
    }
    assert all(0 < each.p10_us <= each.p50_us <= each.p90_us for each in hops)
    hop.show(hops, as_json=True)
    assert set(json.loads(capsys.readouterr().out)["flatness"]) == {"ipc", "inproc"}


def test_a_wrong_number_is_not_timed():
    with pytest.raises(AssertionError, match="came in place of"):
        hop._checked(1.0, 5.0, 3)
