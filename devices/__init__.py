"""The devices of a box and the libraries that run models on them.

`BACKENDS` is the registry: a table of modules, imported when first asked for. Another package adds a backend
through the entry point group `edgert.backends`, whose entries name a class that satisfies
`edgert.devices.backend.Backend` and is made without arguments:

    [project.entry-points."edgert.backends"]
    mine = "mypackage.backend:MyBackend"

Importing this package imports no backend.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from edgert.devices.backend import Backend
from edgert.errors import MissingPackage, UnknownTarget

__all__ = ["BACKENDS", "ENTRY_POINTS", "backend", "names"]

BACKENDS: Mapping[str, str] = {  # name -> module with a class `Backend`, imported when first asked for
    "onnxruntime": "edgert.devices.onnxruntime",
    "openvino": "edgert.devices.openvino",
    "litert": "edgert.devices.litert",
    "reference": "edgert.devices.reference",
    "simulated": "edgert.devices.simulated",
}
ENTRY_POINTS = "edgert.backends"
"""The entry point group through which other packages add backends. The names above cannot be taken."""


def names() -> tuple[str, ...]:
    """Every backend that there is a module for, edgert's own first; whether it works is said by its `version`."""
    return (*BACKENDS, *sorted(_foreign()))


@functools.cache
def backend(name: str) -> Backend:
    """The backend of that name; made once.

    Raises:
        UnknownTarget: there is none of that name; says which there are.
        MissingPackage: it comes from another package, and that does not load.
    """
    if name in BACKENDS:
        own: Backend = importlib.import_module(BACKENDS[name]).Backend()
        return own
    entry = _foreign().get(name)
    if entry is None:
        raise UnknownTarget(f"backend {name!r} is unknown.", f"Known: {', '.join(names())}.")
    return _load(entry)


def _foreign() -> dict[str, EntryPoint]:
    found = entry_points(group=ENTRY_POINTS)
    return {entry.name: entry for entry in found if entry.name not in BACKENDS}


def _load(entry: EntryPoint) -> Backend:
    package = entry.dist.name if entry.dist is not None else entry.module
    try:
        made: Backend = entry.load()()
    except Exception as error:  # another's package may raise anything; it must break nothing but itself
        raise MissingPackage(
            f"backend {entry.name!r} of package {package} does not load ({type(error).__name__}: {error}).",
            f"pip install --upgrade {package}",
            package=package,
        ) from error
    return made
