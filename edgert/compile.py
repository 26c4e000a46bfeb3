"""Plan a model for this machine or another one (`plan_model`), and pack all that it takes to run it there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from edgert import bundle, formats, store
from edgert.bundle import Bundle
from edgert.devices import probe as probing
from edgert.errors import OptionError
from edgert.execution.segments import tidied_path
from edgert.loading import load, wish_of
from edgert.machine import Machine
from edgert.plan import Objective, Plan, Tolerance
from edgert.planning.artefacts import open_artefact
from edgert.planning.offline import plan_from_profile, profile_of
from edgert.profile import Profile


class Wishes(TypedDict, total=False):
    """What the caller may ask of the plan: arguments of `edgert.load`, with its meaning and defaults."""

    objective: Objective
    tolerance: float | Tolerance | None
    precision: str
    targets: Sequence[str] | None
    budget_s: float
    memory_limit_bytes: int | None
    source: str | os.PathLike[str] | None
    cache_dir: str | os.PathLike[str] | None
    progress: Callable[[str, float], None] | None


def compile_model(
    model: str | os.PathLike[str], output: str | os.PathLike[str], *, machine: Machine | None = None,
    profile: Profile | None = None, **wishes: Unpack[Wishes],
) -> Bundle:  # fmt: skip
    """A bundle of a model for a machine; `edgert.load` opens it there.

    Args:
        model: an .onnx or .tflite file; with `source` what was compiled from one, which both go into the bundle.
        output: the bundle, replaced if it exists.
        machine: what to plan for; else the one at hand.
        profile: measured on that machine: the plan is made from its rows alone, and nothing is run here. Without one
            the machine must be the one at hand, and is measured.
        wishes: as for `edgert.load`.

    Raises:
        OptionError: `machine` is another one and there is no profile; the profile is of another model, machine or
            version; `output` cannot be written.
        EdgertError: what `edgert.load` raises.
    """
    plan, machine, profile = plan_model(model, machine=machine, profile=profile, **wishes)
    file, made_from, artefact = Path(model), wishes.get("source"), None
    if made_from is not None:
        file, artefact = Path(made_from), open_artefact(file.absolute())
    compiled = store.subfolder(store.folder(wishes.get("cache_dir")), "compiled", plan.model[:16])
    tidied = tidied_path(compiled) if plan.tidied and compiled else None
    return bundle.write(Path(output), file, plan, machine, profile, tidied=tidied, artefact=artefact)


def plan_model(
    model: str | os.PathLike[str], *, machine: Machine | None = None, profile: Profile | None = None,
    **wishes: Unpack[Wishes],
) -> tuple[Plan, Machine, Profile]:  # fmt: skip
    """The plan that `compile_model` packs, the machine that it is for and the profile that it was chosen by.

    Arguments and errors are those of `compile_model`.
    """
    if bundle.is_bundle(Path(model)):
        raise OptionError(f"{model} is a bundle already.", "Give the model that it was made from.")
    here = store.folder(wishes.get("cache_dir"))
    if profile is not None:
        if wishes.get("source") is not None:
            raise OptionError(
                "source= was given, but a profile says nothing of what was compiled from a model.",
                "Plan on the machine itself, without a profile.",
            )
        if wishes.get("memory_limit_bytes") is not None:
            raise OptionError(
                "a memory limit was given, but what segments hold is not in a profile.",
                "Plan on the machine itself, without a profile.",
            )
        machine = machine or probing.probe(cache_dir=here, progress=wishes.get("progress"))
        wish = wish_of(wishes.get("objective", "latency"), wishes.get("precision", "own"), wishes.get("tolerance"),
                       wishes.get("targets"))  # fmt: skip
        return plan_from_profile(formats.open_model(model), machine, wish, profile), machine, profile
    machine = _at_hand(machine, probing.probe(cache_dir=here, progress=wishes.get("progress")))
    with load(model, machine=machine, **wishes) as loaded:
        plan = loaded.plan
    return plan, machine, profile_of(plan)


def _at_hand(asked: Machine | None, here: Machine) -> Machine:
    """The machine asked for, if it is the one at hand: only that can be measured."""
    if asked is None or asked == here:
        return here
    fields = {"fingerprint": (asked.fingerprint, here.fingerprint)}
    for info in here.backends:
        other = asked.backend(info.name)
        fields[info.name] = (other.version if other else "", info.version)
    differ = [f"{name} {a or 'none'} there, {b or 'none'} here" for name, (a, b) in fields.items() if a != b]
    if differ:
        raise OptionError(
            f"the machine is not this one ({'; '.join(differ)}), so it cannot be measured here.",
            "On it, run `edgert profile MODEL -o profile.json`; then give --profile profile.json too.",
        )
    return asked
