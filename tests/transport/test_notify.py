"""What a service tells systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgert.transport import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The other end."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(name if request.param == "path" else f"\0{name}")
        made.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", name if request.param == "path" else f"@{name}")
        yield made


def test_lines_arrive_as_one_datagram_and_no_text_adds_a_line(manager: socket.socket) -> None:
    assert notify.tell(READY=1, STATUS="two\nlines")
    assert manager.recv(4096) == b"READY=1\nSTATUS=two lines"


def test_nobody_listens_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: object) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.tell(READY=1)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify.tell(READY=1)
    assert "READY" in caplog.text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("variables", "limit_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdogs_limit_is_only_for_whom_it_is_meant(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], limit_s: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert notify.watchdog_s() == limit_s
