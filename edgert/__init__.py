"""edgert runs each model the fastest correct way that this machine has, and keeps it running when a device fails.

    model = edgert.load("model.onnx")
    result = model.run({"input": array})
    result["output"], result.receipt

Everything public is here; what it takes to run is imported when first asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's: `import edgert` itself imports nothing, and the command sees to Ctrl-C at once
if TYPE_CHECKING:
    from typing import Any

    from edgert import errors
    from edgert.client import Client, connect
    from edgert.devices.probe import probe
    from edgert.errors import EdgertError
    from edgert.loading import load
    from edgert.machine import Device, Machine
    from edgert.model import Model
    from edgert.plan import Plan, Receipt, Tolerance
    from edgert.profile import Target
    from edgert.result import Result

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Device",
    "EdgertError",
    "Machine",
    "Model",
    "Plan",
    "Receipt",
    "Result",
    "Target",
    "Tolerance",
    "__version__",
    "connect",
    "errors",
    "load",
    "probe",
]

_HOMES = {  # public name -> module that defines it
    "Client": "edgert.client",
    "Device": "edgert.machine",
    "EdgertError": "edgert.errors",
    "Machine": "edgert.machine",
    "Model": "edgert.model",
    "Plan": "edgert.plan",
    "Receipt": "edgert.plan",
    "Result": "edgert.result",
    "Target": "edgert.profile",
    "Tolerance": "edgert.plan",
    "connect": "edgert.client",
    "load": "edgert.loading",
    "probe": "edgert.devices.probe",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("edgert.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'edgert' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
