"""A bundle on the machine at hand: does it fit, and if not, which of its fallbacks does.

A bundle fits where the architecture, the CPU and every device that its plan uses are those that it was made for, and
the libraries of its targets have the versions that they were measured with. A device that the plan does not use may
differ. Elsewhere only a fallback may answer: one on the CPU at full precision, or on a device that is the same, whose
library is here in the same version. Its result is then degraded and not verified, and says which field differs.

Needs no reader of models and no planner.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edgert import bundle, store
from edgert.bundle import Bundle
from edgert.devices import BACKENDS
from edgert.devices import probe as probing
from edgert.devices.backend import Source
from edgert.errors import CacheUnwritable, EdgertError, ModelUnsupported
from edgert.execution.segments import Parts
from edgert.machine import Device, Machine
from edgert.measure import REMOTES
from edgert.plan import Instance, Plan, Segment, Verification
from edgert.profile import Target

__all__ = ["Unpacked", "differences", "unpack"]

_log = logging.getLogger(__name__)
_PREPARE_LIMIT_S = 120.0
_LOW = ("bf16", "f16")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What it takes to run a bundle here."""

    plan: Plan
    """The bundle's own; or one made of its fallbacks, when `reason` is set."""
    source: Source
    """The whole model."""
    parts: Parts
    """The model files of the plan's segments."""
    machine: Machine
    """The one at hand."""
    compiled: Path | None
    """Where backends may keep what they compile."""
    reason: str
    """Why a fallback answers; '' when the plan itself does."""
    release: Callable[[], None]
    """To be called when nothing reads the files any more."""


class _Laid(Parts):
    """The segments' files of a bundle, laid down and checked already."""

    def __init__(self, model: Source, read: Bundle, files: Path) -> None:
        super().__init__(model, files)
        self._files = {
            segment.nodes: files / name for segment, name in zip(read.plan.segments, read.segments, strict=True)
        }

    def file(self, nodes: Sequence[str], keep: Sequence[str] = ()) -> Path:
        return self._files[tuple(nodes)]


def unpack(path: Path, machine: Machine | None, folder: Path | None, *, apart: bool) -> Unpacked:
    """Read, check and lay down a bundle, and choose what of it runs here.

    Args:
        path: the bundle.
        machine: the one at hand; else it is looked at.
        folder: the cache; None for a temporary folder that `release` removes.
        apart: prepare CPU targets once in a child before they may enter this process; remembered in the cache.

    Raises:
        ModelNotFound, ModelCorrupt: the file is at fault.
        ModelUnsupported: a later edgert made it; or it was made for another machine, and no fallback fits.
    """
    read = bundle.read(path)
    here = _here(read, folder) if machine is None else machine
    found = differences(read, here)
    files, release = _lay_down(read, folder)
    try:
        source = _source(read, files)
        parts = _Laid(source, read, files)
        compiled = store.subfolder(folder, "compiled", read.plan.model[:16])
        reasons = [f"made for another machine: {'; '.join(found)}"] if found else []
        for plan in _rungs(read, here, own=not found, reasons=reasons):
            try:
                if apart:
                    _prove(plan, parts, here, store.subfolder(folder, "bundles", read.key))
            except EdgertError as error:
                reasons.append(f"{' and '.join(map(str, plan.targets))}: {error.message}")
                continue
            if reasons:
                _log.warning("%s: fallback %s: %s", path.name, plan.targets[0], "; ".join(reasons))
            return Unpacked(plan, source, parts, here, compiled, "; ".join(reasons), release)
    except BaseException:
        release()
        raise
    release()
    raise ModelUnsupported(
        f"bundle {path} does not run here: {'; '.join(reasons)}.",
        "Make one for this machine: `edgert compile MODEL` on it, or elsewhere with its --machine and --profile.",
        differences=list(found),
    )


def _here(read: Bundle, folder: Path | None) -> Machine:
    """The machine at hand; what takes time to look at (GPUs, NPUs, others' backends) only when the plan names it."""
    seen = probing.known_or_glance(folder)
    known = {device.id for device in seen.devices}
    asked = (*read.plan.targets, *read.plan.fallbacks)
    glanced = all(target.device in known and target.backend in BACKENDS for target in asked)
    return seen if glanced else probing.probe(cache_dir=folder)


# ---- does it fit


def differences(read: Bundle, here: Machine) -> tuple[str, ...]:
    """How this machine differs, field by field, from what the bundle's plan needs; empty when it fits."""
    plan, wanted = read.plan, read.machine
    found = []
    if wanted.architecture != here.architecture:
        found.append(f"architecture: made for {wanted.architecture}, here {here.architecture}")
    used = {target.device for target in plan.targets}
    for device in wanted.devices:
        if device.kind == "cpu" or device.id in used:
            found += _device_differences(device, here)
    known = {device.id for device in wanted.devices}
    found += [
        f"{device.id}: made for a machine without it, here {device.name}"
        for device in here.devices
        if device.kind == "cpu" and device.id not in known
    ]
    found += [f"{name}: {text}" for name in _backends(plan.targets) if (text := _version_difference(name, plan, here))]
    found += [text for target in plan.targets if (text := _unhealthy(target, here))]
    return tuple(found)


def _backends(targets: Sequence[Target]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(target.backend for target in targets))


def _device_differences(wanted: Device, here: Machine) -> Iterator[str]:
    """The fields of `Machine.fingerprint`."""
    got = next((device for device in here.devices if device.id == wanted.id), None)
    if got is None:
        yield f"{wanted.id}: made for {wanted.name}, here there is none"
        return
    fields = {
        "name": (wanted.name, got.name),
        "cores": (_text(wanted.cores), _text(got.cores)),
        "driver": (wanted.driver or "none", got.driver or "none"),
        "memory": (f"{wanted.memory_bytes >> 30} GiB", f"{got.memory_bytes >> 30} GiB"),
    }
    for name, (asked, found) in fields.items():
        if asked != found:
            yield f"{wanted.id} {name}: made for {asked}, here {found}"
    lacks = [feature for feature in wanted.features if feature not in got.features]
    more = [feature for feature in got.features if feature not in wanted.features]
    if lacks or more:
        yield f"{wanted.id} features: {_lists(lacks, more)}"


def _lists(lacks: Sequence[str], more: Sequence[str]) -> str:
    parts = [f"made for {_text(lacks)}, not here"] if lacks else []
    return ", and ".join([*parts, *([f"{_text(more)} here, not there"] if more else [])])


def _text(items: Sequence[object]) -> str:
    return " ".join(map(str, items)) or "none"


def _version_difference(name: str, plan: Plan, here: Machine) -> str:
    info, wanted = here.backend(name), plan.versions.get(name, "")
    if info is None or not info.usable:
        return f"made with {wanted}, here it is not usable ({info.reason if info else 'there is no such backend'})"
    return "" if info.version == wanted else f"made with {wanted or 'none'}, here {info.version}"


def _unhealthy(target: Target, here: Machine) -> str:
    """A way that failed its conformance run here; what `glance` has not tried counts as well."""
    for reach in here.reaches:
        way = (reach.backend, reach.device, reach.variant)
        if way == (target.backend, target.device, target.variant) and reach.health in ("wrong", "failed"):
            return f"{target}: its conformance run here ended {reach.health}: {reach.detail}"
    return ""


def _why_not(target: Target, read: Bundle, here: Machine) -> str:
    """Why a fallback does not fit here; '' when it does."""
    reason = _version_difference(target.backend, read.plan, here)
    if reason:
        return f"{target.backend} {reason}"
    wanted = next((device for device in read.machine.devices if device.id == target.device), None)
    got = next((device for device in here.devices if device.id == target.device), None)
    if wanted is None or got is None:
        return f"there is no {target.device} here"
    same = not [*_device_differences(wanted, here)]
    if not same and (got.kind != "cpu" or target.precision in _LOW):
        return f"{target.device} is another one"
    if target.threads > max(1, len(got.cores)):
        return f"{len(got.cores)} cores here"
    return _unhealthy(target, here)


# ---- what runs


def _rungs(read: Bundle, here: Machine, *, own: bool, reasons: list[str]) -> Iterator[Plan]:
    """The bundle's plan when it is its `own` machine, then a plan for each fallback that fits, best first."""
    fits = []
    for target in read.plan.fallbacks:
        reason = _why_not(target, read, here)
        if reason:
            _log.info("%s: fallback %s does not fit: %s", read.path.name, target, reason)
            if not own:
                reasons.append(f"fallback {target} does not fit: {reason}")
        else:
            fits.append(target)
    if own:
        yield _without_strangers(read.plan, here)
    for number, target in enumerate(fits):
        yield _fallback_plan(read.plan, target, fits[number + 1 :], here, "; ".join(reasons))
    if not read.plan.fallbacks and not own:
        reasons.append("it has no fallback")


def _without_strangers(plan: Plan, here: Machine) -> Plan:
    """The plan without fallbacks whose library is here in another version: nobody checked that one's numbers.

    One whose library is missing stays in: it is skipped, with its reason, when it is needed.
    """
    versions = {info.name: info.version for info in here.backends if info.usable}
    kept = tuple(
        target
        for target in plan.fallbacks
        if versions.get(target.backend) in (None, plan.versions.get(target.backend))
    )  # fmt: skip
    if kept == plan.fallbacks:
        return plan
    left = ", ".join(str(target) for target in plan.fallbacks if target not in kept)
    note = f"fallbacks left out, their libraries have other versions here than where this was made: {left}"
    return replace(plan, fallbacks=kept, notes=(*plan.notes, note))


def _fallback_plan(plan: Plan, target: Target, rest: Sequence[Target], here: Machine, reason: str) -> Plan:
    inputs, outputs = (tuple(value.name for value in side) for side in (plan.inputs, plan.outputs))
    segments: tuple[Segment, ...] = (Segment(target, (), inputs, outputs),)
    residency = plan.residency
    if residency is not None:  # the model does not fit as a whole: the same segments take turns, each alone
        segments = tuple(replace(segment, target=target, errors=(), measured_s=0.0) for segment in plan.segments)
        residency = replace(residency, held=tuple((index,) for index in range(len(segments))), peak_bytes=0)
    return replace(
        plan,
        machine=here.fingerprint,
        versions={info.name: info.version for info in here.backends if info.usable},
        segments=segments,
        instances=tuple(Instance(index) for index in range(len(segments))),
        transfers=() if residency is None else plan.transfers,
        values=() if residency is None else plan.values,
        residency=residency,
        predicted_s=0.0,
        fallbacks=tuple(rest),
        verification=Verification("", reason="it was checked on another machine, not here"),
        measured_s=0.0,
        items_per_s=0.0,
        candidates=(),
        notes=(f"a fallback of plan {plan.id}, {reason}",),
    )


def _source(read: Bundle, files: Path) -> Source:
    """The whole model among the files that were laid down, with what was compiled from it."""
    plan, artefact = read.plan, read.artefact
    beside = None if artefact is None else replace(artefact, path=files / artefact.path)
    return Source(files / read.model, plan.format, plan.inputs, plan.outputs, plan.own_precision, beside)


def _prove(plan: Plan, parts: Parts, here: Machine, kept: Path | None) -> None:
    """Prepare what runs in this process in a child first, once for each machine and content (remembered in `kept`).

    Raises:
        EdgertError: it does not prepare, or took the child down.
    """
    if sys.platform != "linux":  # there is no child to speak of elsewhere
        return
    key = json.dumps([here.fingerprint, sorted(plan.versions.items()), list(map(str, plan.targets))])
    marker = kept / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json" if kept else None
    if marker is not None and store.read_or_drop(marker):
        return
    values = {value.name: value for value in (*plan.inputs, *plan.values, *plan.outputs)}
    for segment in plan.segments:
        target = segment.target
        if not target.device.startswith("cpu"):
            continue
        source, device = parts.source(segment, values), here.device(target.device)
        remote = REMOTES.borrow(f"{target.backend}@{target.device}")
        try:
            remote.prepare(source, target, device, timeout_s=_PREPARE_LIMIT_S)
        finally:
            REMOTES.give_back(remote)
    if marker is not None:
        with suppress(CacheUnwritable):  # it is tried again next time
            store.write_json(marker, {"prepared": [str(target) for target in plan.targets]})


# ---- files


def _lay_down(read: Bundle, folder: Path | None) -> tuple[Path, Callable[[], None]]:
    """The folder with the bundle's model files, and what removes it if it is temporary."""
    kept = store.subfolder(folder, "bundles", read.key)
    if kept is not None:
        try:
            read.extract(kept)
        except OSError as error:
            _log.warning("cache folder %s cannot be written (%s): using a temporary one", kept, error)
        else:
            return kept, lambda: None
    try:
        temporary = tempfile.TemporaryDirectory(prefix="edgert-")
    except OSError as error:
        raise _no_space(read, error) from error
    try:
        read.extract(Path(temporary.name))
    except OSError as error:
        temporary.cleanup()
        raise _no_space(read, error) from error
    except EdgertError:
        temporary.cleanup()
        raise
    return Path(temporary.name), temporary.cleanup


def _no_space(read: Bundle, error: OSError) -> CacheUnwritable:
    size_bytes = sum(member.size_bytes for member in read.files)
    return CacheUnwritable(
        f"the {size_bytes} bytes of models in {read.path} can be laid down nowhere: {error.strerror or error}.",
        "Set EDGERT_CACHE (or TMPDIR) to a writable folder with that much space.",
    )
