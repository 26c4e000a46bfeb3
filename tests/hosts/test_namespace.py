"""The command `edgert executor` on a box with a network of its own (a network namespace), reached over a veth pair."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import edgert
from edgert.devices import far, hosts
from edgert.transport.keys import Keyring
from tests.planning.conftest import feed, layers  # noqa: F401 - fixtures

pytest.importorskip("onnx", reason="the models are written with onnx")
pytest.importorskip("onnxruntime", reason="the other box runs it")
HERE, THERE, PORT = "10.213.77.1", "10.213.77.2", 5599
SERVE = "from edgert.cli import main; main()"


def ip(*words, check=True):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check)


@pytest.fixture
def network():
    """A namespace with one end of a veth pair; its name, and the name of the end here."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace takes root and iproute2")
    space, end = f"edgert-{os.getpid()}", f"edg{os.getpid() % 100_000}"
    made = ip("netns", "add", space, check=False)
    if made.returncode:
        pytest.skip(f"this system makes no network namespace: {made.stderr.strip()}")
    try:
        ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("addr", "add", f"{HERE}/30", "dev", end)
        ip("link", "set", end, "up")
        for words in (("addr", "add", f"{THERE}/30", "dev", "eth0"), ("link", "set", "eth0", "up"),
                      ("link", "set", "lo", "up")):  # fmt: skip
            ip("-n", space, *words)
        yield space, end
    finally:
        ip("netns", "del", space)


@pytest.fixture
def box(network, tmp_path, monkeypatch):
    """The command in the namespace, named in our hosts file; the name of our end of the link."""
    ours, theirs = Keyring(tmp_path / "a"), Keyring(tmp_path / "b")
    ours.allow("boxb", theirs.make().public)
    theirs.allow("boxa", ours.make().public)
    monkeypatch.setenv("EDGERT_KEYS", str(ours.folder))
    monkeypatch.setenv("EDGERT_HOSTS", str(tmp_path / "hosts.json"))
    endpoint = f"tcp://{THERE}:{PORT}"
    (tmp_path / "hosts.json").write_text(json.dumps({"hosts": {"boxb": {"endpoints": [endpoint], "key": "boxb"}}}))
    environment = {**os.environ, "EDGERT_KEYS": str(theirs.folder), "EDGERT_HOSTS": str(tmp_path / "none.json")}
    command = ["ip", "netns", "exec", network[0], sys.executable, "-c", SERVE, "executor", "--device", "cpu:0",
               "--listen", f"tcp://0.0.0.0:{PORT}"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        words = iter(process.stderr.readline, "")
        assert any("listens at" in line for line in words), "the executor ended"
        yield network[1]
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_a_box_on_the_network_runs_a_model_until_its_cable_is_pulled(machine_of, box, layers, feed, tmp_path):  # noqa: F811
    machine = far.joined(machine_of("trudges"), hosts.named())
    assert machine.device("boxb.cpu:0").kind == "cpu"
    assert {link.source for link in machine.links} == {"cpu:0", "boxb.cpu:0"}
    path = layers(tmp_path / "layers.onnx", "Relu", "Tanh", "Relu", "Relu")
    wishes = {"targets": ["onnxruntime@boxb.cpu:0", "trudges@*"], "budget_s": 8, "cache_dir": tmp_path / "cache"}
    with edgert.load(path, machine=machine, **wishes) as model:
        near = model.run(feed)
        assert {target.device for target in near.receipt.targets} == {"boxb.cpu:0"}
        assert near.receipt.verified
        ip("link", "set", box, "down")  # no word of farewell: nothing comes any more
        lost = model.run(feed)
        assert lost.receipt.degraded
        assert {target.device for target in lost.receipt.targets} == {"cpu:0"}
        np.testing.assert_allclose(lost["y"], near["y"], rtol=1e-4, atol=1e-5)
        ip("link", "set", box, "up")
