"""Another box: an executor that owns a device on paper, driven by a backend of `tests/foreign`. A program."""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    sys.path.insert(0, told["site"])
    from edgert.transport import frames

    if "version" in told:  # as an edgert of another release
        frames.VERSION, frames._OURS = told["version"], frames._START.pack(b"EDRM", told["version"])
    from edgert.execution.executor import Executor
    from edgert.execution.mail import Mail
    from edgert.machine import Reach, device_from_json

    executor = Executor(
        device_from_json(told["device"]),
        Mail.bound(told["endpoint"]),
        reaches=[Reach(backend, told["device"]["id"], "", "ok") for backend in told["backends"]],
    )
    sys.stdout.write(f"{executor.endpoint}\n")
    sys.stdout.flush()
    executor.serve()
