"""The stamp under which a probed machine is filed changes when the machine might have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgert.devices import stamp


def test_the_stamp_stays_while_nothing_changes() -> None:
    assert stamp.stamp() == stamp.stamp()


def test_a_new_device_file_changes_the_stamp(tmp_path: Path) -> None:
    (tmp_path / "dev" / "dri").mkdir(parents=True)
    before = stamp.stamp(tmp_path)
    (tmp_path / "dev" / "dri" / "renderD128").touch()
    assert stamp.stamp(tmp_path) != before


def test_a_terminal_that_opens_does_not_change_the_stamp(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    before = stamp.stamp(tmp_path)
    (tmp_path / "dev" / "tty9").touch()
    assert stamp.stamp(tmp_path) == before


def test_another_boot_changes_the_stamp(tmp_path: Path) -> None:
    boot = tmp_path / "proc" / "sys" / "kernel" / "random" / "boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("a")
    before = stamp.stamp(tmp_path)
    boot.write_text("b")
    assert stamp.stamp(tmp_path) != before


def test_a_package_that_is_installed_changes_the_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = stamp.stamp()
    (tmp_path / "new-1.0.dist-info").mkdir()
    os.utime(tmp_path, ns=(1, 1))  # whatever the file system's clock, another time than before
    assert stamp.stamp() != before


def test_a_variable_that_hides_devices_changes_the_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stamp.stamp()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert stamp.stamp() != before
