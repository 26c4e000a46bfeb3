"""Whether a plan that somebody else wrote can be carried out; its types are checked already (`edgert.typed`)."""

from __future__ import annotations

from edgert.plan import Plan
from edgert.tensor import BITS

_MOST_CORES = 1 << 16


def check_plan(plan: Plan) -> None:
    """What types alone leave open. Raises ValueError."""
    if not plan.instances or any(instance.segment not in range(len(plan.segments)) for instance in plan.instances):
        raise ValueError("an instance names no segment of it")
    if any(core not in range(_MOST_CORES) for instance in plan.instances for core in instance.cores):
        raise ValueError("an instance's cores are no numbers of cores")
    for value in (*plan.inputs, *plan.values, *plan.outputs):
        if value.dtype is not None and value.dtype not in BITS:
            raise ValueError(f"value {value.name!r} has an unknown element type, {value.dtype!r}")
        if any(isinstance(size, int) and size < 0 for size in value.shape or ()):
            raise ValueError(f"value {value.name!r} has a negative size")
    _check_segments(plan)


def _check_segments(plan: Plan) -> None:
    """That each segment reads what is there by then, and that the outputs are made. Raises ValueError."""
    described = {value.name for value in (*plan.inputs, *plan.values, *plan.outputs)}
    known = {value.name for value in plan.inputs}
    for number, segment in enumerate(plan.segments):
        unknown = [name for name in segment.inputs if name not in known]
        unknown += [name for name in segment.outputs if name not in described]
        if unknown or not (segment.nodes or len(plan.segments) == 1):
            raise ValueError(f"segment {number} reads or makes {unknown[:1] or 'the whole model'} out of order")
        known.update(segment.outputs)
    if missing := [value.name for value in plan.outputs if value.name not in known]:
        raise ValueError(f"no segment makes output {missing[0]!r}")
