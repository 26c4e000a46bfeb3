"""Content hashes are remembered only where the file cannot have changed."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edgert import formats
from edgert.errors import ModelCorrupt, ModelNotFound
from edgert.formats import memo
from tests.formats import models

LONG_AGO_S = 3600.0


def _write(path: Path, content: bytes, age_s: float = LONG_AGO_S) -> str:
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s,) * 2)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's status cannot be dated back, so the moment that counts as settled is."""
    monkeypatch.setattr(memo, "_SETTLED_S", -1.0)


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _write(tmp_path / "m.onnx", b"one")
    assert memo.digest(tmp_path / "m.onnx", tmp_path / "cache") == expected
    monkeypatch.setattr(formats, "digest", lambda _path: pytest.fail("it was hashed again"))
    assert memo.digest(tmp_path / "m.onnx", tmp_path / "cache") == expected


@pytest.mark.usefixtures("settled")
def test_a_file_rewritten_with_the_same_size_and_time_is_hashed_again(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    _write(model, b"one")
    memo.digest(model, tmp_path / "cache")
    dated = model.stat().st_mtime_ns
    model.write_bytes(b"two")
    os.utime(model, ns=(dated, dated))
    assert memo.digest(model, tmp_path / "cache") == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    _write(tmp_path / "m.onnx", b"one", age_s=0.0)
    memo.digest(tmp_path / "m.onnx", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("digests/*"))


@pytest.mark.usefixtures("settled")
def test_a_file_that_refers_to_others_is_not_remembered(tmp_path: Path) -> None:
    _write(tmp_path / "m.onnx", b"location")
    with suppress(ModelCorrupt):  # it is no model; what counts is that nothing was filed
        memo.digest(tmp_path / "m.onnx", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("digests/*"))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model whose weights lie beside it."""
    return models.external(tmp_path)


@pytest.mark.usefixtures("settled")
def test_weights_beside_a_model_are_not_hashed_again(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = formats.digest(large)
    assert memo.digest(large, tmp_path / "cache") == expected
    monkeypatch.setattr(formats, "digest", lambda _path: pytest.fail("it was hashed again"))
    assert memo.digest(large, tmp_path / "cache") == expected


@pytest.mark.usefixtures("settled")
def test_weights_that_changed_beside_a_model_are_seen(large: Path, tmp_path: Path) -> None:
    first, weights = memo.digest(large, tmp_path / "cache"), large.with_name("weights.bin")
    dated, content = weights.stat().st_mtime_ns, bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(dated, dated))
    second = memo.digest(large, tmp_path / "cache")
    assert second == formats.digest(large) != first
    content[0] ^= 2
    large.with_name("other.bin").write_bytes(content)
    weights.unlink()
    weights.symlink_to("other.bin")
    assert memo.digest(large, tmp_path / "cache") == formats.digest(large) != second
    weights.unlink()
    with pytest.raises(ModelNotFound, match=r"weights\.bin"):
        memo.digest(large, tmp_path / "cache")


@pytest.mark.usefixtures("settled")
def test_weights_that_now_lead_out_of_the_folder_are_refused(large: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    for name in (large.name, "weights.bin"):
        (tmp_path / name).rename(inner / name)
    memo.digest(inner / large.name, tmp_path / "cache")
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    (inner / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelCorrupt, match="outside the model's folder"):
        memo.digest(inner / large.name, tmp_path / "cache")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"nothing\.onnx"):
        memo.digest(tmp_path / "nothing.onnx", tmp_path)
