"""Which part of a graph is to be written, checked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edgert.errors import OptionError
from edgert.graph import Graph


@dataclass(frozen=True, slots=True)
class Cut:
    """A convex set of nodes, and what crosses its border."""

    indices: tuple[int, ...]
    """Into `Graph.nodes`, rising."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    whole: bool
    """True when it is the model itself, with its own inputs and outputs."""


def cut(graph: Graph, nodes: Collection[str], keep: Collection[str] = ()) -> Cut:
    """The named nodes as a `Cut`; the values in `keep` are outputs too.

    Raises:
        OptionError: a name is unknown, the set is empty or not convex, or it does not make a value in `keep`.
    """
    wanted = set(nodes)
    indices = [index for index, node in enumerate(graph.nodes) if node.name in wanted]
    if len(indices) < len(wanted):
        unknown = sorted(wanted - {node.name for node in graph.nodes})
        raise OptionError(f"node {unknown[0]!r} is not in graph {graph.name!r}.", "Use names from `graph.nodes`.")
    if len(indices) == len(graph.nodes) and not keep:
        inputs = tuple(value.name for value in graph.inputs)
        return Cut(tuple(indices), inputs, tuple(value.name for value in graph.outputs), whole=True)
    if not indices:
        raise OptionError("no node was named.", "Name at least one.")
    if not graph.is_convex(frozenset(indices)):
        raise OptionError(
            f"the set of {len(indices)} nodes around {graph.nodes[indices[0]].name!r} is not convex: a path leaves it "
            "and comes back.",
            "Add the nodes on that path.",
        )
    inputs, outputs = graph.boundary(frozenset(indices))
    made = {name for index in indices for name in graph.nodes[index].writes}
    foreign = sorted(set(keep) - made)
    if foreign:
        raise OptionError(f"value {foreign[0]!r} is not made by the named nodes.", "Keep only values made inside.")
    return Cut(tuple(indices), inputs, tuple(dict.fromkeys((*outputs, *keep))), whole=False)
