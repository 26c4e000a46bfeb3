"""Plan a model for this machine or another one (`plan_model`), and pack all that it takes to run it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgert import bundle, formats, store
from edgert.bundle import Bundle
from edgert.devices import probe as probing
from edgert.errors import OptionError
from edgert.machine import Machine
from edgert.model import DEFAULT_BUDGET_S, load, wish_of
from edgert.plan import Objective, Plan, Tolerance
from edgert.planning.offline import plan_from_profile, profile_of
from edgert.profile import Profile


def compile_model(
    model: Path,
    output: Path,
    *,
    machine: Machine | None = None,
    profile: Profile | None = None,
    objective: Objective = "latency",
    tolerance: float | Tolerance | None = None,
    precision: str = "own",
    targets: Sequence[str] | None = None,
    budget_s: float = DEFAULT_BUDGET_S,
    cache_dir: Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Bundle:
    """A bundle of a model for a machine; `edgert.load` opens it there.

    Args:
        model: an .onnx or .tflite file.
        output: the bundle, replaced if it exists.
        machine: what to plan for; else the one at hand.
        profile: measured on that machine: the plan is made from its rows alone, and nothing is run here. Without one
            the machine must be the one at hand, and is measured.
        objective: as for `edgert.load`, like all that follow.
        tolerance: how far answers may be from the reference.
        precision: the lowest that is allowed.
        targets: only these.
        budget_s: seconds to spend on measuring.
        cache_dir: where plans are remembered.
        progress: told what is going on.

    Raises:
        OptionError: `machine` is another one and there is no profile; the profile is of another model, machine or
            version; `output` cannot be written.
        EdgertError: what `edgert.load` raises.
    """
    plan, machine, profile = plan_model(
        model, machine=machine, profile=profile, objective=objective, tolerance=tolerance, precision=precision,
        targets=targets, budget_s=budget_s, cache_dir=cache_dir, progress=progress,
    )  # fmt: skip
    return bundle.write(output, model, plan, machine, profile)


def plan_model(
    model: Path,
    *,
    machine: Machine | None = None,
    profile: Profile | None = None,
    objective: Objective = "latency",
    tolerance: float | Tolerance | None = None,
    precision: str = "own",
    targets: Sequence[str] | None = None,
    budget_s: float = DEFAULT_BUDGET_S,
    cache_dir: Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Plan, Machine, Profile]:
    """The plan that `compile_model` packs, the machine that it is for and the profile that it was chosen by.

    Arguments and errors are those of `compile_model`.
    """
    if bundle.is_bundle(model):
        raise OptionError(f"{model} is a bundle already.", "Give the model that it was made from.")
    if profile is not None:
        machine = machine or probing.probe(cache_dir=store.folder(cache_dir), progress=progress)
        wish = wish_of(objective, precision, tolerance, targets)
        return plan_from_profile(formats.open_model(model), machine, wish, profile), machine, profile
    machine = _at_hand(machine, probing.probe(cache_dir=store.folder(cache_dir), progress=progress))
    with load(
        model, objective=objective, tolerance=tolerance, precision=precision, targets=targets, machine=machine,
        budget_s=budget_s, cache_dir=cache_dir, progress=progress,
    ) as loaded:  # fmt: skip
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
