"""The archive of a bundle: a zip file of plain stored members, none of which is trusted before it was checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgert.errors import ModelCorrupt, ModelNotFound

MANIFEST, PLAN, MACHINE, PROFILE = "edgert.json", "plan.json", "machine.json", "profile.json"
NAME_AT = 30
"""Where the first member's name begins in any zip archive."""
BLOCK_BYTES = 1 << 22
DAMAGE = (  # what zipfile and json raise on damaged bytes
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, RuntimeError, OverflowError,
)  # fmt: skip
_MAGIC = b"PK\x03\x04"
_LARGEST_JSON_BYTES = 1 << 26
_DATE = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = stat.S_IFREG | 0o644
_PART = re.compile(r"[^/\\:]{1,255}")
_REMEDY = "Copy it again, or make it again with `edgert compile`."


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a bundle."""

    name: str
    """With '/' between folders; never absolute, never with '..'."""
    size_bytes: int
    sha256: str


def has_magic(start: bytes) -> bool:
    """Whether a file's first bytes are those of a bundle, up to the end of the first member's name."""
    return start.startswith(_MAGIC) and start[NAME_AT:] == MANIFEST.encode()


def entry(name: str, size_bytes: int) -> zipfile.ZipInfo:
    """The header of a member to be written: the same for the same name and size, whenever and wherever."""
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_STORED, 3, _FILE_MODE << 16
    info.file_size = size_bytes  # above 4 GiB the header must have room for it from the start
    return info


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; raises ModelNotFound or ModelCorrupt."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below, where zipfile could not be made of it too
    except OSError as error:
        raise ModelNotFound(
            f"bundle {path} cannot be read: {error.strerror or error}.", "Check the path and its permissions."
        ) from error
    with file:
        if not has_magic(file.read(NAME_AT + len(MANIFEST))):
            raise ModelCorrupt(f"{path} is no edgert bundle: {MANIFEST!r} is not its first member.", _REMEDY)
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGE as error:
            raise corrupt(path, "the archive's directory", f"{type(error).__name__}: {error}") from error
        with archive:
            yield archive


def corrupt(path: Path, member: str, reason: str) -> ModelCorrupt:
    """The error for a damaged part of a bundle."""
    return ModelCorrupt(f"bundle {path}: {member} is damaged ({reason}).", _REMEDY)


def is_safe(name: str) -> bool:
    """Whether a member's name is relative, has no '..', and means the same everywhere."""
    parts = name.split("/")
    return (
        len(name) < 1024
        and name.isprintable()
        and all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    )


def entries(archive: zipfile.ZipFile, path: Path, size_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name: plain stored files with safe names, no larger together than the file.

    Raises:
        ModelCorrupt: one is not; names it.
    """
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        wrong = (
            "its name is not relative and plain" if not is_safe(info.filename)
            else "it is there twice" if info.filename in infos
            else "it is a link or a folder" if kind not in (0, stat.S_IFREG) or info.is_dir()
            else "it is compressed or encrypted" if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1
            else "its sizes differ" if info.compress_size != info.file_size
            else "it is larger than the whole" if info.file_size > size_bytes
            else ""
        )  # fmt: skip
        if wrong:
            raise corrupt(path, f"member {info.filename!r}", wrong)
        infos[info.filename] = info
    if sum(info.file_size for info in infos.values()) > size_bytes:
        raise corrupt(path, "the archive's directory", "its members are larger together than the file")
    for name in (MANIFEST, PLAN, MACHINE, PROFILE):
        if name not in infos:
            raise corrupt(path, f"member {name!r}", "it is missing")
    return infos


def document(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> dict[str, Any]:
    """A member that is a JSON object; raises ModelCorrupt if it is not."""
    if info.file_size > _LARGEST_JSON_BYTES:
        raise corrupt(path, f"member {info.filename!r}", f"{info.file_size} bytes are too many")
    try:
        content = json.loads(archive.read(info).decode())
    except (*DAMAGE, RecursionError) as error:
        raise corrupt(path, f"member {info.filename!r}", f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise corrupt(path, f"member {info.filename!r}", "it is no JSON object")
    return content


def verify(archive: zipfile.ZipFile, member: Member, path: Path) -> None:
    """Raises ModelCorrupt where a member's bytes are not those of its checksum."""
    digest = hashlib.sha256()
    for block in blocks(archive, member, path):
        digest.update(block)
    if digest.hexdigest() != member.sha256:
        raise corrupt(path, f"member {member.name!r}", "its SHA-256 does not match")


def blocks(archive: zipfile.ZipFile, member: Member, path: Path) -> Iterator[bytes]:
    """A member's bytes; only what reading raises becomes `ModelCorrupt`, not what is done with them."""
    file: IO[bytes] | None = None
    try:
        file = archive.open(member.name)
        while block := file.read(BLOCK_BYTES):
            yield block
    except DAMAGE as error:
        raise corrupt(path, f"member {member.name!r}", f"{type(error).__name__}: {error}") from error
    finally:
        if file is not None:
            file.close()


def extract(archive: zipfile.ZipFile, member: Member, to: Path, path: Path) -> None:
    """Write a member's bytes to a file, whole or not at all; raises ModelCorrupt, or OSError for what the disk says."""
    to.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=to.parent, prefix=".part-")
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as out:
            for block in blocks(archive, member, path):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != member.sha256:
            raise corrupt(path, f"member {member.name!r}", "it changed since it was checked")
        os.replace(temporary, to)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def is_same(file: Path, member: Member) -> bool:
    """Whether a file is there and is that member, byte for byte."""
    try:
        status = os.lstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size != member.size_bytes:
            return False
        return described(member.name, file) == member
    except OSError:
        return False


def described(name: str, file: Path) -> Member:
    """A file as the member of that name; raises OSError."""
    with open(file, "rb") as content:  # read, not mapped: mapped pages would count as memory of this process
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return Member(name, content.tell(), digest)
