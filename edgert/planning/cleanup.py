"""A model tidied up before it is split, and held to the answers of the original."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgert import store
from edgert.devices.backend import Source
from edgert.errors import Cancelled, EdgertError, PrepareRefused
from edgert.execution.segments import Parts, intact, seal, tidied_path
from edgert.formats import ModelFile, digest, open_model
from edgert.measure import RUN_LIMIT_S, hold, sample_name
from edgert.planning.setting import Setting
from edgert.planning.trials import Trial
from edgert.profile import Target
from edgert.tensor import Array

__all__ = ["tidied"]

_log = logging.getLogger(__name__)
_FORMAT = 1
"""Raised when the tidying changes: what an older one made is then made again."""
_LARGEST_BYTES = 1 << 28
"""Of the file itself; external data is not held."""
_RUNS_CONSTANTS = ("onnxruntime", "reference")
"""Backends that take nodes without inputs, in the order of their speed."""


def tidied(setting: Setting, folder: Path) -> tuple[ModelFile, str]:
    """The model to cut, and a note for the plan ('' for none): tidied up where that changes something and is proved.

    The tidied model is kept in the folder. It is used only when it gives the answers of the original on every sample:
    within the tolerance for floats, the same for integers.

    Args:
        setting: with the trials of the original.
        folder: belongs to this model's content alone.

    Raises:
        Cancelled: the planning was called off.
    """
    file = setting.work.file
    if file.format != "onnx":  # the converter to TFLite has folded already
        return file, ""
    size_bytes = file.path.stat().st_size
    if size_bytes > _LARGEST_BYTES:
        return file, f"the model is split as it is: to tidy {size_bytes >> 20} MiB up, they would be held three times"
    setting.say("tidying the model up")
    path = tidied_path(folder)
    try:
        if not _kept(file, path, setting):
            return file, ""
        made = open_model(path)
        reason = _differs(made, setting)
    except Cancelled:
        raise
    except EdgertError as error:
        return file, f"the model is split as it is, not tidied up: {error.message[:200]}"
    if reason:
        return file, f"the model is split as it is: tidied up it would give other numbers ({reason[:200]})"
    gone = len(file.graph.nodes) - len(made.graph.nodes)
    return made, f"before it was split, {gone} of {len(file.graph.nodes)} nodes were folded or dropped"


def _kept(file: ModelFile, path: Path, setting: Setting) -> bool:
    """Whether there is a tidied model at `path`, made now if it was not there; False when tidying changes nothing."""
    from edgert.formats.onnx import OnnxFile
    from edgert.formats.onnx_clean import clean

    known = store.read_or_drop(seal(path))
    if known is not None and known.get("format") == _FORMAT and (not known["digest"] or intact(path)):
        return bool(known["digest"])
    assert isinstance(file, OnnxFile), "the caller looked at the format"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = Parts(setting.course.source, path.parent / "constants", lambda: file)
    changed = clean(file, path, _computing(parts, file, setting))
    parts.prune(())
    store.write_json(seal(path), {"format": _FORMAT, "digest": digest(path) if changed else ""})
    return changed


def _computing(
    parts: Parts, file: ModelFile, setting: Setting
) -> Callable[[Sequence[str], Sequence[str], Mapping[str, Array]], Mapping[str, Array]]:
    """Runs the constant part of a model, in a child: a fault there costs the tidying, not the process."""

    def compute(nodes: Sequence[str], values: Sequence[str], given: Mapping[str, Array]) -> Mapping[str, Array]:
        graph = file.graph
        index = {node.name: number for number, node in enumerate(graph.nodes)}
        inputs, outputs = graph.boundary(frozenset(index[name] for name in nodes))
        typed = [tuple(graph.values[name] for name in names) for names in (inputs, outputs)]
        source = Source(parts.file(nodes), file.format, typed[0], typed[1], file.precision)
        feed = {name: given[name] for name in inputs}
        made = _run(source, feed, setting)
        return {name: made[name] for name in values}

    return compute


def _run(source: Source, feed: Mapping[str, Array], setting: Setting) -> Mapping[str, Array]:
    """What a CPU target makes of the constant part: one that takes nodes without inputs, or that ran the whole."""
    course, own = setting.course, source.precision
    reached = {reach.backend for reach in course.machine.reached()}
    targets = [Target(name, "cpu:0", own, 0 if name == "reference" else 1) for name in _RUNS_CONSTANTS]
    targets = [target for target in targets if target.backend in reached]
    trial = _yardstick(setting)
    reasons = []
    for target in (*targets, *([trial.row.target] if trial else [])):
        remote, device = setting.tried.remote(target), course.machine.device(target.device)
        try:
            runnable = remote.prepare(source, target, device, None, timeout_s=course.prepare_limit_s)
            remote.hold("constants", feed)
            made, _ = runnable.run_held("constants", timeout_s=RUN_LIMIT_S)
            runnable.close()
        except EdgertError as error:
            reasons.append(f"{target}: {error.message}")
            continue
        return {value: array for value, array in made.items() if isinstance(array, np.ndarray)}
    raise PrepareRefused(f"nothing computes the model's constant part ({'; '.join(reasons) or 'no backend for it'}).")


def _differs(made: ModelFile, setting: Setting) -> str:
    """Why the tidied model's answers are not those of the original, on a target that ran this right; '' if they are."""
    course = setting.course
    trial = _yardstick(setting)
    if trial is None:
        return "no CPU target at the model's own precision to compare on"
    target, source = trial.row.target, course.source
    tidy = Source(made.path, made.format, source.inputs, source.outputs, source.precision)
    remote = setting.tried.remote(target)
    hold(remote, course.samples)
    runnable = remote.prepare(
        tidy, target, course.machine.device(target.device), None, timeout_s=course.prepare_limit_s
    )
    answers = [runnable.run_held(sample_name(index), timeout_s=RUN_LIMIT_S)[0] for index in range(len(trial.answers))]
    runnable.close()
    return setting.checker.reason(setting.checker.errors(trial.answers, answers), target)


def _yardstick(setting: Setting) -> Trial | None:
    """The quickest CPU target that ran the original right, at its own precision."""
    own = setting.course.source.precision
    fit = [
        trial
        for trial in setting.trials
        if trial.contestant is not None and trial.answers
        and trial.row.target.precision == own and trial.row.target.device.startswith("cpu")
    ]  # fmt: skip
    return min(fit, key=lambda trial: trial.contestant.call_s if trial.contestant else 0.0, default=None)
