"""`python -m bench.zoo FOLDER [--only NAME ...]`: build the zoo, skipping what is there."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.zoo import NAMES, PRECISIONS, TFLITE_NAMES, Format, build, default_folder


def main() -> None:
    """Parse, build, say what was built."""
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description="Builds models of real shapes.")
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=sorted({*NAMES, *TFLITE_NAMES}))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    options = parser.parse_args()
    forms: tuple[tuple[Format, tuple[str, ...]], ...] = (("onnx", NAMES), ("tflite", TFLITE_NAMES))
    for form, names in forms:
        for name in names:
            if options.only is not None and name not in options.only:
                continue
            for precision in options.precision:
                start = time.perf_counter()
                path = build(name, precision, options.folder, format=form)
                took_s, size_mb = time.perf_counter() - start, path.stat().st_size / 1e6
                sys.stdout.write(f"{path}  {size_mb:.1f} MB  {took_s:.1f} s\n")


if __name__ == "__main__":
    main()
