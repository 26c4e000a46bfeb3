"""`python -m edgert.partitioner FILE.json --objective throughput|latency [--contiguous] [--time-limit S]`.

Solves a problem file (the format is in docs/partitioning.md) with the solvers that place real models, and prints
{"placement": {id: "cpu" | "acc:K"}, "cost", "bound", "gap", "seconds", "proved"}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from edgert.errors import EdgertError, ModelCorrupt, ModelNotFound, OptionError
from edgert.partitioner.files import problem_from_json
from edgert.partitioner.solve import solve

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Solve one file; 0, or 1 with the reason and the remedy on stderr."""
    parser = argparse.ArgumentParser(prog="python -m edgert.partitioner", description="Place a problem file's nodes.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--objective", choices=["throughput", "latency"], required=True)
    parser.add_argument("--contiguous", action="store_true", help="throughput: one convex piece on each accelerator")
    parser.add_argument("--time-limit", type=float, default=55.0, metavar="S", help="seconds (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        problem = problem_from_json(_read(options.file), options.objective, options.contiguous)
        solution = solve(problem, options.time_limit)
    except EdgertError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    answer = {
        "placement": dict(solution.placement),
        "cost": solution.cost,
        "bound": solution.bound,
        "gap": solution.gap,
        "seconds": solution.seconds,
        "proved": solution.proved,
    }
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise ModelNotFound(
            f"problem file {str(path)!r}: {error.strerror}.", "Give a file that can be read."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelCorrupt(f"problem file {str(path)!r} is no JSON: {error}.", "Give a JSON file.") from error


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object; a field that is there twice is refused, since either may be the one that is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"an object of the problem file has the field {twice!r} twice.", "Keep one.")
    return found


if __name__ == "__main__":
    sys.exit(main())
