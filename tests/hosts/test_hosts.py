"""Two boxes and the network between them: real processes, real TCP with keys, a relay that makes the link worse."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.devices import far, hosts
from edgert.devices.hosts import Far
from edgert.errors import ChildDied, OptionError
from edgert.machine import Device
from edgert.transport import frames
from edgert.transport.keys import KeyPair, Keyring
from tests.hosts.relay import Relay
from tests.planning.conftest import feed, layers  # noqa: F401 - fixtures

pytest.importorskip("onnx", reason="the models are written with onnx")
GPU = Device("gpu:0", "gpu", "a device on paper", 0, driver="1.0")
BOX = Path(__file__).parent / "box.py"
ENOUGH_S = 60.0
"""More than a busy machine needs for anything here; what is ready sooner ends sooner."""


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Two keyrings that know each other; ours is the default."""
    ours, theirs = Keyring(tmp_path / "a"), Keyring(tmp_path / "b")
    ours.allow("boxb", theirs.make().public)
    theirs.allow("boxa", ours.make().public)
    monkeypatch.setenv("EDGERT_KEYS", str(ours.folder))
    return ours, theirs


@pytest.fixture
def box(foreign, keys, monkeypatch, request):
    """The other box, with `swift` on its gpu:0, behind a relay; a parameter is the version of its messages."""
    monkeypatch.setattr(far, "ASK_S", ENOUGH_S)
    site = Path(sys.modules["foreign_backends"].__file__).parent
    told = {
        "site": str(site),
        "endpoint": "tcp://127.0.0.1:0",
        "device": dataclasses.asdict(GPU),
        "backends": ["swift"],
        **({"version": request.param} if hasattr(request, "param") else {}),
    }
    environment = {**os.environ, "EDGERT_KEYS": str(keys[1].folder)}
    with subprocess.Popen(
        [sys.executable, str(BOX), json.dumps(told)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        port = int(process.stdout.readline().rpartition(":")[2])
        relay = Relay("127.0.0.1", port)
        relay.process = process
        yield relay
        process.kill()
        process.wait()
        relay.close()


def named(relay):
    return {"boxb": (Far(f"tcp://127.0.0.1:{relay.port}", "boxb"),)}


@pytest.fixture
def here(machine_of):
    return machine_of("trudges")


def wait_for(condition, limit_s=ENOUGH_S):
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_devices_of_another_host_appear_with_their_measured_link(here, box):
    near = far.joined(here, named(box))
    device = near.device("boxb.gpu:0")
    assert device.kind == "gpu"
    assert {(reach.backend, reach.health) for reach in near.reaches if reach.device == device.id} == {("swift", "ok")}
    fast = {(link.source, link.sink): link for link in near.links}
    assert set(fast) == {("cpu:0", "boxb.gpu:0"), ("boxb.gpu:0", "cpu:0")}
    box.delay_s = 0.05
    slow = far.joined(here, named(box))
    for link in slow.links:
        assert link.latency_s > 0.09 > fast[link.source, link.sink].latency_s
    assert slow.fingerprint != near.fingerprint != here.fingerprint


@pytest.mark.parametrize(("small_s", "large_s"), [(0.0101, 0.0101), (0.0201, 0.0101), (0.001, 0.0101)])
def test_a_small_array_that_was_late_makes_no_infinite_bandwidth(small_s, large_s):
    link = far._fitted("cpu:0", "boxb.gpu:0", [small_s, large_s])
    size = far._BYTES[1]
    assert link.latency_s + size / link.bandwidth_bytes_per_s == pytest.approx(large_s)
    assert size / large_s <= link.bandwidth_bytes_per_s <= 10 * size / large_s


def test_a_host_that_is_off_or_does_not_know_us_is_left_out_with_the_reason(here, box, keys, monkeypatch):
    box.cut()
    with monkeypatch.context() as patch:
        patch.setattr(far, "ASK_S", 0.5)
        off = far.joined(here, named(box))
    assert off.devices == here.devices
    (reach,) = [reach for reach in off.reaches if reach.device == "boxb"]
    assert reach.health == "failed"
    assert "nobody answers" in reach.detail
    assert "firewall" in reach.detail
    box.mend()
    keys[1].remove("boxa")
    strange = far.joined(here, named(box))
    assert "edgert keys allow" in strange.reaches[-1].detail
    keys[0].remove("boxb")
    assert "there is no key for peer 'boxb'" in far.joined(here, named(box)).reaches[-1].detail


@pytest.mark.parametrize("box", [frames.VERSION + 1], indirect=True)
def test_a_host_of_another_release_is_left_out_and_says_what_to_upgrade(here, box, monkeypatch):
    monkeypatch.setattr(far, "ASK_S", 600)  # it is told at once, and not when time is up
    reach = far.joined(here, named(box)).reaches[-1]
    assert (reach.device, reach.health) == ("boxb", "failed")
    assert f"speaks version {frames.VERSION + 1}" in reach.detail
    assert "Upgrade the edgert here" in reach.detail


@pytest.fixture
def path(layers, tmp_path):  # noqa: F811 - a fixture
    """Twelve layers; the third has an op that the other box does not take. 50 ms each here, next to nothing there."""
    return layers(tmp_path / "layers.onnx", "Relu", "Relu", "Tanh", *["Relu"] * 9)


def places(plan):
    return [(segment.target.device, len(segment.nodes)) for segment in plan.segments]


def test_the_cut_moves_as_the_link_gets_worse(here, box, path, feed, tmp_path):  # noqa: F811 - a fixture
    """Each choice is better than the next by 100 ms at least, and what a busy machine adds to the ways changes none.

    A way there and back takes 0, 0.2 and 0.8 s. All here takes 0.6 s; with one way 0.15 s stay here, with two 0.05 s.
    """
    seen = []
    wanted = None
    for delay_s, budget_s in ((0.0, ENOUGH_S), (0.1, ENOUGH_S), (0.4, 4)):
        box.delay_s = delay_s
        machine = far.joined(here, named(box))
        with edgert.load(path, machine=machine, budget_s=budget_s, cache_dir=tmp_path / "cache") as model:
            seen.append(places(model.plan))
            result = model.run(feed)
            assert result.receipt.targets == model.plan.targets
            assert not result.receipt.degraded
            wanted = result["y"] if wanted is None else wanted
            np.testing.assert_allclose(result["y"], wanted, rtol=1e-4, atol=1e-5)
    assert [device for device, _ in seen[0]] == ["boxb.gpu:0", "cpu:0", "boxb.gpu:0"]
    assert [device for device, _ in seen[1]] == ["cpu:0", "boxb.gpu:0"]
    assert [device for device, _ in seen[2]] == ["cpu:0"]


def test_a_box_that_vanishes_is_a_lost_device_and_is_taken_back(here, box, layers, feed, tmp_path):  # noqa: F811 - fixtures
    path = layers(tmp_path / "layers.onnx", "Relu", "Tanh", "Relu")
    machine = far.joined(here, named(box))
    with edgert.load(path, machine=machine, budget_s=ENOUGH_S, cache_dir=tmp_path / "cache") as model:
        right = model.run(feed)
        assert "boxb.gpu:0" in {target.device for target in right.receipt.targets}
        box.cut()
        lost = model.run(feed)
        assert lost.receipt.degraded
        assert {target.device for target in lost.receipt.targets} == {"cpu:0"}
        np.testing.assert_allclose(lost["y"], right["y"], rtol=1e-4, atol=1e-5)
        box.mend()
        wait_for(lambda: not model.run(feed).receipt.degraded)


def test_a_child_elsewhere_that_crashes_is_a_dead_child_and_its_executor_lives(here, box, monkeypatch):
    machine = far.joined(here, named(box))
    place = Far.of(machine.device("boxb.gpu:0"))
    child = far.FarChild(place, "test")
    child.call("empty", timeout_s=30)
    for method in ("signature", "reaches", "nonsense"):
        with pytest.raises(OptionError):
            child.call(method, {"backend": "swift", "path": "/etc/passwd"}, timeout_s=30)
    box.cut()
    with pytest.raises(ChildDied):
        child.call("empty", timeout_s=2)
    with monkeypatch.context() as patch:
        patch.setattr(far, "ASK_S", 0.1)  # nobody is there to be asked
        child.close()
    box.mend()
    assert far.joined(here, named(box)).device("boxb.gpu:0")


@pytest.mark.parametrize("content", ["{", "[]", '{"hosts": {"a": 5}}', '{"hosts": {"A b": {"endpoints": []}}}'])
def test_a_malformed_hosts_file_is_an_option_error(tmp_path, content):
    (tmp_path / "hosts.json").write_text(content)
    with pytest.raises(OptionError):
        hosts.named(tmp_path / "hosts.json")


def test_the_hosts_file_names_executors(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGERT_HOSTS", str(tmp_path / "hosts.json"))
    assert hosts.named() == {}
    key = KeyPair.random().public
    (tmp_path / "hosts.json").write_text(
        json.dumps({"hosts": {"boxb": {"endpoints": ["tcp://10.0.0.2:5599", "tcp://10.0.0.2:5600"], "key": key}}})
    )
    assert hosts.named() == {"boxb": (Far("tcp://10.0.0.2:5599", key), Far("tcp://10.0.0.2:5600", key))}
