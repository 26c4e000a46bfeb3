"""Files as the readers see them: mapped, hashed, and never outside the model's own folder."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np

from edgert.errors import ModelCorrupt, ModelNotFound, OptionError

_BLOCK_BYTES = 1 << 24
_COPIED_BYTES = 1 << 20
_KERNEL_BYTES = 1 << 24
"""Copied at once; then what was written goes to the disk. Pages that wait for that cannot be dropped, and a control
group that is full of them kills."""
_LARGE_BYTES = 1 << 26


def map_file(path: Path) -> memoryview:
    """A file's bytes, memory-mapped read-only.

    Raises:
        ModelNotFound: it is missing, is no regular file, or may not be read.
        ModelCorrupt: it is empty.
    """
    try:
        # A pipe or a device would block on open, so look before opening.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise ModelNotFound(f"model {str(path)!r} is {kind}.", "Give the path of a .onnx or .tflite file.")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelCorrupt(f"model {str(path)!r} is empty (0 bytes).", "Export or download it again.")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise ModelNotFound(
            f"model {str(path)!r} cannot be read: {reason}.", "Check the path and its permissions."
        ) from error


def beside(model: Path, location: str, owner: str) -> Path:
    """The file that `location` names beside a model, symbolic links resolved.

    Args:
        model: the model file.
        location: as the model says it; must be relative and stay inside the model's folder.
        owner: what refers to it, for the message, such as "tensor 'w'".

    Raises:
        ModelCorrupt: it is absolute, has '..', or leaves the folder through a link.
        ModelNotFound: it is not there.
    """
    parts = PurePosixPath(location).parts
    outside = (
        not location or "\0" in location or ".." in parts or PurePosixPath(location).is_absolute()
        or PureWindowsPath(location).is_absolute() or ".." in PureWindowsPath(location).parts
    )  # fmt: skip
    folder = Path(os.path.realpath(model.parent))
    found = folder if outside else Path(os.path.realpath(folder / location))
    if outside or not found.is_relative_to(folder) or found == folder:
        raise ModelCorrupt(
            f"{owner} of {model.name} lies in {location!r}, outside the model's folder.",
            "Keep external data beside the model, under a relative path without '..' or links that lead out.",
        )
    if not found.is_file():
        raise ModelNotFound(
            f"{owner} of {model.name} lies in {location!r}, which is not there (or is no regular file).",
            f"Put it into {folder}.",
        )
    return found


def sha256(data: memoryview) -> str:
    """SHA-256 of bytes, as hexadecimal digits. A mapped file's pages are let go as they are read: a file larger than
    memory costs none.
    """
    digest = hashlib.sha256()
    for start in range(0, len(data), _BLOCK_BYTES):
        digest.update(data[start : start + _BLOCK_BYTES])
        _let_go(data, start, _BLOCK_BYTES)
    return digest.hexdigest()


def contains(data: memoryview, wanted: bytes) -> bool:
    """Whether a mapped file holds these bytes somewhere; its pages are let go as they are read."""
    mapped = data.obj
    if not isinstance(mapped, mmap.mmap):
        return wanted in bytes(data)
    for start in range(0, len(mapped), _BLOCK_BYTES):
        found = mapped.find(wanted, start, start + _BLOCK_BYTES + len(wanted) - 1)
        _let_go(data, start, _BLOCK_BYTES)
        if found >= 0:
            return True
    return False


def rest(data: memoryview) -> None:
    """Let go of the pages of a large mapped file that were looked at. Where the kernel maps megabytes at once,
    a look at every table of a file brings much of the file along.
    """
    if len(data) >= _LARGE_BYTES:
        _let_go(data, 0, len(data))


def _let_go(data: memoryview, start: int, size: int) -> None:
    """Tell the kernel that this process needs a mapped file's pages no more; they are read again when looked at."""
    mapped = data.obj
    if not isinstance(mapped, mmap.mmap) or len(mapped) != len(data):  # of a slice nobody knows where it begins
        return
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED, start, min(size, len(data) - start))


def copy_range(source: Path, offset: int, size: int, file: BinaryIO) -> None:
    """Copy bytes of a file to where another is at, a piece at a time: neither is ever in memory. Where the file system
    can, the kernel shares the bytes instead (copy_file_range(2)).

    Raises:
        OSError: reading or writing failed (`replacing` makes an OptionError of it), or the source ended early.
    """
    with open(source, "rb") as reader:
        if hasattr(os, "copy_file_range"):
            file.flush()
            with suppress(OSError):  # not between these file systems: what is left is read and written
                while size and (moved := os.copy_file_range(
                    reader.fileno(), file.fileno(), min(size, _KERNEL_BYTES), offset, file.tell()
                )):  # fmt: skip
                    offset, size = offset + moved, size - moved
                    file.seek(moved, os.SEEK_CUR)
                    if moved == _KERNEL_BYTES:
                        _settle(file)
        reader.seek(offset)
        while size:
            piece = reader.read(min(size, _COPIED_BYTES))
            if not piece:
                raise OSError(f"{source} ended {size} bytes early")
            file.write(piece)
            size -= len(piece)
            if file.tell() % _KERNEL_BYTES < len(piece):
                _settle(file)


def _settle(file: BinaryIO) -> None:
    """Have what was written reach the disk, so that its pages can be dropped."""
    file.flush()
    os.fdatasync(file.fileno()) if hasattr(os, "fdatasync") else os.fsync(file.fileno())


def digest_with(own: str, companions: Iterable[tuple[str, Path]]) -> str:
    """Content hash of a model and the files that it refers to.

    `own` alone where there are none, else SHA-256 over `own` and each (location, SHA-256 of the file), sorted.
    """
    return digest_of(own, {location: sha256(map_file(path)) for location, path in sorted(set(companions))})


def digest_of(own: str, companions: Mapping[str, str]) -> str:
    """As `digest_with`, of SHA-256 values alone: location -> that of the file."""
    lines = [f"{location}\0{digest}" for location, digest in sorted(companions.items())]
    return hashlib.sha256("\n".join([own, *lines]).encode(errors="surrogateescape")).hexdigest() if lines else own


def copy_view(content: memoryview, file: BinaryIO) -> None:
    """Write bytes a piece at a time; the pages of a mapped file are let go on the way, whichever part of it this is."""
    array = np.frombuffer(content, np.uint8)
    page = mmap.PAGESIZE
    mapped = content.obj
    while isinstance(mapped, np.ndarray | memoryview):
        mapped = mapped.base if isinstance(mapped, np.ndarray) else mapped.obj
    start = 0
    if isinstance(mapped, mmap.mmap):
        start = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    for low in range(0, len(content), _COPIED_BYTES):
        piece = content[low : low + _COPIED_BYTES]
        file.write(piece)
        if file.tell() % _KERNEL_BYTES < len(piece):
            _settle(file)
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            first = -(-(start + low) // page) * page  # pages that lie in the piece as a whole
            last = (start + low + len(piece)) // page * page
            if last > first:
                mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` only when all went well.

    Raises:
        OptionError: it cannot be written.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OptionError(
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            "Choose a writable folder with enough space.",
        ) from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def unique_names(wanted: Sequence[str]) -> tuple[str, ...]:
    """The names, each changed where an earlier one is the same: 'x', 'x' -> 'x', 'x_1'. Deterministic."""
    taken = set(wanted)
    seen: set[str] = set()
    counts: dict[str, int] = {}
    result = []
    for name in wanted:
        chosen = name
        while chosen in seen or (chosen != name and chosen in taken):
            counts[name] = counts.get(name, 0) + 1
            chosen = f"{name}_{counts[name]}"
        seen.add(chosen)
        result.append(chosen)
    return tuple(result)
