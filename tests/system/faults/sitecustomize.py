"""Faults of a backend, on demand: on PYTHONPATH of the program under test it makes LiteRT hang, dawdle or fail.

In the folder FAULTS (else /run/faults):

hang     a run does not come back while this is there
slow     a run takes this many seconds longer
lost     a run on the planned target fails, as when its device is gone; a fallback's does not
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/edgert")

from edgert.devices import litert
from edgert.errors import DeviceLost

FAULTS = Path(os.environ.get("FAULTS", "/run/faults"))
_run = litert.Prepared.run


def run(self: Any, inputs: Any) -> Any:
    while (FAULTS / "hang").exists():
        time.sleep(0.05)
    if (FAULTS / "slow").exists():
        time.sleep(float((FAULTS / "slow").read_text()))
    if (FAULTS / "lost").exists() and not self._target.variant:
        raise DeviceLost(f"{self._target}: the device is gone.")
    return _run(self, inputs)


litert.Prepared.run = run  # type: ignore[method-assign]
