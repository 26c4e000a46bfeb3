"""pytest; under CI the few tests that failed beside others get one more try, alone.

    python .ci/tests.py PYTEST-ARGUMENTS

Two noisy cores that run two workers, each with processes of its own, sometimes starve a test of what it waits for. That
is worth knowing and no reason to refuse a change: what fails alone too is. Both outcomes are printed, and the names of
those that passed the second time go to the file that EDGERT_CHANCE names, which `.ci/run` shows at its end. Elsewhere
a test that fails has failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MOST = 6
"""More failed tests than this are no chance."""
FAILED = Path(".pytest_cache/v/cache/lastfailed")


def main(arguments: list[str]) -> int:
    """The exit status of pytest; 0 too where all that failed passed alone."""
    pytest = [sys.executable, "-m", "pytest", *arguments]
    FAILED.unlink(missing_ok=True)
    status = subprocess.call(pytest)
    names = sorted(json.loads(FAILED.read_text())) if status == 1 and FAILED.is_file() else []
    if not os.environ.get("CI") or not 0 < len(names) <= MOST:
        return status
    print("\n=== failed beside others, once more alone:", *names, sep="\n    ", flush=True)  # noqa: T201 - for the log
    status = subprocess.call([*pytest, "--last-failed", "--last-failed-no-failures=none", "-n", "0"])
    if status == 0 and (record := os.environ.get("EDGERT_CHANCE")):
        with open(record, "a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in names)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
