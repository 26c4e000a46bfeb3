"""Content hashes remembered by what `stat` says of a file, so that a large model is not read again only to be
recognised.

Of a file that refers to others, theirs count too. One that changed a moment ago is always hashed: a change right after
that might leave the same times (the "racy" entries of a version control system's index).
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from edgert import formats, store
from edgert.errors import CacheUnwritable

_log = logging.getLogger(__name__)
_SETTLED_S = 2.0
"""Coarser than any file system's times here."""


def digest(path: Path, folder: Path | None) -> str:
    """As `formats.digest`, remembered in the cache folder.

    Args:
        path: the model file.
        folder: of the cache; None to remember nothing.

    Raises:
        ModelError: as `formats.digest`.
    """
    entry = None
    if folder is not None:
        entry = folder / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.json"
    try:
        before = _identity(path)
    except OSError:
        return formats.digest(path)  # which says what is wrong with it
    known = store.read_or_drop(entry) if entry is not None else None
    if known is not None and known.get("identity") == before and _unchanged(path, known.get("companions", {})):
        return str(known["digest"])
    companions = {location: _identity(path.parent / location) for location, _ in formats.companions(path)}
    found = formats.digest(path)
    latest_ns = max(time_ns for identity in (before, *companions.values()) for time_ns in identity[2:4])
    settled = time.time() - latest_ns / 1e9 > _SETTLED_S
    if entry is not None and settled and before == _identity(path) and _unchanged(path, companions):
        try:
            store.write_json(entry, {"identity": before, "companions": companions, "digest": found})
        except CacheUnwritable as error:
            _log.warning("%s", error.message)
    return found


def _unchanged(model: Path, companions: Mapping[str, list[int]]) -> bool:
    """Whether the files beside a model are those that they were; by location, links followed."""
    try:
        return all(_identity(model.parent / location) == identity for location, identity in companions.items())
    except OSError:
        return False


def _identity(path: Path) -> list[int]:
    """Device and inode, times of content and of status, size: a replaced or rewritten file has others."""
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size]
