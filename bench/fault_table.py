"""The fault matrix as a Markdown table, for docs/reliability.md.

EDGERT_FAULTS=all EDGERT_FAULTS_REPORT=faults.jsonl python -m pytest tests/system/test_faults.py
python -m bench.fault_table faults.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One row a case."""
    lines = [
        "| transport | fault | stage | seen as | requests | by a fallback | slowest answer s | own way again s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['transport']} | {row['fault']} | {row['stage']} | {row['event']} | {row['requests']} "
        f"| {row['fallback']} | {row['slowest_s']:.2f} | {row['back_s']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    sys.stdout.write(table([json.loads(line) for line in text.splitlines()]) + "\n")
