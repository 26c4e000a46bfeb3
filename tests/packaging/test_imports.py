"""What an import loads, and which library is reached from where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("onnx", "onnx_ir", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "zmq", "typer", "rich")
VENDORS = ("onnxruntime", "openvino", "tflite_runtime", "ai_edge_litert.interpreter", "ai_edge_litert.compiled_model")


@pytest.mark.parametrize("module", ["edgert", "edgert.devices", "edgert.graph", "edgert.plan"])
def test_import_loads_no_backend_no_onnx_and_no_zmq(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def imports(file: Path) -> set[str]:
    """The dotted names that a module imports, anywhere in it; 'a' and 'a.b' for `from a import b`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_only_devices_imports_what_runs_models() -> None:
    files = [*(ROOT / "edgert").rglob("*.py"), *(ROOT / "partitioner").rglob("*.py")]
    assert len(files) > 20
    guilty = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imports(file)
        if any(name == vendor or name.startswith(f"{vendor}.") for vendor in VENDORS)
    }
    assert guilty == set()


def test_backends_are_imported_inside_functions_only() -> None:
    """A missing library must never break an import of edgert."""
    guilty = [
        f"{file.name}: {ast.unparse(node)}"
        for file in (ROOT / "devices").glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.split(".")[0] in HEAVY
    ]
    assert guilty == []
