"""Versions on disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgert.errors import CacheUnwritable, ModelCorrupt, ModelNotFound
from edgert.serving import repository as under_test
from edgert.serving.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "store")


def model(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "m.onnx"
    file.write_bytes(content)
    return file


def test_what_was_active_is_active_after_a_restart(tmp_path: Path, repository: Repository) -> None:
    for content in (b"one", b"two"):
        repository.make_active(repository.take("m", model(tmp_path, content)))
    again = Repository(repository.root)
    active = again.active("m")
    assert active is not None
    assert (active.number, active.path.read_bytes()) == (2, b"two")
    assert [version.number for version in again.versions("m")] == [1, 2]


def test_the_same_content_is_no_new_version(tmp_path: Path, repository: Repository) -> None:
    first = repository.take("m", model(tmp_path, b"one"))
    os.utime(tmp_path / "m.onnx", ns=(1, 1))
    second = repository.take("m", tmp_path / "m.onnx")
    assert (first.number, second.number) == (1, 1)
    assert first.origin != second.origin
    assert repository.versions("m")[0].origin == second.origin


def test_a_version_does_not_change_with_its_file(tmp_path: Path, repository: Repository) -> None:
    version = repository.take("m", model(tmp_path, b"one"))
    with (tmp_path / "m.onnx").open("r+b") as file:
        file.write(b"ONE")
    assert version.path.read_bytes() == b"one"


def test_two_versions_are_kept(tmp_path: Path, repository: Repository) -> None:
    for content in (b"1", b"2", b"3", b"4"):
        repository.make_active(repository.take("m", model(tmp_path, content)))
    assert [version.number for version in repository.versions("m")] == [3, 4]


def test_a_damaged_copy_is_not_used(tmp_path: Path, repository: Repository) -> None:
    version = repository.take("m", model(tmp_path, b"one"))
    repository.make_active(version)
    version.path.write_bytes(b"on")
    assert repository.active("m") is None


def test_a_file_that_changes_under_the_copy_is_refused(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model(tmp_path, b"one")
    real = under_test._copy_file

    def slow_copy(source: Path, to: Path) -> str:
        digest = real(source, to)
        source.write_bytes(b"onetwo")
        return digest

    monkeypatch.setattr(under_test, "_copy_file", slow_copy)
    with pytest.raises(ModelCorrupt, match="changed while"):
        repository.take("m", file)
    assert repository.versions("m") == ()


def test_a_full_disk_is_told_and_leaves_nothing_behind(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = model(tmp_path, b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CacheUnwritable, match="No space left"):
            repository.take("m", file)
    assert [*repository.root.rglob(".part-*")] == []
    assert repository.take("m", file).number == 1


def test_a_missing_file_is_told(tmp_path: Path, repository: Repository) -> None:
    with pytest.raises(ModelNotFound):
        repository.take("m", tmp_path / "gone.onnx")


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and killed")
def test_a_power_cut_at_any_step_leaves_the_old_version_or_the_new_one_whole(tmp_path: Path) -> None:
    script = Path(__file__).with_name("power_cuts.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    states = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(states) > 10  # it is cut that often before it comes through
    assert {tuple(state[:2]) for state in states} == {(1, 1), (2, 2)}
    assert [state[2] for state in states if state[2]] == []
    assert states[-1][0] == 2
