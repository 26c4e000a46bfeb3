"""Which segment of a plan sends what to which: read off the plan once, so that executors pass values on directly."""

from __future__ import annotations

from dataclasses import dataclass

from edgert.plan import Plan


@dataclass(frozen=True, slots=True)
class Stage:
    """One segment's place in the flow of a request."""

    takes: tuple[str, ...]
    """Inputs of the model that the caller sends it."""
    parts: int
    """Messages that bring its inputs: one from the caller (always, so that it learns of the request), one from each
    segment that feeds it."""
    feeds: tuple[tuple[int, tuple[str, ...]], ...]
    """(index of a segment, values that it gets from here); each segment once."""
    gives: tuple[str, ...]
    """Outputs of the model that are made here."""


def stages(plan: Plan) -> tuple[Stage, ...]:
    """Of each segment, in the plan's order. A plan whose one segment is the whole model may leave names out."""
    outputs = [value.name for value in plan.outputs]
    inputs = [value.name for value in plan.inputs]
    if len(plan.segments) == 1:
        return (Stage(tuple(inputs), 1, (), tuple(outputs)),)
    makers = {name: index for index, segment in enumerate(plan.segments) for name in segment.outputs}
    found = []
    for index, segment in enumerate(plan.segments):
        feeders = {makers[name] for name in segment.inputs if name in makers}
        feeds = []
        for other, sink in enumerate(plan.segments):
            names = tuple(name for name in segment.outputs if name in sink.inputs)
            if other != index and names:
                feeds.append((other, names))
        takes = tuple(name for name in segment.inputs if name in inputs and name not in makers)
        gives = tuple(name for name in segment.outputs if name in outputs)
        found.append(Stage(takes, 1 + len(feeders), tuple(feeds), gives))
    return tuple(found)
