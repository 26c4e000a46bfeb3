"""The cache on disk: JSON entries with a checksum, written whole or not at all.

Two processes may fill one folder at once: an entry appears by renaming, so a reader sees the old one or the new one.
A damaged entry is reported, never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgert.errors import CacheCorrupt, CacheUnwritable
from edgert.options import path_of

_log = logging.getLogger(__name__)


def folder(chosen: str | os.PathLike[str] | None = None) -> Path | None:
    """The cache folder, made if need be: `chosen`, else `EDGERT_CACHE`, else the platform's own.

    Returns:
        None when nothing was chosen and the platform's own cannot be written: edgert then works without a cache, and
        says so in the log.

    Raises:
        CacheUnwritable: a folder was chosen, and it cannot be written.
        OptionError: what was chosen is no path.
    """
    wanted = os.environ.get("EDGERT_CACHE") if chosen is None else chosen
    try:
        path = path_of("cache_dir", wanted) if wanted else _platform_folder()
    except RuntimeError as error:  # the users of services have no home
        _log.warning("no cache folder: %s Set EDGERT_CACHE to have one: working without a cache", error)
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        if wanted:
            raise CacheUnwritable(
                f"cache folder {path} cannot be written: {error.strerror or error}.",
                "Pass another cache_dir=, set EDGERT_CACHE, or mend the folder's permissions and space.",
            ) from error
        _log.warning("cache folder %s cannot be written (%s): working without a cache", path, error)
        return None


def subfolder(cache: Path | None, *names: str) -> Path | None:
    """A folder in the cache, made if need be; None without a cache, or when it cannot be made, which the log says."""
    if cache is None:
        return None
    path = cache.joinpath(*names)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("cache folder %s cannot be written (%s): %s are not kept", path, error, names[0])
        return None
    return path


def _platform_folder() -> Path:
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "edgert"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Store `content` at `path`, whole or not at all, also when the power fails.

    Raises:
        CacheUnwritable: the disk is full, read-only, ...
    """
    text = json.dumps(content, sort_keys=True)
    entry = json.dumps({"sha256": _digest(text), "content": json.loads(text)}, sort_keys=True)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
        ) as file:
            temporary = file.name
            file.write(entry)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise CacheUnwritable(
            f"cache entry {path} cannot be written: {error.strerror or error}.",
            "Mend the folder's permissions and space, or pass another cache_dir=.",
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The content that `write_json` stored; None when there is none.

    Raises:
        CacheCorrupt: the entry is damaged.
    """
    try:
        entry = json.loads(path.read_bytes())
        content = entry["content"]
        if isinstance(content, dict) and entry["sha256"] == _digest(json.dumps(content, sort_keys=True)):
            return content
        reason = "its checksum does not match"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise CacheCorrupt(f"cache entry {path} is damaged ({reason}).", "Delete it; it is made again.")


def read_or_drop(path: Path) -> dict[str, Any] | None:
    """As `read_json`, but a damaged entry is reported in the log, removed, and counts as none."""
    try:
        return read_json(path)
    except CacheCorrupt as error:
        _log.warning("%s Measuring again.", error.message)
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
