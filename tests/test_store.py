"""The cache on disk: whole entries or none, whoever writes them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from edgert import store
from edgert.errors import CacheCorrupt, CacheUnwritable

CONTENT = {"a": [1, 2.5, None, "é"], "b": {"c": float("inf")}}

WRITER = """
import sys
from pathlib import Path
from edgert import store
path, mark, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(count):
    store.write_json(path, {"mark": mark, "number": number, "filling": [mark] * 5000})
    content = store.read_json(path)
    assert set(content["filling"]) == {content["mark"]}, content["mark"]
"""


@pytest.fixture
def entry(tmp_path):
    path = tmp_path / "deep" / "er" / "entry.json"
    store.write_json(path, CONTENT)
    return path


def below_a_file(folder):
    """A path that nobody can make a folder of, root included."""
    (folder / "file").write_text("in the way", encoding="utf-8")
    return folder / "file" / "cache"


def test_what_was_written_is_read_back(entry):
    assert store.read_json(entry) == CONTENT


def test_there_is_nothing_where_nothing_was_written(tmp_path):
    assert store.read_json(tmp_path / "none.json") is None


def test_an_entry_is_replaced_whole_and_leaves_nothing_beside_it(entry):
    store.write_json(entry, {"new": 1})
    assert store.read_json(entry) == {"new": 1}
    assert [path.name for path in entry.parent.iterdir()] == ["entry.json"]


@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, -1])
def test_a_truncated_entry_is_corrupt(entry, keep):
    whole = entry.read_bytes()
    entry.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CacheCorrupt, match="Delete it") as caught:
        store.read_json(entry)
    assert str(entry) in caught.value.message


@pytest.mark.parametrize("place", range(0, 120, 7))
def test_a_flipped_bit_anywhere_is_noticed(entry, place):
    damaged = bytearray(entry.read_bytes())
    damaged[place % len(damaged)] ^= 1
    entry.write_bytes(damaged)
    with pytest.raises(CacheCorrupt):
        store.read_json(entry)


@pytest.mark.parametrize(
    "other", [b"[]", b"null", b"3", b'{"content": {}}', b'{"content": [], "sha256": ""}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_foreign_file_is_corrupt(entry, other):
    entry.write_bytes(other)
    with pytest.raises(CacheCorrupt):
        store.read_json(entry)


def test_a_folder_in_place_of_an_entry_is_corrupt(tmp_path):
    with pytest.raises(CacheCorrupt):
        store.read_json(tmp_path)


def test_a_damaged_entry_is_reported_and_removed(entry, caplog):
    entry.write_bytes(b"{")
    with caplog.at_level(logging.WARNING, "edgert"):
        assert store.read_or_drop(entry) is None
    assert str(entry) in caplog.text
    assert not entry.exists()


def test_an_entry_that_cannot_be_written_is_a_typed_error_and_leaves_no_rest(tmp_path):
    with pytest.raises(CacheUnwritable, match="cache_dir"):
        store.write_json(below_a_file(tmp_path) / "entry.json", CONTENT)
    blocked = tmp_path / "entry.json"
    blocked.mkdir()
    with pytest.raises(CacheUnwritable):
        store.write_json(blocked, CONTENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry.json", "file"]


def test_writers_of_several_processes_leave_whole_entries(tmp_path):
    path = tmp_path / "entry.json"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, mark, "60"]) for mark in "abc"]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert store.read_json(path)["number"] == 59
    assert [item.name for item in tmp_path.iterdir()] == ["entry.json"]


def test_a_chosen_folder_is_made(tmp_path):
    assert store.folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_a_chosen_folder_that_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(CacheUnwritable, match="EDGERT_CACHE") as caught:
        store.folder(below_a_file(tmp_path))
    assert str(tmp_path / "file" / "cache") in caught.value.message


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is where root cannot write either")
def test_a_folder_that_exists_and_takes_no_files_is_refused():
    with pytest.raises(CacheUnwritable):
        store.folder("/proc/self")


def test_the_environment_names_the_folder_unless_the_caller_does(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "env"))
    assert store.folder() == tmp_path / "env"
    assert store.folder(tmp_path / "arg") == tmp_path / "arg"
    monkeypatch.setenv("EDGERT_CACHE", str(below_a_file(tmp_path)))
    with pytest.raises(CacheUnwritable):
        store.folder()


@pytest.mark.skipif(sys.platform != "linux", reason="the platform's folder is another elsewhere")
def test_the_platforms_own_folder_is_a_wish_and_not_a_must(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("EDGERT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.folder() == tmp_path / "xdg" / "edgert"
    monkeypatch.setenv("XDG_CACHE_HOME", str(below_a_file(tmp_path)))
    with caplog.at_level(logging.WARNING, "edgert"):
        assert store.folder() is None
    assert "working without a cache" in caplog.text


def test_entries_hold_their_own_checksum(entry):
    assert set(json.loads(entry.read_text(encoding="utf-8"))) == {"sha256", "content"}


def test_a_user_without_a_home_works_without_a_cache(monkeypatch, caplog):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDGERT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(store.Path, "home", homeless)
    assert store.folder() is None
    assert "Set EDGERT_CACHE" in caplog.text
