"""The ONNX standard's own test suite (`onnx.backend.test`) through `edgert.load(...).run(...)`.

    python tests/suite/onnx_suite.py --shard 0/2 --report shard0.json [--only REGEX] [--own-tolerance] [--given-inputs]
    python tests/suite/onnx_suite.py --merge shard0.json shard1.json [--fewest 2010] [--most-reference 330]

Each case is loaded and run once, by the suite's own runner and with its own comparison. `load` is told the suite's
tolerance, or (`--own-tolerance`) nothing at all; it makes up the inputs that it checks on, unless `--given-inputs`
hands it the suite's. The report says for each case which backend answered and whether its numbers had been verified;
the merge counts, lists what failed with the reason, and fails when fewer passed than asked or when a verified answer
was wrong.

An answer that the suite rejects and edgert's default tolerance allows is 'noise': the suite compares element by
element, also those of a Fourier transform that are zero but for rounding.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx.backend.base
from onnx.backend.test.runner import Runner

import edgert
import edgert.formats
from edgert.verify import compare, judge

TOLERANCE = edgert.Tolerance(relative=1e-3, absolute=1e-7, lsb=0, quantised_sqnr_db=math.inf)
"""The suite's own, element by element."""
BUDGET_S = 0.3
"""What is timed here is tiny; the order of backends is not what the suite asks about."""


class Noise(AssertionError):
    """The suite rejects an answer that edgert's default tolerance allows."""


@cache
def machine() -> edgert.Machine:
    """Probed once: a new cache knows none."""
    return edgert.probe()


class Case(onnx.backend.base.BackendRep):
    """One loaded model; remembers the receipts of its runs."""

    def __init__(self, model: onnx.ModelProto, tolerance: edgert.Tolerance | None, given_inputs: bool) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="edgert-suite-"))
        self._path = self._folder / "model.onnx"
        self._path.write_bytes(model.SerializeToString())
        self._given_inputs = given_inputs
        self._tolerance = tolerance
        self._model = None if given_inputs else self._load()
        self.receipts: list[edgert.Receipt] = []
        self.notes: tuple[str, ...] = ()

    def _load(self, samples: list[dict[str, Any]] | None = None) -> edgert.Model:
        """Planned anew, and not as the code of another day remembered it."""
        return edgert.load(
            self._path, budget_s=BUDGET_S, samples=samples, tolerance=self._tolerance, machine=machine(),
            cache_dir=self._folder / "cache",
        )  # fmt: skip

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        if self._model is None:
            names = [value.name for value in edgert.formats.open_model(self._path).graph.inputs]
            samples = [dict(zip(names, inputs, strict=False))]
            self._model = self._load(samples)
        result = self._model.run(
            list(inputs) if len(self._model.inputs) != 1 else {self._model.inputs[0].name: inputs[0]}
        )
        self.receipts.append(result.receipt)
        self.notes = self._model.plan.notes
        return tuple(result.values())

    def close(self) -> None:
        if self._model is not None:
            self._model.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Backend(onnx.backend.base.Backend):
    """edgert as the suite's runner wants it."""

    given_inputs = False
    tolerance: edgert.Tolerance | None = TOLERANCE
    last: Case | None = None

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> Case:
        cls.last = Case(model, cls.tolerance, cls.given_inputs)
        return cls.last

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


class Comparison(Runner):
    """The suite's own comparison, also for sequences of scalars, which it fails to walk through."""

    @classmethod
    def assert_similar_outputs(
        cls, ref_outputs: Any, outputs: Any, rtol: float, atol: float, model_dir: str | None = None
    ) -> None:
        scalars = isinstance(ref_outputs, np.ndarray) and isinstance(outputs, np.ndarray) and not ref_outputs.ndim
        pair = ([ref_outputs], [outputs]) if scalars else (ref_outputs, outputs)
        try:
            super().assert_similar_outputs(*pair, rtol, atol, model_dir)
        except AssertionError as error:
            if any(_reason(*each) for each in zip(*pair, strict=True)):
                raise
            raise Noise(str(error)) from error


def _reason(expected: Any, got: Any) -> str:
    """Why the default tolerance does not allow an output; '' when it does."""
    dtype = str(got.dtype) if isinstance(got, np.ndarray) else None
    errors = compare({"output": expected}, {"output": got}, {})
    return judge(errors, edgert.Tolerance(), "f32", "f32", {"output": dtype})


def cases() -> Iterator[tuple[str, Any]]:
    """Name and callable of every case for the CPU, in the suite's order."""
    runner = Comparison(Backend, __name__)
    for items in runner._test_items.values():
        for name, item in sorted(items.items()):
            if name.endswith("_cpu"):
                yield name.removesuffix("_cpu"), item.func


def run_one(name: str, function: Any) -> dict[str, Any]:
    """Outcome of one case: pass, skip, error (a typed error), noise, wrong (an answer that the suite rejects)."""
    import unittest

    Backend.last = None
    started_s = time.monotonic()
    outcome, message = "pass", ""
    try:
        function(None)
    except unittest.SkipTest as error:
        outcome, message = "skip", str(error)
    except edgert.EdgertError as error:
        outcome, message = "error", f"{type(error).__name__}: {error}"
    except AssertionError as error:
        outcome, message = "noise" if isinstance(error, Noise) else "wrong", " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001 - anything untyped is a finding of the suite
        outcome, message = "untyped", f"{type(error).__name__}: {error}"
    last = Backend.last
    receipts = last.receipts if last is not None else []
    if last is not None:
        last.close()
    return {
        "name": name,
        "outcome": outcome,
        "message": message[:600],
        "backend": receipts[-1].targets[-1].backend if receipts else "",
        "verified": all(receipt.verified for receipt in receipts) if receipts else False,
        "notes": list(last.notes) if last is not None else [],
        "seconds": round(time.monotonic() - started_s, 3),
    }


def run_shard(shard: str, report: Path, only: str) -> None:
    """Run every n-th case; the report is written as it grows, so that a crash costs nothing."""
    index, count = (int(part) for part in shard.split("/"))
    chosen = [case for position, case in enumerate(cases()) if position % count == index and re.search(only, case[0])]
    print(f"shard {shard}: {len(chosen)} cases", flush=True)
    results = []
    for position, (name, function) in enumerate(chosen):
        results.append(run_one(name, function))
        if position % 100 == 99 or position == len(chosen) - 1:
            report.write_text(json.dumps(results))
            counts = collections.Counter(result["outcome"] for result in results)
            print(f"shard {shard}: {position + 1}/{len(chosen)} {dict(counts)}", flush=True)


def merge(reports: Sequence[Path], fewest: int, most_reference: int) -> int:
    """Print counts and everything that did not pass; 0 when the marks are met."""
    results = [result for report in reports for result in json.loads(report.read_text())]
    results.sort(key=lambda result: result["name"])
    outcomes = collections.Counter(result["outcome"] for result in results)
    answered = collections.Counter(result["backend"] for result in results if result["outcome"] == "pass")
    silent = [result for result in results if result["outcome"] == "wrong" and result["verified"]]
    for result in results:
        if result["outcome"] != "pass":
            verified = "verified" if result["verified"] else "not verified"
            where = f"{result['backend'] or 'none'}, {verified}"
            print(f"{result['outcome']:<8} {result['name']} [{where}]: {result['message'][:300]}")
    print(f"cases: {len(results)}; outcomes: {dict(outcomes)}; answered by: {dict(answered)}")
    print(f"wrong though verified: {len(silent)}")
    passed = outcomes["pass"]
    good = passed >= fewest and not silent and answered["reference"] <= most_reference
    print(f"{passed} passed, {len(results) - passed} failed")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--report", type=Path, default=Path("onnx-suite.json"))
    parser.add_argument("--only", default="")
    parser.add_argument("--given-inputs", action="store_true", help="samples= as the suite has them")
    parser.add_argument("--own-tolerance", action="store_true", help="edgert's default tolerance, not the suite's")
    parser.add_argument("--merge", type=Path, nargs="+")
    parser.add_argument("--fewest", type=int, default=0)
    parser.add_argument("--most-reference", type=int, default=10**9)
    options = parser.parse_args()
    if options.merge:
        return merge(options.merge, options.fewest, options.most_reference)
    logging.disable(logging.WARNING)
    Backend.given_inputs = options.given_inputs
    Backend.tolerance = None if options.own_tolerance else TOLERANCE
    run_shard(options.shard, options.report, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
