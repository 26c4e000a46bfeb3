"""When a file of the folder is offered."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgert.errors import ModelNotFound
from edgert.serving.folder import SETTLE_S, Folder


def write(path: Path, content: bytes = b"model") -> Path:
    path.write_bytes(content)
    return path


def test_names_are_those_of_the_files_and_others_are_not_looked_at(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.tflite", "c.edgert", ".d.onnx", "e.onnx.part", "notes.txt"):
        write(tmp_path / name)
    (tmp_path / "f.onnx").mkdir()
    os.mkfifo(tmp_path / "g.onnx")
    assert sorted(Folder(tmp_path).look()) == ["a", "b", "c"]


def test_a_file_rests_when_two_looks_see_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    file = write(tmp_path / "a.onnx")
    assert not folder.look()["a"].rests
    with file.open("ab") as more:
        more.write(b"!")
    assert not folder.look()["a"].rests
    assert folder.look()["a"].rests


@pytest.mark.parametrize("jump_s", [2 * SETTLE_S, -3600.0, 1.5e9])
def test_an_old_file_rests_at_once_also_when_the_clock_is_wrong(tmp_path: Path, jump_s: float) -> None:
    write(tmp_path / "a.onnx")
    assert Folder(tmp_path, now_s=lambda: time.time() + jump_s).look()["a"].rests


def test_a_bundle_goes_before_its_model_and_the_other_is_named(tmp_path: Path) -> None:
    for name in ("a.onnx", "a.edgert", "a.tflite"):
        write(tmp_path / name)
    found = Folder(tmp_path).look()["a"]
    assert (found.file.name, found.shadowed) == ("a.edgert", ("a.tflite", "a.onnx"))


def test_a_file_that_is_replaced_by_renaming_is_another(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    write(tmp_path / "a.onnx")
    before = folder.look()["a"].stamp
    new = write(tmp_path / ".new")
    os.utime(new, ns=(before.modified_ns, before.modified_ns))
    new.rename(tmp_path / "a.onnx")
    assert folder.look()["a"].stamp != before


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="cannot be read"):
        Folder(tmp_path / "gone").look()
