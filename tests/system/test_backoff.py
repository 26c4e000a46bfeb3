"""How the services wait between failures: cross/systemd/backoff, run as systemd runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

BACKOFF = Path(__file__).resolve().parents[2] / "cross/systemd/backoff"


def pause(state: Path, result: str, at_s: int) -> int:
    """What it sleeps after an end with this result, so long after the boot."""
    tools = state / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "sleep").write_text(f'#!/bin/sh\necho "$1" >{state}/slept\n')
    (tools / "sleep").chmod(0o755)
    (state / "slept").write_text("0")
    (state / "uptime").write_text(f"{at_s}.50 {2 * at_s}.25\n")
    environment = {"PATH": f"{tools}:{os.defpath}", "STATE_DIRECTORY": str(state), "SERVICE_RESULT": result}
    environment["UPTIME"] = str(state / "uptime")
    subprocess.run([BACKOFF], env=environment, check=True)
    return int((state / "slept").read_text())


def test_failures_in_a_row_wait_ever_longer_up_to_a_limit(tmp_path: Path) -> None:
    at_s, pauses = 1000, []
    for _ in range(8):
        pauses.append(pause(tmp_path, "watchdog", at_s))
        at_s += pauses[-1] + 2
    assert pauses == [0, 1, 3, 7, 15, 25, 25, 25]


def test_a_minute_without_failure_forgets_them(tmp_path: Path) -> None:
    assert [pause(tmp_path, "signal", at_s) for at_s in (1000, 1002, 1003 + 60)] == [0, 1, 0]


def test_an_orderly_end_forgets_them(tmp_path: Path) -> None:
    results = ("signal", "success", "signal")
    assert [pause(tmp_path, result, 1000 + number) for number, result in enumerate(results)] == [0, 0, 0]


def test_failures_of_an_earlier_boot_are_forgotten(tmp_path: Path) -> None:
    assert [pause(tmp_path, "signal", at_s) for at_s in (1000, 1002, 30)] == [0, 1, 0]
