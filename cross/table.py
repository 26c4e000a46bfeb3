"""Writes the table of boards and checks into docs/boards.md: `python -m cross.table RESULTS.jsonl`.

RESULTS.jsonl is what `tests/cross/test_boards.py` recorded, a line a check that held. A check that a board lacks was
not asked of it; one that failed leaves no line, and the run itself failed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from cross.board import load

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "boards.md"
BEGIN, END = "<!-- made by `make test-cross DOC=1` -->", "<!-- end of what is made -->"
ORDER = ("zero2w", "pi2", "pi3", "pi4", "pi5", "rock5b")


def read(lines: Iterable[str]) -> dict[str, dict[str, str]]:
    """Check -> board -> result, checks in order of appearance; a check that was repeated counts as last seen."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        entry = json.loads(line)
        found.setdefault(entry["check"], {})[entry["board"]] = entry["result"]
    return found


def tables(results: Mapping[str, Mapping[str, str]]) -> str:
    """One table a board, for a reader who has that board."""
    parts = []
    seen = {board for row in results.values() for board in row}
    for name in sorted(seen, key=ORDER.index):
        board = load(name)
        rows = [f"| {check} | {row[name]} |" for check, row in sorted(results.items()) if name in row]
        title = f"### {board.model} ({board.architecture}, as {board.emulated_cpu})"
        parts.append("\n".join([title, "", "| check | seen |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def matrix(results: Mapping[str, Mapping[str, str]]) -> str:
    """Boards across, checks down: which held where."""
    boards = [name for name in ORDER if any(name in row for row in results.values())]
    lines = [f"| check | {' | '.join(boards)} |", f"|---|{'---|' * len(boards)}"]
    for check, row in sorted(results.items()):
        lines.append(f"| {check} | {' | '.join('held' if name in row else '' for name in boards)} |")
    return "\n".join(lines)


def main() -> None:
    """Put the tables between the two marks of the document."""
    results = read(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    text = DOCUMENT.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n{matrix(results)}\n\n{tables(results)}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
