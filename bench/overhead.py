"""What edgert adds on top of what it stands on, as ratios and differences within one run.

    python -m bench.overhead [--rounds 30] [--model mobilenetv2.onnx] [--json]

    run      Model.run, receipt included, minus the same backend called by hand, on a tiny model       <= 10 us
    import   import numpy, edgert minus import numpy, each in a fresh interpreter                      <= 40 ms
    load     the second edgert.load of a model / its backend's own preparation, in fresh interpreters  <= 1.3
    probe    `edgert probe` from the cache, from the shell                                             <= 1 s

Each pair is interleaved: what slows the machine for a while slows both sides.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgert.race import student_975

CALLS = 300
"""Calls a round of the tiny model: a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: two medians, and what is asked of their difference, ratio or of the first alone."""

    name: str
    what: str
    value: float
    low: float
    high: float
    """Bounds of the 95% interval of `value` over the rounds."""
    limit: float
    unit: str
    first: float
    second: float
    """Medians over the rounds of edgert and of what it is compared with (0 when with nothing), in seconds."""

    @property
    def met(self) -> bool:
        """Whether the interval reaches the limit."""
        return self.low <= self.limit


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the middle half, and its 95% interval: a shared machine has outliers (Tukey & McLaughlin 1963).

    Args:
        values: at least 8, one a round.
    """
    ordered, cut = sorted(values), len(values) // 4
    middle = ordered[cut : len(ordered) - cut]
    winsorised = [min(max(value, middle[0]), middle[-1]) for value in ordered]
    error = statistics.stdev(winsorised) / (len(middle) / len(ordered) * math.sqrt(len(ordered)))
    mean, half = statistics.fmean(middle), student_975(len(middle) - 1) * error
    return mean, mean - half, mean + half


def run_figure(rounds: int) -> Figure:
    """`Model.run` against the backend by hand on the bundled digits network."""
    import numpy as np
    import onnxruntime

    import edgert
    from edgert.data import path

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path("digits_f32.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.zeros((1, 1, 8, 8), np.float32)}
    names = [output.name for output in session.get_outputs()]
    with edgert.load(path("digits_f32.onnx"), targets=["onnxruntime@cpu:0/f32/1t"]) as model:
        pairs = [(_median_call(lambda: model.run(feed)), _median_call(lambda: session.run(names, feed)))
                 for _ in range(rounds)]  # fmt: skip
    values = interval([1e6 * (ours - theirs) for ours, theirs in pairs])
    return _figure("run", "Model.run - onnxruntime by hand, tiny model", values, (10.0, "us"), pairs)


def _median_call(call: Callable[[], object]) -> float:
    times_s = []
    for _ in range(CALLS):
        started_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s)


def import_figure(rounds: int) -> Figure:
    """What `import edgert` adds to `import numpy`; whole interpreters."""
    ours = "import numpy, edgert"
    _fresh(ours)  # compiles what is not compiled yet
    pairs = [(_fresh(ours), _fresh("import numpy")) for _ in range(rounds)]
    values = interval([1e3 * (first - second) for first, second in pairs])
    return _figure("import", "import numpy, edgert - import numpy", values, (40.0, "ms"), pairs)


def load_figure(rounds: int, model: Path, cache: Path) -> Figure:
    """A load from the cache against the chosen backend preparing the same target by hand, both in fresh interpreters.

    Imports are done before, on both sides (edgert's own are lazy: the first load of a process also imports what it
    needs); each side times itself.
    """
    library, theirs = _by_hand(model, cache)
    setup = f"{library}; import edgert; edgert.load; import edgert.planning"
    ours = f"edgert.load({str(model)!r}, cache_dir={str(cache)!r})"
    pairs = [(_timed(ours, setup), _timed(theirs, library)) for _ in range(rounds)]
    values = interval([first / second for first, second in pairs])
    return _figure("load", f"second load of {model.name} / its backend's own preparation", values, (1.3, "x"), pairs)


def _by_hand(model: Path, cache: Path) -> tuple[str, str]:
    """Import of the planned backend's library, and code that prepares the target by its own calls alone."""
    import edgert

    with edgert.load(model, cache_dir=cache) as loaded:
        target = loaded.plan.targets[0]
    if target.backend == "onnxruntime":
        return "import onnxruntime as o", (
            "s = o.SessionOptions(); "
            f"s.intra_op_num_threads = {target.threads}; s.inter_op_num_threads = 1; "
            "s.add_session_config_entry('session.intra_op.allow_spinning', '0'); "
            f"o.InferenceSession({str(model)!r}, s, providers=['CPUExecutionProvider'])"
        )
    if target.backend == "openvino":
        hint = {"bf16": "bf16", "f16": "f16"}.get(target.precision, "f32")
        return "import openvino", (
            "c = openvino.Core(); "
            f"c.compile_model({str(model)!r}, 'CPU', {{'INFERENCE_PRECISION_HINT': {hint!r}, 'NUM_STREAMS': 1, "
            f"'INFERENCE_NUM_THREADS': {target.threads}, 'ENABLE_CPU_PINNING': False, "
            f"'CACHE_DIR': {str(cache / 'by_hand')!r}}}).create_infer_request()"
        )
    return "from ai_edge_litert.interpreter import Interpreter", (
        f"Interpreter(model_path={str(model)!r}, num_threads={target.threads}).allocate_tensors()"
    )


def probe_figure(rounds: int) -> Figure:
    """`edgert probe` from a warm cache, process start and end included."""
    command = [sys.executable, "-c", "from edgert.cli import main; main()", "probe"]
    subprocess.run(command, check=True, capture_output=True)
    times_s = [_wall(command) for _ in range(rounds)]
    pairs = [(time_s, 0.0) for time_s in times_s]
    return _figure("probe", "edgert probe, from the cache", interval(times_s), (1.0, "s"), pairs)


def _figure(
    name: str,
    what: str,
    values: tuple[float, float, float],
    limit: tuple[float, str],
    pairs: Sequence[tuple[float, float]],
) -> Figure:
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Figure(name, what, *values, *limit, first, second)


def _fresh(code: str) -> float:
    return _wall([sys.executable, "-c", code])


def _wall(command: Sequence[str]) -> float:
    started_s = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started_s


def _timed(code: str, setup: str) -> float:
    """Seconds that the code takes inside a fresh interpreter, its start and `setup` not counted."""
    timing = "import time, sys\n{}\nt = time.perf_counter()\n{}\nsys.stdout.write(str(time.perf_counter() - t))"
    done = subprocess.run(
        [sys.executable, "-c", timing.format(setup, code)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def measure(rounds: int, model: Path | None, cache: Path) -> list[Figure]:
    """All figures; the load's only where a model is given."""
    figures = [run_figure(rounds), import_figure(rounds), probe_figure(max(5, rounds // 3))]
    if model is not None:
        figures.append(load_figure(max(8, rounds // 3), model, cache))
    return figures


def show(figures: Sequence[Figure], as_json: bool) -> None:
    """A table, or JSON."""
    if as_json:
        document: Mapping[str, Any] = {"figures": [{**asdict(figure), "met": figure.met} for figure in figures]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    for figure in figures:
        sys.stdout.write(
            f"{figure.name:<7} {figure.what:<62} {figure.value:8.3g} {figure.unit:<2} "
            f"({figure.low:.3g} to {figure.high:.3g})  limit {figure.limit:g}: {'met' if figure.met else 'MISSED'}\n"
        )


def main() -> None:
    """Parse, measure, show."""
    parser = argparse.ArgumentParser(description="What edgert adds on top of what it stands on.")
    parser.add_argument("--rounds", type=int, default=30, help="pairs a figure, at least 8")
    parser.add_argument("--model", type=Path, help="for the second load; the zoo's MobileNetV2, say")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGERT_CACHE"] = folder
        show(measure(max(8, options.rounds), options.model and options.model.absolute(), Path(folder)), options.json)


if __name__ == "__main__":
    main()
