"""What the tests of the Debian package run inside the container, with the package's own Python and edgert.

inside_container.py ask NAME            one request; its receipt and outputs
inside_container.py status
inside_container.py stream NAME N       N threads ask until /share/stop is there; one line for each outcome
inside_container.py until NAME          asks until it is answered; seconds since the start of this program
inside_container.py load FILE           the library itself: its plan, then a line for each run until /share/stop
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, "/usr/lib/edgert")

import edgert
from edgert.serving.roster import zeros

STOP = Path("/share/stop")


def tell(thing: object) -> None:
    sys.stdout.write(json.dumps(thing) + "\n")
    sys.stdout.flush()


def outcome(client: edgert.Client, name: str, timeout_s: float = 20.0) -> dict[str, object]:
    """One request with zeros, and how it ended."""
    try:
        sample = zeros(client.model(name).inputs)
        assert sample is not None
        result = client.run(name, sample, timeout_s=timeout_s)
    except edgert.EdgertError as error:
        return {"error": type(error).__name__, "message": error.message}
    outputs = {key: value.tolist() for key, value in result.items()}
    return {"receipt": result.receipt.to_json(), "outputs": outputs}


def stream(name: str, threads: int) -> None:
    with edgert.Client("ipc:///run/edgert/edgert.sock") as client:

        def ask() -> None:
            while not STOP.exists():
                tell(outcome(client, name))

        workers = [threading.Thread(target=ask) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def until(name: str) -> None:
    started_s = time.monotonic()
    with edgert.Client("ipc:///run/edgert/edgert.sock") as client:
        while "error" in (got := outcome(client, name)):
            time.sleep(0.02)
    tell({"seconds": time.monotonic() - started_s, **got})


def load(path: str) -> None:
    with edgert.load(path, budget_s=2) as model:
        tell({"targets": [*map(str, model.plan.targets)], "fallbacks": [*map(str, model.plan.fallbacks)]})
        sample = zeros(model.inputs)
        assert sample is not None
        while not STOP.exists():
            result = model.run(sample)
            outputs = {key: value.tolist() for key, value in result.items()}
            tell({"receipt": result.receipt.to_json(), "outputs": outputs})


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "load":
        load(rest[0])
    elif what == "stream":
        stream(rest[0], int(rest[1]))
    elif what == "until":
        until(rest[0])
    else:
        try:
            with edgert.connect("ipc:///run/edgert/edgert.sock", timeout_s=5.0) as client:
                tell(client.status() if what == "status" else outcome(client, rest[0]))
        except edgert.EdgertError as error:
            tell({"error": type(error).__name__, "message": error.message})


if __name__ == "__main__":
    main()
