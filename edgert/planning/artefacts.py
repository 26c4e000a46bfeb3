"""A model that was compiled for one accelerator, beside the model that it was made from.

The source model is what is planned: it gives the reference, and it stands in wherever the compiled file cannot run.
The compiled file is one more way to run it, which is tried, held to the reference and timed like any other. Alone it
is refused, since nothing could answer if its device is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgert import formats
from edgert.devices.ortproviders import way_of
from edgert.errors import ModelUnsupported, NoLastResort, OptionError, PrepareRefused
from edgert.formats import ModelFile, artefacts, memo
from edgert.formats.artefacts import ARTEFACT, Artefact
from edgert.formats.files import digest_of, map_file, sha256
from edgert.graph import Value
from edgert.plan import Plan

_REMEDY = (
    "Give the model that it was made from: alone, and it is compiled for the devices here; or as source= (--source) "
    "beside this file, and it stands in. Or name the target in targets= to run it without a last resort."
)
_ACCELERATORS = "*@[!c]*"
"""Targets off the CPU."""


def check(file: ModelFile, artefact: Artefact | None, targets: Sequence[str] | None) -> None:
    """That a model can be answered for by more than one accelerator.

    Args:
        file: the model that is planned.
        artefact: what was compiled from it.
        targets: that the user named: who names an accelerator gets it without a last resort.

    Raises:
        ModelUnsupported: the artefact was not made from `file`: its inputs or outputs differ.
        NoLastResort: `file` itself is an artefact; names the operation.
    """
    if artefact is not None and artefact.readers:
        _compare(formats.open_model(artefact.path), file)
    mark = artefacts.mark_of(file.graph)
    if mark is not None and targets is None:
        raise NoLastResort(
            f"{file.path} holds {mark.op}, {mark.what} (node {mark.node!r}): nothing else reads it, so nothing could "
            "answer if that is lost.", _REMEDY, target="",
        )  # fmt: skip


def explain_refusal(path: Path, error: PrepareRefused) -> None:
    """Raises NoLastResort where a .tflite without a readable graph was refused for an accelerator's operation."""
    found = artefacts.op_named_in(map_file(path))
    if found is not None:
        op, what = found
        raise NoLastResort(
            f"{path} holds {op}, {what}: nothing else reads it, so nothing could answer if that is lost "
            f"({error.message}).", _REMEDY, target="",
        ) from error  # fmt: skip


def open_artefact(path: Path) -> Artefact:
    """What a compiled file is, and which targets read it.

    Raises:
        OptionError: it is an ordinary model.
        ModelError: it cannot be read.
    """
    what = artefacts.blob(path, bytes(map_file(path)[:32]))
    if what:
        return Artefact(path, what, "")
    mark = artefacts.mark_of(formats.open_model(path).graph)
    if mark is None:
        raise OptionError(
            f"source= was given, but {path} is an ordinary model that any backend may read.", "Leave source= out."
        )
    return Artefact(path, mark.what, way_of(mark.provider) or _ACCELERATORS)


def digest_beside(model: str, path: Path, folder: Path | None) -> str:
    """Content hash of a model together with what was compiled from it.

    Args:
        model: that of the model alone.
        path: the compiled file; what lies beside it counts too.
        folder: of the cache, where hashes are remembered; None for nowhere.
    """
    data = map_file(path)
    own = sha256(data) if artefacts.blob(path, bytes(data[:32])) else memo.digest(path, folder)
    return digest_of(model, {ARTEFACT: own})


def why_unused(plan: Plan, artefact: Artefact | None, targets: Sequence[str] | None) -> str:
    """Why a plan that was measured makes no use of the compiled file; '' where it does, where that was slower, and
    where the user named the targets.
    """
    if artefact is None or targets is not None or not plan.budget_s:
        return ""
    rows = [row for row in plan.candidates if artefact.read_on(row.target)]
    if any(row.outcome in ("ok", "slow") for row in rows):
        return ""
    reasons = "; ".join(f"{row.target}: {row.reason or row.outcome}" for row in rows)
    return (
        f"{artefact.path.name}, {artefact.what}, does not run here ({reasons or 'no backend here reads it'}): "
        "the model that it was made from answers"
    )


def _compare(compiled: ModelFile, file: ModelFile) -> None:
    one, other = compiled.graph, file.graph
    found = [*_sides("input", one.inputs, other.inputs), *_sides("output", one.outputs, other.outputs)]
    if compiled.format != file.format:
        found = [f"it is .{compiled.format}, the other is .{file.format}"]
    if found:
        raise ModelUnsupported(
            f"{compiled.path} was not made from {file.path}: {'; '.join(found)}.",
            "Give the model that it was compiled from, with the inputs and outputs that it had then.",
        )


def _sides(what: str, compiled: Sequence[Value], source: Sequence[Value]) -> list[str]:
    theirs = {value.name: value for value in source}
    found = [f"{what} {value.name!r} is not in the source" for value in compiled if value.name not in theirs]
    names = {value.name for value in compiled}
    found += [f"{what} {name!r} is not in it" for name in theirs if name not in names]
    for value in compiled:
        own = theirs.get(value.name, value)
        if (value.dtype, _sizes(value)) != (own.dtype, _sizes(own)):
            found.append(f"{what} {value} is {own} in the source")
    return found


def _sizes(value: Value) -> tuple[int, ...] | None:
    """The shape, free dimensions as -1: their names say nothing."""
    return None if value.shape is None else tuple(size if isinstance(size, int) else -1 for size in value.shape)
