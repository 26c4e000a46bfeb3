"""Plans for a machine that is not at hand: its description and a profile that was measured on it are all there is.

A profile is a JSON file that `edgert profile` makes on the machine. Nothing is measured or guessed here: a target
without a row is not chosen, and a profile of another model, machine or version is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgert import typed
from edgert.errors import ModelUnsupported, OptionError, UnknownTarget
from edgert.formats import ModelFile
from edgert.formats.files import replacing
from edgert.machine import Machine
from edgert.plan import Instance, Plan, Tolerance
from edgert.planning import Assignment, Memory, Wish, _plan  # the same plan as a measured one, made by the same hand
from edgert.planning.candidates import LAST_RESORT, candidates
from edgert.planning.choose import Choice, split_cores
from edgert.planning.reference import Reference
from edgert.profile import Profile, Row
from edgert.verify import judge

__all__ = ["plan_from_profile", "profile_document", "profile_of", "read_machine", "read_profile", "write_profile"]

FORMAT = 1
"""Of the file."""
_USABLE = ("ok", "slow")


def profile_of(plan: Plan, samples: str = "synthesised:0") -> Profile:
    """What was measured to make a plan; a reference that another one disputes counts as none."""
    rows = tuple(row for row in plan.candidates if row.outcome != "untried")
    reference = plan.verification.reference if plan.verification.verified else ""
    return Profile(plan.model, plan.machine, dict(plan.versions), samples, reference, rows)


def profile_document(profile: Profile) -> dict[str, Any]:
    """What a profile's file holds."""
    return {"profile_format": FORMAT, **profile.to_json()}


def write_profile(path: Path, profile: Profile) -> None:
    """Store a profile, whole or not at all.

    Raises:
        OptionError: the file cannot be written.
    """
    text = json.dumps(profile_document(profile), indent=1, sort_keys=True) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """The profile that `write_profile` stored.

    Raises:
        OptionError: it cannot be read, or is no profile of this format.
    """
    remedy = "Make it with `edgert profile MODEL -o profile.json` on the machine that it is about."
    data = _object(path, "profile", remedy)
    version = data.pop("profile_format", None)
    if version != FORMAT:
        raise OptionError(f"profile {path} has format {version!r}, this edgert reads {FORMAT}.", remedy)
    try:
        profile = Profile.from_json(data)
        typed.check(profile)
    except (KeyError, TypeError, ValueError, AttributeError, UnknownTarget) as error:
        raise OptionError(f"profile {path} is malformed ({type(error).__name__}: {error}).", remedy) from error
    for row in profile.rows:
        seconds = (row.timing.p50_s, row.timing.items_per_s) if row.timing else ()
        if not all(math.isfinite(number) and number >= 0 for number in seconds):
            raise OptionError(f"profile {path} is malformed: {row.target} has no time but {seconds!r}.", remedy)
    return profile


def read_machine(path: str | os.PathLike[str]) -> Machine:
    """The machine that `edgert probe --json` described.

    Raises:
        OptionError: the file cannot be read, or is no machine.
    """
    remedy = "Make it with `edgert probe --json > machine.json` on that machine."
    data = _object(path, "machine description", remedy)
    try:
        machine = Machine.from_json(data)
        typed.check(machine)
    except (OptionError, ValueError, AttributeError) as error:
        raise OptionError(f"{path}: {getattr(error, 'message', error)}", remedy) from error
    said = data.get("fingerprint")
    if said != machine.fingerprint:
        raise OptionError(f"{path}: fingerprint {said} is not that of its devices, {machine.fingerprint}.", remedy)
    return machine


def _object(path: str | os.PathLike[str], what: str, remedy: str) -> dict[str, Any]:
    try:
        data = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise OptionError(f"{what} {path} cannot be read: {error.strerror or error}.", remedy) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{what} {path} is no JSON ({error}).", remedy) from error
    if not isinstance(data, dict):
        raise OptionError(f"{what} {path} is no JSON object.", remedy)
    return data


def plan_from_profile(file: ModelFile, machine: Machine, wish: Wish, profile: Profile) -> Plan:
    """The best plan by what a profile says, for the whole model on one target.

    Args:
        file: the model.
        machine: what to plan for.
        wish: what the user asked for. A tolerance is judged anew on the profile's distances.
        profile: measured there.

    Raises:
        OptionError: the profile is of another model, machine or version, with the difference; or it lacks what the
            wish needs.
        ModelUnsupported: no row is of a target that is right; with each one's reason.
        UnknownTarget: a wanted target is not to be had there.
    """
    _check_origin(file, machine, profile)
    if wish.tolerance.relative is not None:
        raise OptionError("tolerance relative= cannot be judged from a profile.", "Plan on the machine itself.")
    assignment = Assignment(file, machine, wish, Memory(None, file.digest, machine), 0.0)
    found = candidates(assignment.source, machine, wish.precision, wish.targets)
    known = {row.target: row for row in profile.rows}
    dtypes = {value.name: value.dtype for value in file.graph.outputs}
    targets = [*found.targets, *(row.target for row in found.left_out if row.target.backend == LAST_RESORT)]
    rows = [
        _judged(known[target], file, wish.tolerance, dtypes) if target in known
        else Row(target, "untried", "the profile has no row for it")
        for target in targets
    ]  # fmt: skip
    note = "" if profile.reference else "the profile's numbers were not confirmed by a reference"
    choice = _choose(rows, machine, wish, file)
    plan = _plan(assignment, choice, found, Reference(profile.reference, reason=note))
    return replace(plan, notes=(*plan.notes, "planned from a profile: nothing was measured for it again"))


def _check_origin(file: ModelFile, machine: Machine, profile: Profile) -> None:
    """Raises OptionError where the profile is not about this model, on this machine, with these versions."""
    found = []
    if profile.model != file.digest:
        found.append(f"model: measured {profile.model[:16]}, this is {file.digest[:16]}")
    if profile.machine != machine.fingerprint:
        found.append(f"machine: measured on {profile.machine}, planned for {machine.fingerprint}")
    versions = {info.name: info.version for info in machine.backends if info.usable}
    for name in dict.fromkeys(row.target.backend for row in profile.rows):
        if profile.versions.get(name) != versions.get(name):
            there, here = (side.get(name) or "none" for side in (profile.versions, versions))
            found.append(f"{name}: measured with {there}, the machine has {here}")
    if found:
        raise OptionError(
            f"the profile does not fit: {'; '.join(found)}.",
            "Measure again there: `edgert profile MODEL -o profile.json` and `edgert probe --json > machine.json`.",
        )


def _judged(row: Row, file: ModelFile, tolerance: Tolerance, dtypes: Mapping[str, str | None]) -> Row:
    if row.outcome not in _USABLE or not row.errors:
        return row
    reason = judge(row.errors, tolerance, file.precision, row.target.precision, dtypes)
    return replace(row, outcome="wrong", reason=reason) if reason else row


def _choose(rows: Sequence[Row], machine: Machine, wish: Wish, file: ModelFile) -> Choice:
    usable = [row for row in rows if row.outcome in _USABLE and row.timing is not None]
    # As when measuring: the evaluator answers only what nothing else gets right.
    usable = [row for row in usable if row.target.backend != LAST_RESORT] or usable
    if not usable:
        reasons = "; ".join(f"{row.target}: {row.reason or row.outcome}" for row in rows) or "it has none"
        raise ModelUnsupported(
            f"{file.path}: no target of the profile runs this model right ({reasons}).",
            "Measure more of them there, with a larger --budget.",
        )
    if wish.objective == "throughput":
        return _most_items(usable, rows, machine)
    ordered = sorted(usable, key=lambda row: (_USABLE.index(row.outcome), row.timing.p50_s if row.timing else 0.0))
    return Choice((*ordered, *_others(rows, ordered)), ordered[0], (Instance(0),))


def _most_items(usable: Sequence[Row], rows: Sequence[Row], machine: Machine) -> Choice:
    timed = [row for row in usable if row.timing and row.timing.items_per_s]
    if not timed:
        raise OptionError(
            "the profile has no throughput.", "Measure it there: `edgert profile MODEL --objective throughput`."
        )
    ordered = sorted(timed, key=lambda row: -(row.timing.items_per_s if row.timing else 0.0))
    winner = ordered[0]
    count = winner.timing.instances if winner.timing else 1
    cores = split_cores(machine.device(winner.target.device).cores, winner.target.threads)[:count]
    return Choice(
        (*ordered, *_others(rows, ordered)), winner, tuple(Instance(0, own) for own in cores or [()])
    )  # fmt: skip


def _others(rows: Sequence[Row], ordered: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row not in ordered]
