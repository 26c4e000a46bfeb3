"""Wrong numbers, seen while serving: the plan is forgotten, and the next one is made without what gave them."""

from __future__ import annotations

import logging

from edgert import formats
from edgert.devices.backend import Source
from edgert.errors import EdgertError
from edgert.execution.shadow import Drift
from edgert.execution.start import is_cpu
from edgert.plan import Plan
from edgert.planning.quarantine import Quarantine
from edgert.planning.remember import Memory, Wish
from edgert.profile import Row

_log = logging.getLogger(__name__)


def distrust(memory: Memory, wish: Wish, source: Source, plan: Plan, drift: Drift) -> None:
    """Remember what gave wrong numbers, for this process and others.

    Args:
        memory: of the model.
        wish: that the plan was made for.
        source: the model file.
        plan: that ran.
        drift: what was seen.
    """
    memory.forget_plan(wish)
    reason = f"wrong numbers while serving: {drift.reason}"
    if len(plan.segments) == 1:
        (target,) = drift.targets
        memory.keep_rows(wish.samples, plan.verification.reference, [Row(target, "wrong", reason)])
        return
    try:
        graph = formats.open_model(source.path).graph
    except EdgertError as error:
        _log.warning("the segments of plan %s cannot be put in quarantine: %s", plan.id, error.message)
        return
    known = {node.name: number for number, node in enumerate(graph.nodes)}
    quarantine = Quarantine(memory.folder, memory.machine)
    for segment in plan.segments:
        nodes = [known[name] for name in segment.nodes if name in known]
        # CPUs agreed with the reference's own kind of arithmetic; which of several devices is to blame is not known.
        if nodes and not is_cpu(segment.target):
            quarantine.add(graph, nodes, segment.target, reason, memory.model)
