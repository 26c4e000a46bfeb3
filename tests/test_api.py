"""The public surface: what `edgert` exports, that all of it is documented, and what importing it costs."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import edgert

EXPORTED = [
    "Client", "Device", "EdgertError", "Machine", "Model", "Plan", "Receipt", "Result", "Target", "Tolerance",
    "__version__", "connect", "errors", "load", "probe",
]  # fmt: skip


def test_the_exported_names_are_these():
    assert sorted(edgert.__all__) == EXPORTED
    assert dir(edgert) == sorted(edgert.__all__)


@pytest.mark.parametrize("name", EXPORTED)
def test_every_exported_name_is_there(name):
    assert getattr(edgert, name) is not None


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'tensorfast'"):
        edgert.tensorfast  # noqa: B018 - the access is the test


def test_everything_can_be_star_imported():
    names: dict[str, object] = {}
    exec("from edgert import *", names)
    assert set(EXPORTED) <= set(names)


@pytest.mark.parametrize("name", [name for name in EXPORTED if not name.startswith("__")])
def test_everything_public_is_documented(name):
    thing = getattr(edgert, name)
    undocumented = [] if inspect.getdoc(thing) else [name]
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            public = not member.startswith("_") and (callable(value) or isinstance(value, property))
            if public and not inspect.getdoc(getattr(thing, member, value)):
                undocumented.append(f"{name}.{member}")
    assert not undocumented


def test_load_documents_every_argument_and_error():
    text = inspect.getdoc(edgert.load)
    for name in inspect.signature(edgert.load).parameters:
        assert f"{name}:" in text
    for name in ("ModelNotFound", "UnknownTarget", "OptionError", "CacheUnwritable"):
        assert name in text


def test_everything_public_is_annotated():
    for call in (edgert.load, edgert.probe, edgert.Model.run, edgert.Model.submit):
        signature = inspect.signature(call)
        assert signature.return_annotation is not inspect.Signature.empty
        named = [item for item in signature.parameters.values() if item.name != "self"]
        assert all(item.annotation is not inspect.Parameter.empty for item in named)


def test_plans_receipts_and_machines_are_immutable():
    for kind in (edgert.Plan, edgert.Receipt, edgert.Machine, edgert.Device, edgert.Target, edgert.Tolerance):
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen


IMPORTED = """
import sys
import {what}
heavy = ("onnx", "onnx_ir", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "zmq", "ml_dtypes", "typer",
         "rich", "PIL", "subprocess", "asyncio")
print(*(name for name in heavy if name in sys.modules))
"""


def modules_after(statement):
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def test_importing_edgert_loads_no_backend_and_no_reader():
    numpys = modules_after(IMPORTED.format(what="numpy"))
    assert set(modules_after(IMPORTED.format(what="edgert"))) <= set(numpys)


def test_the_api_itself_loads_no_backend_until_a_model_is_loaded():
    found = modules_after(IMPORTED.format(what="edgert; edgert.load; edgert.probe"))
    assert set(found) <= {"subprocess"}


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert edgert.__version__ == version("edgert")
