"""A daemon whose disk is full or cannot be written any more, or whose clock starts in 1970: the old state answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgert
from edgert.errors import CacheUnwritable
from tests.serving.conftest import put
from tests.test_client import Daemon

pytest.importorskip("ai_edge_litert", reason="the models are run by LiteRT")
pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts file systems: needs root")
X = np.zeros((1, 8, 8, 1), np.int8)
YEARS_S = 1_700_000_000
"""How far the clock of a box without a battery may be behind the times of its files."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, with little space."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "edgert-test", place], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    put("digits_i8.tflite", made.folder, "digits.tflite")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end()


def start(daemon: Daemon, disk: Path) -> None:
    daemon.start("--state", str(disk / "state"), EDGERT_CACHE=str(disk / "cache"))


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


def freeze(disk: Path) -> None:
    (disk / "state/digits/.part-cut-off").mkdir()  # what a power cut left, which nobody can remove any more
    limit_s = time.monotonic() + 120
    while subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True, check=False).returncode:
        assert time.monotonic() < limit_s  # somebody writes
        time.sleep(0.05)


def until(client: edgert.Client, what: Callable[[dict[str, Any]], bool], name: str = "digits") -> dict[str, Any]:
    """The state of a model once it is so."""
    limit_s = time.monotonic() + 300
    while True:
        state = dict(client.status()["models"].get(name, {}))
        if state and what(state):
            return state
        assert time.monotonic() < limit_s, state
        time.sleep(0.05)


@pytest.mark.parametrize("spoil", [fill, freeze])
def test_a_disk_that_takes_nothing_more_leaves_the_old_version_answering_also_after_a_restart(
    daemon: Daemon, disk: Path, spoil: Callable[[Path], None]
) -> None:
    start(daemon, disk)
    with edgert.connect(daemon.endpoint, timeout_s=300) as client:
        before = client.run("digits", X)
        spoil(disk)
        for name in ("digits.tflite", "other.tflite"):
            put("digits_f32.tflite", daemon.folder, name)
        state = until(client, lambda state: state["error"] is not None)
        assert (state["condition"], state["version"], state["error"]["type"]) == ("stale", 1, "CacheUnwritable")
        assert until(client, lambda state: state["error"] is not None, "other")["condition"] == "refused"
        np.testing.assert_array_equal(client.run("digits", X)["probabilities"], before["probabilities"])
        daemon.end()
        start(daemon, disk)
        again = client.run("digits", X)
        np.testing.assert_array_equal(again["probabilities"], before["probabilities"])
        assert client.status()["models"]["digits"]["version"] == 1
    assert "Traceback" not in daemon.log.read_text()


def test_a_disk_with_space_again_takes_what_waited(daemon: Daemon, disk: Path) -> None:
    start(daemon, disk)
    with edgert.connect(daemon.endpoint, timeout_s=300) as client:
        client.run("digits", X)
        fill(disk)
        put("digits_f32.tflite", daemon.folder, "digits.tflite")
        until(client, lambda state: state["error"] is not None)
        (disk / "ballast").unlink()
        until(client, lambda state: state["version"] == 2)


def test_the_library_says_that_a_chosen_cache_cannot_be_written_and_does_without_its_own(
    daemon: Daemon, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (disk / "cache").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    model = daemon.folder / "digits.tflite"
    with pytest.raises(CacheUnwritable, match="Read-only file system"):
        edgert.load(model, cache_dir=disk / "cache", budget_s=0.2)
    monkeypatch.delenv("EDGERT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk / "cache"))
    with edgert.load(model, targets=["litert@cpu:0"], budget_s=0.2) as loaded:
        assert not loaded.run(X).receipt.degraded


def test_a_clock_that_starts_in_1970_takes_models_up_all_the_same(daemon: Daemon, tmp_path: Path) -> None:
    """The clock that programs see, long before the times of all files."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import time\n_now = time.time\ntime.time = lambda: _now() - {YEARS_S}\n")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    daemon.start("--state", str(tmp_path / "state"), EDGERT_CACHE=str(tmp_path / "cache"), PYTHONPATH=path)
    with edgert.connect(daemon.endpoint, timeout_s=300) as client:
        client.run("digits", X)
        put("digits_f32.tflite", daemon.folder, "digits.tflite")
        until(client, lambda state: state["version"] == 2)
        assert client.run("digits", X.astype(np.float32)).receipt.degraded is False
