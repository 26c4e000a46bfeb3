"""A daemon that serves other boxes: over tcp, with keys, as the documentation says to set it up."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

import edgert
from edgert.errors import OptionError, PeerRefused
from edgert.transport.keys import Keyring
from tests.test_client import Daemon, own  # noqa: F401 - a fixture

X = np.zeros((1, 8, 8, 1), np.int8)


@pytest.fixture
def rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Keyring, Keyring]:
    """The keys of a client's box, which this process uses, and of the daemon's; they know each other."""
    ours, theirs = Keyring(tmp_path / "client"), Keyring(tmp_path / "server")
    ours.allow("boxb", theirs.make().public)
    theirs.allow("boxa", ours.make().public)
    monkeypatch.setenv("EDGERT_KEYS", str(ours.folder))
    return ours, theirs


@pytest.fixture
def daemon(own: Daemon, rings: tuple[Keyring, Keyring]) -> Daemon:  # noqa: F811
    """On a free port, with a pulse a second."""
    own.endpoint = "tcp://0.0.0.0:0"
    own.start(EDGERT_KEYS=str(rings[1].folder), WATCHDOG_USEC="3000000")
    own.until("models answer")
    port = re.search(r"ready at tcp://0\.0\.0\.0:(\d+)", own.log.read_text())
    assert port is not None
    own.endpoint = f"tcp://127.0.0.1:{port[1]}"
    return own


def test_a_client_of_another_box_names_the_key_and_is_answered(
    daemon: Daemon, rings: tuple[Keyring, Keyring], monkeypatch: pytest.MonkeyPatch
) -> None:
    with edgert.connect(daemon.endpoint, timeout_s=60, key="boxb") as client:
        assert client.run("digits", X, priority=3).receipt.degraded is False
    monkeypatch.setenv("EDGERT_ENDPOINT", daemon.endpoint)
    monkeypatch.setenv("EDGERT_ENDPOINT_KEY", rings[1].own().public)
    with edgert.connect(timeout_s=60) as client:
        assert client.models() == ("digits",)


def test_the_daemons_own_pulse_gets_through_its_locks(daemon: Daemon) -> None:
    """Else systemd would kill it, and its status would say that it makes no progress."""
    with edgert.connect(daemon.endpoint, timeout_s=60, key="boxb") as client:
        before = client.status()["requests"]["answered"]
        while (status := client.status())["trouble"] or status["requests"]["answered"] < before + 2:
            time.sleep(0.05)  # nobody else asks; a beat that came late on a busy machine is followed by another
    assert status["keys_refused"] == 0


def test_who_has_no_key_or_names_none_is_told(daemon: Daemon, rings: tuple[Keyring, Keyring]) -> None:
    with pytest.raises(OptionError, match="key=NAME"):
        edgert.connect(daemon.endpoint, timeout_s=60)
    with pytest.raises(OptionError, match="there is no key for peer 'boxc'"):
        edgert.connect(daemon.endpoint, timeout_s=60, key="boxc")
    rings[1].remove("boxa")
    with pytest.raises(PeerRefused, match="edgert keys allow"):
        edgert.connect(daemon.endpoint, timeout_s=60, key="boxb")
    assert os.path.exists(f"/proc/{daemon.process.pid}")  # type: ignore[union-attr]
