"""What it costs to hand values to a device and to take them back."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal

import pytest

from edgert.devices import links, probe
from edgert.devices.backend import Source
from edgert.devices.host import Host
from edgert.devices.remote import Remote
from edgert.formats import open_model
from edgert.machine import Device, Machine, Reach
from edgert.profile import Target


def machine_with(*ids, health="ok"):
    seen = probe.glance()
    others = tuple(Device(name, name[:3], f"a {name}", 0) for name in ids)
    reaches = tuple(Reach("somebody", name, health=health) for name in ids)
    return dataclasses.replace(seen, devices=(*seen.devices[:1], *others), reaches=(*seen.reaches, *reaches))


class Counts(Host):
    """Tells how many bytes came in and went out, in each size."""

    def _do(self, method, body, data):
        self.moved = getattr(self, "moved", {"transfer": [], "fetch": []})
        if method == "moved":
            return self.moved, {}
        body, made = super()._do(method, body, data)
        if method in self.moved:
            self.moved[method].append(sum(array.nbytes for array in (made or data).values()))
        return body, made


def test_every_pair_of_devices_has_a_link_each_way():
    machine = machine_with("gpu:0", "npu:0")
    found = probe.links_of(machine, lambda _message, _share: None)
    names = ("cpu:0", "gpu:0", "npu:0")
    assert {(link.source, link.sink) for link in found} == {(a, b) for a in names for b in names if a != b}
    assert len(found) == 6
    assert all(link.latency_s > 0 and link.bandwidth_bytes_per_s > 1e6 for link in found)
    through = {(link.source, link.sink): link for link in found}
    apart = through["gpu:0", "cpu:0"].latency_s + through["cpu:0", "npu:0"].latency_s
    assert through["gpu:0", "npu:0"].latency_s == pytest.approx(apart)


def test_both_ways_are_measured_at_several_sizes():
    remote = Remote("counts", service=f"{__name__}:Counts")
    try:
        links.measure({"gpu:0": remote}, machine_with("gpu:0"))
        moved, _ = remote.call("moved")
    finally:
        remote.close()
    assert len(set(moved["transfer"])) >= 4
    assert sorted(moved["transfer"]) == sorted(moved["fetch"])


def test_what_a_child_holds_stays_there(foreign, line, x):
    remote, machine = Remote("links"), machine_with("gpu:0")
    file = open_model(line)
    source = Source(line, file.format, file.graph.inputs, file.graph.outputs, file.precision)
    try:
        remote.hold("x", {"x": x})
        runnable = remote.prepare(source, Target("right", "gpu:0", "f32"), machine.device("gpu:0"), timeout_s=60.0)
        links.measure({"gpu:0": remote}, machine)
        outputs, _ = runnable.run_held("x")
    finally:
        remote.close()
    assert (outputs["y"] == 2 * x + 1).all()


@pytest.mark.parametrize("health", ["wrong", "failed", "untested"])
def test_a_device_that_nothing_drives_right_has_no_link(health):
    assert probe.links_of(machine_with("gpu:0", health=health), lambda _message, _share: None) == ()


def test_a_child_that_dies_costs_the_links_and_not_the_probe(monkeypatch, caplog):
    def dies(remotes, machine):
        remotes["gpu:0"].start()
        os.kill(remotes["gpu:0"].pid, signal.SIGKILL)
        remotes["gpu:0"].call("empty")

    monkeypatch.setattr(links, "measure", dies)
    with caplog.at_level(logging.WARNING):
        assert probe.links_of(machine_with("gpu:0"), lambda _message, _share: None) == ()
    assert "links were not measured" in caplog.text


def test_links_travel_with_the_machine():
    machine = machine_with("gpu:0")
    machine = dataclasses.replace(machine, links=probe.links_of(machine, lambda _message, _share: None))
    assert Machine.from_json(machine.to_json()) == machine
