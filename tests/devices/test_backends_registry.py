from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgert import devices
from edgert.errors import UnknownTarget

EXAMPLE = Path(__file__).parent / "example_backend"


def test_importing_devices_imports_no_library_that_runs_models():
    code = (
        "import sys, edgert.devices\n"
        "heavy = {'onnxruntime', 'openvino', 'ai_edge_litert', 'onnx', 'zmq', 'tflite_runtime'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_name_of_the_table_is_a_backend_of_that_name():
    assert [devices.backend(name).name for name in devices.BACKENDS] == list(devices.BACKENDS)


def test_an_unknown_backend_is_named_with_those_that_there_are():
    with pytest.raises(UnknownTarget, match=r"'tensorflow' is unknown.*onnxruntime, openvino"):
        devices.backend("tensorflow")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the example package as pip installs it, and its build left outside the repository."""
    folder = tmp_path_factory.mktemp("site")
    copy = shutil.copytree(EXAMPLE, folder / "build")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    made = subprocess.run(
        [*command, "--target", str(folder / "site"), str(copy)], capture_output=True, text=True, check=False
    )
    if made.returncode and "setuptools" in made.stderr:
        pytest.skip("setuptools is not installed here, which builds the example package")
    assert made.returncode == 0, made.stderr
    return folder / "site"


def run_with(site, code):
    path = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_packages_backend_is_found_and_runs(site, line):
    code = f"""
from pathlib import Path
import numpy as np
from edgert import devices
from edgert.devices.backend import Source
from edgert.machine import Device
from edgert.formats import open_model

assert "example" in devices.names()
backend = devices.backend("example")
file = open_model({str(line)!r})
source = Source(file.path, file.format, file.graph.inputs, file.graph.outputs, file.precision)
cpu = Device("cpu:0", "cpu", "the CPU", 0)
(target,) = backend.targets(source, cpu, "", [1])
print(target, backend.prepare(source, target, cpu).run({{"x": np.ones((1, 4), np.float32)}})["y"].tolist())
"""
    assert run_with(site, code) == "example@cpu:0/f32/1t [[3.0, 3.0, 3.0, 3.0]]\n"


def test_a_broken_package_breaks_nothing_but_its_own_backend(site):
    code = """
from edgert import devices
from edgert.errors import MissingPackage

assert {"broken", "example", "onnxruntime"} <= set(devices.names())
assert devices.backend("example").version() == "1.0"
try:
    devices.backend("broken")
except MissingPackage as error:
    print(error)
"""
    said = run_with(site, code)
    assert "'broken' of package edgert-example-backend" in said
    assert "its library is broken" in said
    assert "pip install" in said


def test_another_package_cannot_take_the_name_of_an_own_backend(site):
    code = "from edgert import devices; print(type(devices.backend('onnxruntime')).__module__, devices.names())"
    said = run_with(site, code)
    assert said.startswith("edgert.devices.onnxruntime")
    assert said.count("'onnxruntime'") == 1
