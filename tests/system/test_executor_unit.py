"""edgert-executor@.service in a booted container: `make test-systemd` runs these."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cross.systemd import container as systemd
from cross.systemd.container import Container
from tests.system.test_systemd import CACHE, INSIDE, kill, put, share_in, wait_for

UNIT = "edgert-executor@cpu:0"
HOSTS = {"hosts": {"box": {"endpoints": ["ipc:///run/edgert-executor-cpu:0/edgert.sock"]}}}
"""As docs/daemon.md has it."""

pytestmark = [
    pytest.mark.skipif(os.environ.get("EDGERT_SYSTEMD") != "1", reason="run by `make test-systemd`"),
    pytest.mark.skipif(bool(systemd.missing()), reason=f"no container can be booted: it {systemd.missing()}"),
]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share_in(tmp_path_factory.mktemp("share"))


@pytest.fixture(scope="module")
def box(share: Path) -> Iterator[Container]:
    """The package installed, the executor of the CPU started, and somebody in the group."""
    with Container(systemd.make_root(CACHE), share=share) as container:
        container.run("dpkg", "-i", "/share/old.deb")
        container.run("useradd", "-m", "-G", "edgert", "one")
        put(container, "/home/one/hosts.json", json.dumps(HOSTS))
        container.run("systemctl", "start", UNIT)
        yield container


@pytest.fixture
def caller(box: Container, share: Path) -> Iterator[subprocess.Popen[str]]:
    """Somebody's program, whose own LiteRT takes its time, so that the executor's is the faster one. Runs a model again
    and again.
    """
    box.run("sh", "-c", "mkdir -p /run/mine && echo 0.3 >/run/mine/slow")
    environment = (
        "HOME=/home/one",
        "EDGERT_HOSTS=/home/one/hosts.json",
        "PYTHONPATH=/share/faults",
        "FAULTS=/run/mine",
    )
    made = box.start(
        "runuser", "-u", "one", "--", "env", *environment, *INSIDE, "load", "/share/digits_i8.tflite",
    )  # fmt: skip
    yield made
    (share / "stop").touch()
    made.communicate(timeout=60)
    (share / "stop").unlink()


def next_line(program: subprocess.Popen[str]) -> dict[str, Any]:
    """The next that it tells; what it logs is passed over."""
    assert program.stdout is not None
    said = []
    for line in program.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
        said.append(line)
    raise AssertionError("".join(said))


def main_pid(box: Container) -> int:
    return int(box.show(UNIT, "MainPID")["MainPID"])


def devices(outcome: dict[str, Any]) -> set[str]:
    return {target.partition("@")[2].partition("/")[0] for target in outcome["receipt"]["targets"]}


def test_a_plan_uses_the_device_and_does_without_it_while_it_is_gone(
    box: Container, caller: subprocess.Popen[str]
) -> None:
    plan = next_line(caller)
    assert [target.partition("@")[2].partition("/")[0] for target in plan["targets"]] == ["box.cpu:0"]
    assert any("@cpu:0/" in target for target in plan["fallbacks"])
    before = next_line(caller)
    assert (devices(before), before["receipt"]["degraded"]) == ({"box.cpu:0"}, False)
    pid = main_pid(box)
    kill(box, UNIT)
    seen = [before]
    while not seen[-1]["receipt"]["degraded"]:
        seen.append(next_line(caller))
    while seen[-1]["receipt"]["degraded"]:
        seen.append(next_line(caller))
    assert all(outcome["outputs"] == before["outputs"] for outcome in seen)
    assert all(devices(outcome) == {"cpu:0"} for outcome in seen if outcome["receipt"]["degraded"])
    assert devices(seen[-1]) == {"box.cpu:0"}
    assert main_pid(box) not in (0, pid)


def test_failures_are_counted_so_that_it_restarts_ever_more_slowly(box: Container) -> None:
    failures = "/var/cache/edgert-executor-cpu:0/failures"
    count = int(box.run("sh", "-c", f"cut -d' ' -f1 {failures} 2>/dev/null || echo 0").stdout)
    pid = main_pid(box)
    kill(box, UNIT)
    wait_for("its next life", lambda: main_pid(box) not in (0, pid))
    assert int(box.run("cut", "-d ", "-f1", failures).stdout) == count + 1


def test_only_the_group_may_use_it(box: Container) -> None:
    folder = "/run/edgert-executor-cpu:0"
    wait_for("its socket", lambda: box.run("test", "-S", f"{folder}/edgert.sock", check=False).returncode == 0)
    assert box.run("stat", "-c", "%a %G", folder).stdout.split() == ["750", "edgert"]
    assert box.run("stat", "-c", "%a %G", f"{folder}/edgert.sock").stdout.split() == ["660", "edgert"]


def test_an_upgrade_starts_it_again_from_the_new_files(box: Container) -> None:
    pid = main_pid(box)
    box.run("dpkg", "-i", "/share/new.deb")
    assert main_pid(box) not in (0, pid)


def test_an_instance_of_a_device_that_is_not_there_says_so_and_which_there_are(box: Container) -> None:
    unit = "edgert-executor@npu:7"
    assert box.run("systemctl", "start", unit, check=False).returncode != 0
    said = box.run("journalctl", "-u", unit, "--no-pager").stdout
    box.run("systemctl", "stop", unit)
    assert "npu:7" in said
    assert "cpu:0" in said
    assert "Traceback" not in said


def test_removing_the_package_stops_it(box: Container) -> None:
    box.run("dpkg", "-P", "edgert")
    assert box.show(UNIT, "ActiveState")["ActiveState"] == "inactive"
    assert box.run("sh", "-c", "ls -d /var/cache/*edgert* /var/cache/private/*edgert*", check=False).stdout == ""
