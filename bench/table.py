"""A Markdown table of what `edgert bench --json` measured, for docs/benchmarks.md.

edgert bench MODEL... --json > own.json
python -m bench.table own.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def table(document: Mapping[str, Any]) -> str:
    """One row a model: the choice, its time, the interval against its rival, and that of plain ONNX Runtime over it."""
    lines = [
        "| model | chosen | p50 ms | fastest other | chosen / other (95%) | plain ORT / chosen (95%) | verified |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in document["models"]:
        rows = {row["role"]: row for row in report["rows"]}
        chosen = rows.get("chosen", {"p50_s": 0.0})
        lines.append(
            f"| {report['model'].replace('-v2', '')} | `{report['chosen']}` | {1e3 * chosen['p50_s']:.3f} "
            f"| `{report['rival'] or '-'}` | {_interval(report['over_rival'])} | {_interval(report['speedup'])} "
            f"| {'yes' if report['verified'] else 'no'} |"
        )
    return "\n".join(lines)


def _interval(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


if __name__ == "__main__":
    sys.stdout.write(table(json.loads(Path(sys.argv[1]).read_text())) + "\n")
