"""MemoryMax of edgert.service in a booted container with little memory: `make test-systemd` runs these.

The machine may have cgroup v1, v2 or both: the container is lent the memory controller of v1 (`container.MemoryGroup`),
through which systemd applies MemoryMax as well.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.big_model import build_tflite
from cross.systemd import container as systemd
from cross.systemd.container import Container
from edgert.data import path as data
from tests.system.test_systemd import CACHE, HERE, INSIDE, ask, package_of, wait_for

RAM_BYTES = 400_000_000
WEIGHTS_BYTES = 320 << 20
"""More than MemoryMax=75% of that."""
SLICE = "system.slice"

pytestmark = [
    pytest.mark.skipif(os.environ.get("EDGERT_SYSTEMD") != "1", reason="run by `make test-systemd`"),
    pytest.mark.skipif(bool(systemd.missing()), reason=f"no container can be booted: it {systemd.missing()}"),
    pytest.mark.skipif(bool(systemd.memory_group()), reason=f"no memory can be limited: it {systemd.memory_group()}"),
]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share")
    folder.chmod(0o755)
    shutil.copy(package_of("amd64"), folder / "old.deb")
    shutil.copy(HERE / "inside_container.py", folder)
    for name in ("models", "state", "cache"):
        (folder / name).mkdir(mode=0o755)
    shutil.copy(data("digits_i8.tflite"), folder / "models" / "digits.tflite")
    os.link(build_tflite(folder / "big.tflite", WEIGHTS_BYTES, wide=1024), folder / "library.tflite")
    return folder


@pytest.fixture(scope="module")
def box(share: Path) -> Iterator[Container]:
    """The package installed in a box with little memory, and a disk: what a container writes elsewhere is in memory."""
    with Container(systemd.make_root(CACHE), share=share, memory_bytes=RAM_BYTES) as container:
        container.run("dpkg", "-i", "/share/old.deb")
        container.run("systemctl", "stop", "edgert")
        for name, place in (
            ("models", "/var/lib/edgert/models"),
            ("state", "/var/lib/private/edgert-daemon"),
            ("cache", "/var/cache/private/edgert"),
        ):
            container.run("mount", "--bind", f"/share/{name}", place)
        container.run("systemctl", "start", "edgert")
        yield container


def killed(box: Container) -> int:
    """Of the daemon's processes, those that the kernel killed for want of memory."""
    assert box.group is not None
    return box.group.killed(f"{SLICE}/edgert.service")


def test_the_limit_is_the_units_and_it_kills(box: Container) -> None:
    assert box.group is not None
    limit_bytes = int((box.group.folder / SLICE / "edgert.service/memory.limit_in_bytes").read_text())
    assert 0.74 * RAM_BYTES < limit_bytes <= 0.75 * RAM_BYTES
    # Far below what the box has left beside the daemon: this limit is what kills.
    glutton = f"x = b'1' * {RAM_BYTES // 4}"
    done = box.run("systemd-run", "-q", "--wait", "-p", "MemoryMax=20%", "python3", "-c", glutton, check=False)
    assert done.returncode != 0


def test_a_model_larger_than_the_limit_takes_turns_and_nothing_is_killed(box: Container, share: Path) -> None:
    # What is looked for in the background takes memory, too: first the one, then the other.
    wait_for("the small model's plan", lambda: ask(box, "status")["models"].get("digits", {}).get("measured"))
    assert killed(box) == 0
    pid = box.show("edgert", "MainPID")["MainPID"]
    (share / "big.tflite").rename(share / "models" / "big.tflite")
    models = wait_for(
        "the big model", lambda: (found := ask(box, "status")["models"]).get("big", {}).get("version") and found, 300
    )
    assert len(models["big"]["targets"]) > 2  # segments
    got = ask(box, "ask", "big")
    assert got["receipt"]["turns"] == len(models["big"]["targets"]), got
    assert "receipt" in ask(box, "ask", "digits")
    said = box.run("journalctl", "-u", "edgert", "--no-pager").stdout
    assert (killed(box), box.show("edgert", "MainPID")["MainPID"]) == (0, pid), said


def test_the_library_in_a_limited_service_takes_turns_too(box: Container, share: Path) -> None:
    (share / "stop").touch()  # one plan, no runs
    settings = ("-p", "MemoryMax=60%", "-p", "Environment=EDGERT_CACHE=/share/cache/library")
    asked = (*INSIDE, "load", "/share/library.tflite")
    done = box.run("systemd-run", "-q", "--wait", "--pipe", *settings, *asked, timeout_s=300)
    assert len(json.loads(done.stdout.splitlines()[-1])["targets"]) > 2
