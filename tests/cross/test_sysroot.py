"""The cache of what boards are made from."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cross import sysroot

OTHER = """
import sys
from cross import sysroot
sysroot._made("thing", [sys.argv[1]], lambda folder: (folder / "x").touch())
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGERT_CI_CACHE", str(tmp_path))
    yield sysroot.cache()
    for file in sysroot._held.values():
        file.close()
    sysroot._held.clear()


def _made(name):
    return sysroot._made("thing", [name], lambda folder: (folder / "x").touch())


def _others_make_more():
    for number in range(4):
        subprocess.run([sys.executable, "-c", OTHER, str(number)], check=True, cwd=sysroot.CHECKOUT)


def test_what_a_process_uses_is_removed_by_no_other(cache):
    own = _made("own")
    _others_make_more()
    assert (own / "x").exists()
    assert len([path for path in cache.glob("thing-*") if path.is_dir()]) == 3  # the newest two, and what is in use


def test_what_nobody_uses_any_more_goes(cache):
    own = _made("own")
    sysroot._held.pop(own).close()
    _others_make_more()
    assert not own.exists()
    assert not own.with_name(f"{own.name}.used").exists()
