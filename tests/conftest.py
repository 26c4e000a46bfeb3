"""What all tests share: a cache of their own, small models, machines, and backends of another package."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from edgert import devices
from edgert.devices.probe import glance
from edgert.machine import Reach
from edgert.measure import REMOTES

settings.register_profile("edgert", deadline=None, max_examples=60)  # a loaded machine is no failure
# Under CI every run tries the same examples, as in Hypothesis's own profile for CI: a change is refused for what it
# broke, not for what nobody had drawn before. New ones are drawn in every run elsewhere; `make solvers` draws many.
settings.register_profile(
    "edgert-ci", parent=settings.get_profile("edgert"), derandomize=True, database=None, print_blob=True
)
settings.load_profile("edgert-ci" if os.environ.get("CI") else "edgert")

FOREIGN = Path(__file__).parent / "foreign"
"""Holds `foreign_backends.py`, installed for a test by the fixture `foreign`."""


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory):
    """No test reads or writes the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGERT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_child_outlives_the_tests():
    yield
    REMOTES.close()


@pytest.fixture
def no_child_waits():
    """Children kept for reuse are ended: the next one is started anew."""
    REMOTES.close()
    yield
    REMOTES.close()


@pytest.fixture(scope="session")
def line(tmp_path_factory):
    """y = 2 x + 1 for x of float32 (N, 4), as .onnx: what the backends of `tests/foreign` compute too."""
    onnx = pytest.importorskip("onnx", reason="the model is written with onnx")
    helper, f32 = onnx.helper, onnx.TensorProto.FLOAT
    constants = [onnx.numpy_helper.from_array(np.float32([value]), name) for name, value in (("two", 2), ("one", 1))]
    nodes = [helper.make_node("Mul", ["x", "two"], ["m"]), helper.make_node("Add", ["m", "one"], ["y"])]
    graph = helper.make_graph(
        nodes, "line", [helper.make_tensor_value_info("x", f32, ("N", 4))],
        [helper.make_tensor_value_info("y", f32, ("N", 4))], constants,
    )  # fmt: skip
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = tmp_path_factory.mktemp("line") / "line.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Another package's backends, as `pip install` would leave them: see `tests/foreign/foreign_backends.py`."""
    site = tmp_path_factory.mktemp("site")
    module = "foreign_backends"
    (site / f"{module}.py").write_bytes((FOREIGN / f"{module}.py").read_bytes())
    info = site / "edgert_foreign-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgert-foreign\nVersion: 1.0\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        import foreign_backends

        points = [f"{name} = {module}:{kind.__name__}" for name, kind in foreign_backends.BY_NAME.items()]
        (info / "entry_points.txt").write_text("\n".join(["[edgert.backends]", *points, ""]), encoding="utf-8")
        devices.backend.cache_clear()  # of another file's copy of the module
        yield foreign_backends
        REMOTES.close()
    devices.backend.cache_clear()
    sys.modules.pop(module, None)


@pytest.fixture
def machine_of(foreign):
    """Makes this machine's description with the named backends alone, each on cpu:0 or as 'backend@device'."""

    def make(*names, devices=()):
        seen = glance()
        pairs = [(name.partition("@")[0], name.partition("@")[2] or "cpu:0") for name in names]
        reaches = tuple(Reach(backend, device) for backend, device in pairs)
        return dataclasses.replace(seen, devices=(*seen.devices, *devices), reaches=reaches)

    return make


@pytest.fixture
def x():
    return np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="session")
def known_models():
    """The folder of real models with known answers."""
    folder = os.environ.get("EDGERT_MODELS")
    if not folder:
        pytest.skip("EDGERT_MODELS is not set")
    return Path(folder)


@contextlib.contextmanager
def no_more_files():
    """This process may open none; those that are open stay so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    held = [os.open(os.devnull, os.O_RDONLY)]
    while held[-1] < highest:  # fill the gaps below
        held.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


def open_descriptors():
    """How many file descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))
