"""Hypothesis strategies for the ground floor's data."""

from __future__ import annotations

from typing import get_args

from hypothesis import strategies as st

from edgert.graph import Quantization, Value
from edgert.machine import BackendInfo, Device, Link, Machine, Reach
from edgert.plan import Instance, Plan, Residency, Segment, Transfer, Verification
from edgert.profile import PRECISIONS, Outcome, OutputError, Row, Target, Timing
from edgert.tensor import BITS

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
words = st.from_regex(r"[a-z0-9_.-]{1,8}", fullmatch=True)
devices_ids = st.from_regex(r"(cpu|gpu|npu):[0-9]", fullmatch=True)
seconds = st.floats(0, 1e6)
counts = st.integers(0, 1 << 40)

targets = st.builds(
    Target, words, devices_ids, st.sampled_from(PRECISIONS), st.integers(0, 64), st.one_of(st.just(""), words)
)
timings = st.builds(Timing, seconds, seconds, seconds, counts, counts, seconds, st.integers(1, 8))
output_errors = st.builds(
    OutputError,
    names,
    st.floats(0, allow_nan=False),
    counts,
    st.floats(allow_nan=False),
    st.booleans(),
    st.floats(0, allow_nan=False),
    names,
)
rows = st.builds(
    Row,
    targets,
    st.sampled_from(get_args(Outcome)),
    names,
    st.none() | timings,
    st.lists(output_errors, max_size=2).map(tuple),
    st.none() | st.dictionaries(devices_ids, counts, max_size=2),
    seconds,
    counts,
)
shapes = st.lists(st.integers(0, 1 << 40) | names | st.just(""), max_size=4).map(tuple)
quantizations = st.builds(
    Quantization,
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=3).map(tuple),
    st.lists(st.integers(-128, 255), min_size=1, max_size=3).map(tuple),
    st.none() | st.integers(0, 3),
)
values = st.builds(
    Value, names, st.none() | st.sampled_from(list(BITS)), st.none() | shapes,
    st.sampled_from(["tensor", "sparse", "sequence", "optional", "map"]), st.none() | quantizations,
)  # fmt: skip


def tuples(strategy, at_least=0):
    return st.lists(strategy, min_size=at_least, max_size=at_least + 2).map(tuple)


plans = st.builds(
    Plan,
    model=names,
    machine=names,
    versions=st.dictionaries(words, names, max_size=2),
    objective=st.sampled_from(["latency", "throughput"]),
    precision=st.sampled_from(["own", "any", *PRECISIONS]),
    format=st.sampled_from(["onnx", "tflite"]),
    own_precision=st.sampled_from(PRECISIONS),
    inputs=tuples(values),
    outputs=tuples(values),
    segments=tuples(
        st.builds(Segment, targets, tuples(names), tuples(names), tuples(names), seconds, tuples(output_errors), names),
        1,
    ),
    instances=tuples(st.builds(Instance, st.integers(0, 2), tuples(st.integers(0, 7))), 1),
    transfers=tuples(st.builds(Transfer, st.integers(0, 2), st.integers(0, 2), tuples(names), counts)),
    fallbacks=tuples(targets),
    verification=st.builds(Verification, names, tuples(output_errors), names),
    measured_s=seconds,
    items_per_s=seconds,
    candidates=tuples(rows),
    optional_inputs=tuples(names),
    notes=tuples(names),
    values=tuples(values),
    predicted_s=seconds,
    residency=st.none() | st.builds(
        Residency, counts, counts, tuples(tuples(st.integers(0, 7))), tuples(counts), counts
    ),
)  # fmt: skip

devices = st.builds(
    Device, devices_ids, st.sampled_from(["cpu", "gpu", "npu"]), names, counts, tuples(st.integers(0, 255)),
    tuples(words), names, st.booleans(), st.none() | seconds, st.dictionaries(words, seconds, max_size=2),
    st.dictionaries(words, names, max_size=2),
)  # fmt: skip
machines = st.builds(
    Machine, words, tuples(devices), tuples(st.builds(BackendInfo, words, names, names, names)),
    tuples(st.builds(Reach, words, devices_ids, words, st.sampled_from(["ok", "wrong", "failed", "untested"]), names)),
    tuples(st.builds(Link, devices_ids, devices_ids, seconds, seconds)), names,
)  # fmt: skip
