"""A model larger than its memory limit, in processes of its own."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import edgert
from bench.big_model import build, compare
from edgert.devices import memory
from edgert.devices.probe import glance
from edgert.errors import Infeasible

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


def test_the_limit_is_kept_and_the_answer_is_the_plain_runs(tmp_path):
    outcome = compare(build(tmp_path / "big.onnx", 160 << 20, wide=1024), 180_000_000, tmp_path, runs=2, budget_s=20.0)
    planned, again, plain = outcome.held
    assert outcome.range_fraction <= 1e-4
    assert max(planned.own_bytes, again.own_bytes, again.tree_bytes) <= 1.15 * outcome.limit_bytes
    assert planned.segments == again.segments > 2
    assert planned.verified
    assert plain.own_bytes > outcome.limit_bytes  # so the limit is one


def test_a_block_that_does_not_fit_is_refused_with_the_figures(tmp_path):
    here = memory.resident().now_bytes
    with pytest.raises(Infeasible, match=r"block 'product0' alone needs \d+ bytes .* too few") as caught:
        edgert.load(build(tmp_path / "big.onnx", 64 << 20), memory_limit_bytes=here + (90 << 20), machine=glance(),
                    targets=["openvino@*"])  # fmt: skip
    assert caught.value.limit == "memory"
    assert caught.value.excess is not None
    assert np.isfinite(caught.value.excess)
    assert caught.value.excess > 0
