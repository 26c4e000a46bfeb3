"""The store of model versions: what was once taken answers until something better is active, whatever happens to the
file that it came from.

    ROOT/mobilenet/active.json           which version answers
    ROOT/mobilenet/3/version.json        number, digests, the file that it was copied from
    ROOT/mobilenet/3/mobilenet.tflite    the copy, with its external data beside it

A version is copied, flushed to the disk and then renamed into place, so after a power cut it is there whole or not at
all; what is left of an interrupted copy starts with a dot and is removed by the next start. Copies are needed: a
backend may map the file, and a fallback may be prepared weeks later.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgert import bundle, formats, store
from edgert.errors import CacheCorrupt, CacheUnwritable, ModelCorrupt, ModelNotFound
from edgert.serving.folder import Stamp

_log = logging.getLogger(__name__)
_ACTIVE = "active.json"
_RECORD = "version.json"
_BLOCK_BYTES = 1 << 20
_KEPT = 2
"""Versions of a model that stay: the active one and the one before, for going back."""


@dataclass(frozen=True, slots=True)
class Version:
    """One content of a model's files."""

    model: str
    number: int
    """Counts from 1 for each model; never given twice."""
    path: Path
    """The copied model file."""
    digests: tuple[tuple[str, str], ...]
    """Name and SHA-256 of each copied file, the model file first."""
    origin: Stamp
    """Of the file that it was copied from."""


class Repository:
    """Versions on disk. One process at a time; not thread-safe."""

    def __init__(self, root: Path) -> None:
        """Open or make it, and remove what interrupted copies left. One that can only be read still has its versions.

        Raises:
            CacheUnwritable: the folder is not there, and cannot be made.
        """
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            left = [part for name in os.listdir(root) for part in (root / name).glob(".part-*")]
        except OSError as error:
            raise _unwritable(root, error) from error
        for part in left:
            self._remove(part)

    def names(self) -> tuple[str, ...]:
        """Models that have a version here."""
        return tuple(sorted(name for name in os.listdir(self.root) if self._numbers(name)))

    def versions(self, model: str) -> tuple[Version, ...]:
        """Of one model, oldest first; a damaged one is reported in the log and left out."""
        return tuple(self._read(model))

    def active(self, model: str) -> Version | None:
        """The version that was made active last; None when there is none (any more)."""
        record = store.read_or_drop(self.root / model / _ACTIVE)
        return next((version for version in self._read(model) if record and version.number == record["number"]), None)

    def take(self, model: str, file: Path) -> Version:
        """Copy a model file, with what it refers to, as a new version; a content that is here already stays as it is.

        Raises:
            ModelNotFound, ModelCorrupt: it cannot be read, or changed meanwhile.
            MissingPackage: what finds a model's external data is not installed.
            CacheUnwritable: there is no space for it.
        """
        home = self.root / model
        part: Path | None = None
        try:
            home.mkdir(exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=home))
            origin, digests = _copy(file, part)
            same = next((version for version in self._read(model) if version.digests == digests), None)
            number = same.number if same else max(self._numbers(model), default=0) + 1
            _record(part / _RECORD, number, digests, origin)
            if same is not None:  # only the stamp differs
                os.replace(part / _RECORD, home / str(number) / _RECORD)
            else:
                os.replace(part, home / str(number))
            _flush(home)
        except OSError as error:
            raise _unwritable(home, error) from error
        finally:
            if part is not None:
                shutil.rmtree(part, ignore_errors=True)
        return Version(model, number, home / str(number) / file.name, digests, origin)

    def make_active(self, version: Version) -> None:
        """Let this version answer, also after the next start. Older ones but the one before are removed.

        Raises:
            CacheUnwritable: that cannot be written down.
        """
        home = self.root / version.model
        store.write_json(home / _ACTIVE, {"number": version.number})
        try:
            _flush(home)
        except OSError as error:
            raise _unwritable(home, error) from error
        others = [number for number in self._numbers(version.model) if number != version.number]
        for number in others[: -(_KEPT - 1)]:
            self._remove(home / str(number))

    def drop(self, version: Version) -> None:
        """Remove a version that proved useless."""
        self._remove(self.root / version.model / str(version.number))

    def forget(self, model: str) -> None:
        """Remove all that is here of a model."""
        self._remove(self.root / model)

    def _numbers(self, model: str) -> list[int]:
        with suppress(OSError):
            return sorted(int(name) for name in os.listdir(self.root / model) if name.isdecimal())
        return []

    def _read(self, model: str) -> Iterator[Version]:
        for number in self._numbers(model):
            folder = self.root / model / str(number)
            try:
                yield _version(model, number, folder)
            except (CacheCorrupt, OSError, KeyError, TypeError, ValueError) as error:
                _log.warning("version %d of %s is damaged and not used: %s", number, model, error)

    def _remove(self, folder: Path) -> None:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("%s cannot be removed: %s", folder, error)


def _version(model: str, number: int, folder: Path) -> Version:
    """Raises CacheCorrupt, OSError, KeyError, TypeError, ValueError when it is not what was written."""
    record = store.read_json(folder / _RECORD)
    if record is None:
        raise CacheCorrupt(f"{folder / _RECORD} is missing.")
    digests = tuple((str(name), str(digest)) for name, digest in record["digests"])
    path = folder / digests[0][0]
    if path.stat().st_size != record["origin"]["size_bytes"]:
        raise CacheCorrupt(f"{path} has another size than when it was copied.")
    return Version(model, number, path, digests, Stamp(**record["origin"]))


def _record(path: Path, number: int, digests: tuple[tuple[str, str], ...], origin: Stamp) -> None:
    content: dict[str, Any] = {"number": number, "digests": [list(pair) for pair in digests], "origin": asdict(origin)}
    store.write_json(path, content)


def _copy(file: Path, folder: Path) -> tuple[Stamp, tuple[tuple[str, str], ...]]:
    """Copy a model file and what it refers to; its stamp, and name and SHA-256 of each copy, flushed to the disk."""
    try:
        before = Stamp.of(file)
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{file} cannot be read: {error}.", "Put it back, or mend its permissions.") from error
    digests = [(file.name, _copy_file(file, folder / file.name))]
    beside = () if bundle.is_bundle(file) else formats.companions(file)
    for location, path in beside:
        digests.append((location, _copy_file(path, folder / location)))
    if _stamp_or_none(file) != before:
        raise ModelCorrupt(f"{file} changed while it was copied.", "It is looked at again when it rests.")
    _flush(folder)
    return before, tuple(digests)


def _copy_file(source: Path, to: Path) -> str:
    """SHA-256 of what was copied. OSErrors of the source are typed here, those of the copy leave as they are."""
    digest = hashlib.sha256()
    to.parent.mkdir(parents=True, exist_ok=True)
    with open(to, "xb") as copy:
        for block in _blocks(source):
            digest.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()


def _blocks(source: Path) -> Iterator[bytes]:
    try:
        with open(source, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise ModelNotFound(
            f"{source} cannot be read: {error.strerror or error}.", "Put it back, or mend its permissions."
        ) from error


def _stamp_or_none(file: Path) -> Stamp | None:
    try:
        return Stamp.of(file)
    except (OSError, ValueError):
        return None


def _flush(folder: Path) -> None:
    """Have the disk hold what was renamed in a folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(folder: Path, error: OSError) -> CacheUnwritable:
    return CacheUnwritable(
        f"model store {folder} cannot be written: {error.strerror or error}.",
        "Mend its permissions and space, or choose another folder with --state.",
    )
