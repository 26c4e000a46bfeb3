"""Targets, and measured costs of running on them: rows of a `Profile`, keyed by what was run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from edgert.errors import UnknownTarget

Precision: TypeAlias = Literal["f64", "f32", "f16", "bf16", "i8"]
"""Arithmetic of a run. 'i8' is a quantised model's own arithmetic with its float parts at float32; 'bf16' and
'f16' let every float part compute at that precision, whatever the model says."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Outcome: TypeAlias = Literal["ok", "wrong", "refused", "crashed", "timeout", "out of memory", "slow", "untried"]
"""ok: prepared, within tolerance, timed. wrong: left the tolerance. refused: the backend said no. crashed, timeout:
what its child process did. out of memory: it wanted more than the box has. slow: dropped after its first runs, far
behind. untried: the budget ran out."""

_TARGET = re.compile(
    r"(?P<backend>[a-z0-9_.-]+)(\+(?P<variant>[a-z0-9_.-]+))?@(?P<device>([a-z][a-z0-9-]*\.)?[a-z]+:\d+)/(?P<precision>[a-z0-9]+)"
    r"(/(?P<threads>\d+)t)?"
)


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One way to run: `backend[+variant]@device/precision[/Nt]`, such as `onnxruntime+webgpu@gpu:0/f32`."""

    backend: str
    device: str
    precision: Precision
    threads: int = 0
    """CPU threads that one run uses; 0 where threads mean nothing (GPU, NPU, the reference evaluator)."""
    variant: str = ""
    """Which of the backend's own ways: '' for the plain one, else an execution provider or kernel set."""

    def __str__(self) -> str:
        variant = f"+{self.variant}" if self.variant else ""
        threads = f"/{self.threads}t" if self.threads else ""
        return f"{self.backend}{variant}@{self.device}/{self.precision}{threads}"

    def __repr__(self) -> str:
        return f"Target({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target that `str` wrote.

        Raises:
            UnknownTarget: the text has not that form.
        """
        match = _TARGET.fullmatch(text)
        if match is None or match["precision"] not in PRECISIONS:
            raise UnknownTarget(
                f"target {text!r} is malformed.",
                f"Write backend[+variant]@device/precision[/Nt], precision one of {', '.join(PRECISIONS)}, "
                "such as onnxruntime@cpu:0/f32/2t.",
            )
        return cls(
            match["backend"],
            match["device"],
            match["precision"],
            int(match["threads"] or 0),
            match["variant"] or "",
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one call, fresh input in host memory to outputs in host memory."""

    p50_s: float
    """Median over the rounds of each round's median call."""
    best_s: float
    """Fastest call seen."""
    p95_s: float
    calls: int
    """How many calls were timed."""
    rounds: int
    """In how many interleaved rounds."""
    items_per_s: float = 0.0
    """Throughput with all instances busy; 0 when not measured."""
    instances: int = 1
    """How many instances ran at once for `items_per_s`."""


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output of a target is from the reference's. Raw distances, so that any tolerance can be judged
    later.
    """

    name: str
    range_fraction: float
    """Largest absolute difference / (max - min of the reference output); inf where NaN or infinity do not match."""
    lsb: int
    """Largest difference in integer steps; 0 for float outputs without a step."""
    sqnr_db: float
    """10 log10(signal power / error power); inf when equal."""
    top1: bool
    """Same index of the maximum along the last axis, ties within the error accepted."""
    excess: float = 0.0
    """max(|difference| - relative * |reference|) over the elements, for the `Tolerance.relative` that was asked for."""
    mismatch: str = ""
    """What no tolerance forgives: another shape, dtype, text or truth value; '' when comparable."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one segment on one target."""

    target: Target
    outcome: Outcome
    reason: str = ""
    """Why not ok, for people: the backend's own words, shortened."""
    timing: Timing | None = None
    errors: tuple[OutputError, ...] = ()
    """Against `Profile.reference`; empty when not compared."""
    ran_on: Mapping[str, int] | None = None
    """Read back from the backend after preparing: what ran how much, such as {'cpu:0': 66} nodes."""
    prepare_s: float = 0.0
    memory_bytes: int = 0
    """Growth of the child's resident memory by preparing and one run; 0 when not measured."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured costs of one model (or segment) on one machine."""

    model: str
    """Digest of the model file and of what it refers to."""
    machine: str
    """`Machine.fingerprint`."""
    versions: Mapping[str, str]
    """Backend -> version at the time; a row of another version is not used."""
    samples: str
    """Digest of the inputs that were measured on, or 'synthesised:SEED'."""
    reference: str
    """What the errors are against: 'onnx', 'a target and a target that agree', or '' for none."""
    rows: tuple[Row, ...]

    def row(self, target: Target) -> Row | None:
        return next((row for row in self.rows if row.target == target), None)

    def with_row(self, row: Row) -> Profile:
        """The same profile with `row` in place of what was known of its target."""
        return replace(self, rows=(*(old for old in self.rows if old.target != row.target), row))

    def to_json(self) -> dict[str, Any]:
        rows = [row_to_json(row) for row in self.rows]
        return {**{name: getattr(self, name) for name in ("model", "machine", "samples", "reference")},
                "versions": dict(self.versions), "rows": rows}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Raises KeyError, TypeError, ValueError or UnknownTarget on malformed data; the cache measures again then."""
        return cls(**{**data, "rows": tuple(row_from_json(row) for row in data["rows"])})


def error_to_json(error: OutputError) -> dict[str, Any]:
    """JSON-able form; infinities, for which JSON has no number, become the texts 'inf' and '-inf'."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(error).items()
    }


def error_from_json(data: Mapping[str, Any]) -> OutputError:
    """The error that `error_to_json` described."""
    distances = {name: float(data[name]) for name in ("range_fraction", "sqnr_db", "excess")}
    return OutputError(**{**data, **distances})


def row_to_json(row: Row) -> dict[str, Any]:
    """JSON-able form; `row_from_json` reads it back."""
    errors = [error_to_json(error) for error in row.errors]
    return {**asdict(row), "target": str(row.target), "errors": errors}


def row_from_json(data: Mapping[str, Any]) -> Row:
    timing = data.get("timing")
    return Row(
        **{
            **data,
            "target": Target.parse(data["target"]),
            "timing": None if timing is None else Timing(**timing),
            "errors": tuple(error_from_json(error) for error in data["errors"]),
        }
    )
