"""`Plan`: which segment runs on which target, what that costs, how it was checked, and what to fall back on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from edgert.graph import Format, Quantization, Value
from edgert.profile import (
    OutputError,
    Precision,
    Row,
    Target,
    error_from_json,
    error_to_json,
    row_from_json,
    row_to_json,
)

Objective: TypeAlias = Literal["latency", "throughput"]

FORMAT = 1
"""Version of the JSON form."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a target's answer may be from the reference."""

    range_fraction: float = 1e-4
    """Floats at the model's own precision: largest difference / range of the output."""
    lsb: int = 1
    """Quantised integers: steps."""
    sqnr_db: float = 35.0
    """Floats at a lower precision than the model's own."""
    quantised_sqnr_db: float = 30.0
    """Float outputs of a quantised model at its own precision, beyond `lsb`. Kernels of one integer arithmetic differ
    by a rounding here and there, which adds up over the layers: ONNX Runtime with and without its graph optimiser gives
    34 dB on a 52-layer MobileNetV2, ONNX Runtime against OpenVINO 31.6."""
    same_top1: bool = True
    """At a lower precision, also the same index of the maximum."""
    relative: float | None = None
    """When set, in place of the above for floats: every float element within `absolute` + `relative` *
    |reference|, as in numpy.allclose. Stricter near zero, where a fraction of the range allows noise."""
    absolute: float = 0.0
    """Goes with `relative`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A convex set of blocks run as one piece on one target."""

    target: Target
    nodes: tuple[str, ...] = ()
    """Names of its nodes; empty for the whole model."""
    inputs: tuple[str, ...] = ()
    """Names of the values it reads; for the whole model its inputs."""
    outputs: tuple[str, ...] = ()
    """Names of the values it makes for others."""
    measured_s: float = 0.0
    """Median of one run of it alone; 0 when it was not measured apart from the plan."""
    errors: tuple[OutputError, ...] = ()
    """Of its outputs, fed with the reference's values; empty when it was not compared apart from the plan."""
    cause: str = ""
    """Why it is on its target."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A segment with cores of its own."""

    segment: int
    """Index into `Plan.segments`."""
    cores: tuple[int, ...] = ()
    """Logical CPUs; empty when not pinned."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """The values that one segment hands to another."""

    source: int
    """Index of the producing segment."""
    sink: int
    """Index of the consuming segment; always greater than `source`."""
    values: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Controls:
    """Inputs whose values decide what kernels do (an axis, a shape, scales, a count, a branch), and the ones on which
    the plan was checked. Any other value is checked when it first comes.
    """

    names: tuple[str, ...]
    """Of the inputs; empty where nothing could be checked on made-up inputs: the first request's then serve."""
    checked: tuple[str, ...]
    """Digest of each set of their values that the plan was checked on, by `samples.digest_of`."""
    tolerance: Tolerance = field(default_factory=Tolerance)
    """That the plan was checked with."""


@dataclass(frozen=True, slots=True)
class Residency:
    """Which segments are in memory when, in a plan whose model is larger than its memory limit: they are loaded, run
    and released in turn.
    """

    limit_bytes: int
    """What the process may hold resident, everything counted."""
    base_bytes: int
    """Of that, what it was expected to hold without a model: the application, edgert and the library."""
    held: tuple[tuple[int, ...], ...]
    """For each segment of `Plan.segments` the indices of those held while it runs, itself among them. One that is in
    every set is never released; one that is not next is released before the next begins."""
    weights_bytes: tuple[int, ...]
    """What each segment holds while it is loaded, as the target holds it (some copy the file's weights)."""
    peak_bytes: int = 0
    """The most that a run held in the trial, beyond `base_bytes`; 0 when it was not measured."""

    @property
    def kept(self) -> frozenset[int]:
        """Segments that are never released."""
        return frozenset(range(len(self.held))).intersection(*map(frozenset, self.held))

    def text(self) -> str:
        """For people: the limit, and how the segments share it."""
        kept = self.kept
        ahead = sum(len(set(own) - kept - {index}) > 0 for index, own in enumerate(self.held))
        peak = f" ({self.peak_bytes / 1e6:.0f} MB of them were held in the trial)" if self.peak_bytes else ""
        turns = f"{len(self.held)} segments are loaded, run and released in turn" if len(self.held) > 1 else "all fits"
        stay = f"; {len(kept)} of them stay" if kept and len(self.held) > 1 else ""
        read = f"; beside {ahead} of them the next one is read ahead" if ahead else ""
        return (
            f"memory: at most {self.limit_bytes / 1e6:.0f} MB, {self.base_bytes / 1e6:.0f} MB of it for all but the "
            f"model, the rest for its segments{peak}: {turns}{stay}{read}"
        )


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A block of a model that was looked at in pieces: where it runs, and what it would take elsewhere."""

    name: str
    """Of its first node."""
    ops: tuple[str, ...]
    """Of its nodes, each once, in their order."""
    nodes: int
    """How many."""
    segment: int
    """Index into `Plan.segments`."""
    joined: str
    """Names of the rules that keep its nodes together; '' for a single one."""
    predicted_s: float
    """Its share of its segment's time, as the solver had it: alone, less the call; 0 when it was not measured."""
    alone_s: Mapping[str, float]
    """Target -> fastest run of it alone, the call included."""
    refused: Mapping[str, str]
    """Target -> why it does not run there: 'refused: ...', 'wrong: ...', as a row of a profile has it."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How the plan's answer was checked."""

    reference: str
    """'onnx' (its evaluator), 'X and Y agree', 'known answers', or '' when nothing could check it."""
    errors: tuple[OutputError, ...] = ()
    reason: str = ""
    """Why there is no reference, or which one was used and why."""
    disputed: str = ""
    """Which other reference says otherwise, and how far it is off; '' for none."""

    @property
    def verified(self) -> bool:
        """Whether a reference confirmed the numbers and none contradicted them."""
        return bool(self.reference) and not self.disputed


@dataclass(frozen=True)
class Plan:
    """Immutable; JSON in and out. `id` changes whenever anything in it does."""

    model: str
    """Digest of the model file."""
    machine: str
    """Fingerprint of the machine that it was made for."""
    versions: Mapping[str, str]
    """Backend -> version that it was measured with."""
    objective: Objective
    precision: str
    """What the user asked for: 'own', 'any' or one of `PRECISIONS`."""
    format: Format
    """Of the model file."""
    own_precision: Precision
    """The model's own: 'i8' when it carries quantised arithmetic, else that of its floats."""
    inputs: tuple[Value, ...]
    """The model's signature."""
    outputs: tuple[Value, ...]
    segments: tuple[Segment, ...]
    instances: tuple[Instance, ...]
    transfers: tuple[Transfer, ...] = ()
    fallbacks: tuple[Target, ...] = ()
    """For the whole model, best first, down to plain CPU; tried when a target fails."""
    verification: Verification = field(default_factory=lambda: Verification(""))
    measured_s: float = 0.0
    """p50 of one request, end to end; 0 when the plan was made without measuring (`budget_s=0`)."""
    items_per_s: float = 0.0
    """Measured throughput with every instance busy; 0 when not measured."""
    candidates: tuple[Row, ...] = ()
    """Everything that was considered, fastest first, each with its outcome and reason."""
    optional_inputs: tuple[str, ...] = ()
    """Inputs that a caller may omit. Those that are not among `inputs` have their values in the model file, and keep
    them."""
    budget_s: float = 0.0
    """Seconds that it was made with."""
    complete: bool = False
    """Whether every candidate was tried: more time would settle the order more surely, and find no other target."""
    notes: tuple[str, ...] = ()
    """What a reader should know: what was not tried, a cache that was thrown away, ..."""
    values: tuple[Value, ...] = ()
    """Types and shapes of the values that cross from one segment to another."""
    predicted_s: float = 0.0
    """What the solver expected of one request; 0 when nothing was predicted."""
    tidied: str = ""
    """Digest of the tidied-up model that the segments are cut from; '' for the model itself. A node that no segment
    names was then folded into its neighbours."""
    blocks: tuple[PlacedBlock, ...] = ()
    """Of a model that was looked at in pieces, in an order in which they can run; empty where no split was tried."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Input -> the shape that everything was measured at; empty where no input has a free dimension. The answer is
    right at any other, but another plan might be faster there: see `edgert.buckets`."""
    controls: Controls | None = None
    """Set when the model has inputs that steer it; None for ordinary models, which pay nothing."""
    residency: Residency | None = None
    """Set when the segments take turns in memory; None when all of them are held."""

    @cached_property
    def id(self) -> str:
        """12 hex digits over the whole content."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def targets(self) -> tuple[Target, ...]:
        """Of the segments, in order."""
        return tuple(segment.target for segment in self.segments)

    def explain(self) -> str:
        """For people: what runs where, how it was checked, and why each other candidate lost."""
        speed = f"p50 {1e3 * self.measured_s:.3f} ms" if self.measured_s else "not timed"
        if self.items_per_s:
            speed += f", {self.items_per_s:.1f} items/s with {len(self.instances)} instance(s)"
        check = self.verification
        targets = self.targets if self.residency is None else dict.fromkeys(self.targets)
        lines = [f"plan {self.id}, for {self.objective}: {', '.join(map(str, targets))} ({speed})"]
        lines.append(f"checked: {check.reference or 'no'}{f' ({check.reason})' if check.reason else ''}")
        lines += [f"disputed: {check.disputed}"] if check.disputed else []
        lines += [
            f"  output {error.name!r}: off by at most {error.range_fraction:.2g} of its range, "
            f"SQNR {error.sqnr_db:.1f} dB"
            for error in check.errors
        ]
        if self.residency is not None:
            lines += self._turn_lines(self.residency)
        elif len(self.segments) > 1:
            lines += self._segment_lines()
        lines.append("candidates:")
        lines += [f"  {_candidate(row)}" for row in self.candidates]
        lines.append(f"fallbacks: {', '.join(map(str, self.fallbacks)) or 'none'}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _turn_lines(self, residency: Residency) -> list[str]:
        """The limit, then a line for each segment's turn."""
        lines = [residency.text()]
        for index, segment in enumerate(self.segments if len(self.segments) > 1 else ()):
            held = ", ".join(str(each + 1) for each in residency.held[index])
            lines.append(
                f"  {index + 1}. {len(segment.nodes)} nodes from {segment.nodes[0]!r} to {segment.nodes[-1]!r}, "
                f"{residency.weights_bytes[index] / 1e6:.1f} MB; in memory: {held}"
            )
        return lines

    def _segment_lines(self) -> list[str]:
        """One line a segment."""
        lines = [f"segments: {len(self.segments)}, predicted {1e3 * self.predicted_s:.3f} ms"]
        for number, segment in enumerate(self.segments, 1):
            off = max((error.range_fraction for error in segment.errors), default=None)
            checked = "not checked alone" if off is None else f"off by at most {off:.2g} of the range"
            lines.append(
                f"  {number}. {segment.target}: {len(segment.nodes)} nodes from {segment.nodes[0]!r} to "
                f"{segment.nodes[-1]!r}, {1e3 * segment.measured_s:.3f} ms alone, {checked}. {segment.cause}".rstrip()
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; `from_json` reads it back."""
        return {"plan_format": FORMAT, "id": self.id, **self._content()}

    def _content(self) -> dict[str, Any]:
        content = asdict(self)
        for segment, data in zip(self.segments, content["segments"], strict=True):
            data["target"] = str(segment.target)
        content["candidates"] = [row_to_json(row) for row in self.candidates]
        content["verification"]["errors"] = [error_to_json(error) for error in self.verification.errors]
        content["fallbacks"] = [str(target) for target in self.fallbacks]
        if self.residency is None:
            del content["residency"]  # plans without one read as they did before there were any
        if self.controls is None:
            del content["controls"]
        return content

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` described.

        Raises:
            KeyError, TypeError, ValueError, UnknownTarget: the data is malformed (the cache measures again then).
        """
        if data["plan_format"] != FORMAT:
            raise ValueError(f"plan has format {data['plan_format']!r}, this edgert reads {FORMAT}")
        fields = {name: value for name, value in data.items() if name not in ("plan_format", "id")}
        check = fields["verification"]
        fields |= {
            "inputs": tuple(value_from_json(item) for item in data["inputs"]),
            "outputs": tuple(value_from_json(item) for item in data["outputs"]),
            "segments": tuple(_segment(item) for item in data["segments"]),
            "instances": tuple(Instance(item["segment"], tuple(item["cores"])) for item in data["instances"]),
            "transfers": tuple(Transfer(**{**item, "values": tuple(item["values"])}) for item in data["transfers"]),
            "fallbacks": tuple(Target.parse(text) for text in data["fallbacks"]),
            "verification": Verification(**{**check, "errors": tuple(error_from_json(e) for e in check["errors"])}),
            "candidates": tuple(row_from_json(item) for item in data["candidates"]),
            "optional_inputs": tuple(data["optional_inputs"]),
            "notes": tuple(data["notes"]),
            "values": tuple(value_from_json(item) for item in data["values"]),
            "blocks": tuple(PlacedBlock(**{**item, "ops": tuple(item["ops"])}) for item in data["blocks"]),
            "shapes": {name: tuple(shape) for name, shape in data["shapes"].items()},
            "controls": _controls(data["controls"]) if "controls" in data else None,
            "residency": _residency(data["residency"]) if "residency" in data else None,
        }
        plan = cls(**fields)
        if plan.id != data["id"]:
            raise ValueError(f"plan says it is {data['id']}, its content is {plan.id}")
        return plan


@dataclass(frozen=True, slots=True)
class Receipt:
    """What every result carries: how it was really made."""

    plan: str
    """`Plan.id`."""
    targets: tuple[Target, ...]
    """That really ran, in order; not the plan's when degraded."""
    degraded: bool
    """True when a fallback answered."""
    verified: bool
    """True when the targets' numbers were checked against a reference."""
    run_s: float
    """From the checked inputs to the outputs."""
    reason: str = ""
    """Why it is degraded."""
    turns: int = 0
    """How many segments took turns in memory for this answer; 0 when all that ran was held."""
    elsewhere: str = ""
    """The shapes that the plan was measured at, such as 'x 1x16', where the request's are in another bucket: the answer
    is right, but another plan might give it sooner. '' where they are in the plan's own."""
    throttled: str = ""
    """Why the board slows its processor down now, and whether a cheaper plan runs meanwhile; '' when it does not."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; `from_json` reads it back."""
        return {**asdict(self), "targets": [str(target) for target in self.targets]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Receipt:
        """The receipt that `to_json` described; fields of a later edgert are left out.

        Raises:
            KeyError, TypeError, UnknownTarget: the data is malformed.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        kept = {name: value for name, value in data.items() if name in known}
        return cls(**{**kept, "targets": tuple(Target.parse(text) for text in data["targets"])})


def _controls(item: Mapping[str, Any]) -> Controls:
    return Controls(tuple(item["names"]), tuple(item["checked"]), Tolerance(**item["tolerance"]))


def _residency(item: Mapping[str, Any]) -> Residency:
    held = tuple(tuple(own) for own in item["held"])
    return Residency(item["limit_bytes"], item["base_bytes"], held, tuple(item["weights_bytes"]), item["peak_bytes"])


def _candidate(row: Row) -> str:
    time = f"{1e3 * row.timing.p50_s:9.3f} ms" if row.timing else " " * 12
    return f"{row.target!s:<36} {time}  {row.outcome:<8} {row.reason}".rstrip()


def _segment(item: Mapping[str, Any]) -> Segment:
    return Segment(
        Target.parse(item["target"]), tuple(item["nodes"]), tuple(item["inputs"]), tuple(item["outputs"]),
        item["measured_s"], tuple(OutputError(**error) for error in item["errors"]), item["cause"],
    )  # fmt: skip


def value_from_json(item: Mapping[str, Any]) -> Value:
    """The value that `dataclasses.asdict` described."""
    quantization = item["quantization"]
    if quantization is not None:
        quantization = Quantization(
            tuple(quantization["scales"]), tuple(quantization["zero_points"]), quantization["axis"]
        )
    shape = None if item["shape"] is None else tuple(item["shape"])
    return Value(item["name"], item["dtype"], shape, item["kind"], quantization)
