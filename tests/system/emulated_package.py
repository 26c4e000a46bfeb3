"""A Debian package's modules on an emulated board."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from cross import board as boards
from cross.emulate import Emulated

PROGRAM = """
import json, sys
sys.path.insert(0, "/srv/product")
import numpy as np
import edgert
from edgert.data import path

with edgert.load(path("digits_i8.tflite"), budget_s=0, cache_dir="/srv/cache") as model:
    receipt = model.run(np.zeros((1, 8, 8, 1), np.int8)).receipt
backend = next(sys.modules[name] for name in ("ai_edge_litert", "tflite_runtime") if name in sys.modules)
absent = [name for name in ("onnx", "onnx_ir", "onnxruntime", "ortools") if name in sys.modules]
print(json.dumps([str(receipt.targets[0]), edgert.__file__, backend.__file__, absent]))
"""


def answer(package: Path, board_name: str, folder: Path) -> str:
    """The target that answered; edgert and the backend are the package's own, numpy and pyzmq the board's."""
    subprocess.run(["dpkg-deb", "-x", package, folder / "tree"], check=True)
    library = folder / "tree/usr/lib/edgert"
    (library / "program.py").write_text(PROGRAM)
    board = boards.load(board_name)
    own = Emulated(board, board.environments[0], folder / "board", binds={library: "/srv/product"})
    done = own.run("/srv/product/program.py")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    target, edgert_file, backend_file, absent = json.loads(done.stdout.splitlines()[-1])
    assert edgert_file.startswith("/srv/product/")
    assert backend_file.startswith("/srv/product/")
    assert absent == []
    return str(target)
