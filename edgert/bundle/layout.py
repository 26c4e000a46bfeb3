"""That nothing is in a bundle's archive but its members and what says where they are, each header as it was written."""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from edgert.bundle.archive import corrupt, entry

__all__ = ["check_layout"]

_LOCAL = struct.Struct("<4s2B4HL2L2H")
"""Signature, version and system that it takes, flags, method, time, date, checksum, two sizes, two lengths."""
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
"""As a header, with versions and systems of the writer before, and lengths, disk, attributes and the place behind."""
_END = struct.Struct("<4s4H2LH")
"""Signature, numbers of disks and members, size and place of the directory, length of a comment."""
_END_LARGE = 56 + 20
"""Bytes of the two records more that an archive above 4 GiB ends with."""
_LARGE = 0xFFFFFFFF
_VERSIONS = (20, 45)
"""Of zip archives, without and with room for 4 GiB."""


def check_layout(archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], path: Path) -> None:
    """Every member's header says what the directory does, they follow each other, and nothing comes between or after.

    Readers of archives believe the directory and skip the rest: bytes that nobody looks at could hold anything.

    Raises:
        ModelCorrupt: what differs; names it.
    """
    file = archive.fp
    assert file is not None, "the archive is open"
    position = 0
    for info in sorted(infos.values(), key=lambda info: info.header_offset):
        reason = _differs(info) or ("it is not behind the one before" if info.header_offset != position else "")
        length, local = _local(file, info)
        reason = reason or local
        if reason:
            raise corrupt(path, f"member {info.filename!r}", reason)
        position += length + info.compress_size
    if archive.start_dir != position or archive.comment or not _ends(file, position, list(infos.values())):
        raise corrupt(path, "the archive's directory", "there is more in the file than its members")


def _differs(info: zipfile.ZipInfo) -> str:
    """How a member's entry in the directory is not one that `entry` makes."""
    usual = entry(info.filename, info.file_size)
    same = (
        info.date_time == usual.date_time
        and info.create_system == usual.create_system
        and info.create_version in _VERSIONS
        and info.extract_version in _VERSIONS
        and (info.flag_bits & ~0x800, info.reserved, info.internal_attr, info.volume, info.comment) == (0, 0, 0, 0, b"")
        and stat.S_ISREG(info.external_attr >> 16)
        and info.external_attr == usual.external_attr
    )
    return "" if same else "its entry in the directory is not as it was written"


def _local(file: IO[bytes], info: zipfile.ZipInfo) -> tuple[int, str]:
    """Length of the header before a member's bytes, and how it differs from the directory."""
    file.seek(info.header_offset)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size:
        return 0, "its header is cut"
    magic, version, reserved, flags, method, time, date, crc, packed, size, names, extras = _LOCAL.unpack(head)
    name = file.read(names)
    same = (
        (magic, reserved, flags, method, crc) == (b"PK\3\4", 0, info.flag_bits, info.compress_type, info.CRC)
        and version in _VERSIONS
        and name == info.orig_filename.encode()
        and (time, date) == _stamp(info)
        and all(each in (_LARGE, info.file_size) for each in (packed, size))
    )
    return _LOCAL.size + names + extras, "" if same else "its header is not that of the directory"


def _ends(file: IO[bytes], start: int, infos: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether the file ends behind a directory of those members at that place."""
    file.seek(start)
    tail = file.read()
    directory = b"".join(map(_listed, infos))
    if start + len(directory) >= zipfile.ZIP64_LIMIT:  # its numbers are in other records, which say the same
        size = sum(_ENTRY.size + len(info.orig_filename.encode()) + len(info.extra) for info in infos)
        return len(tail) == size + _END_LARGE + _END.size and tail.endswith(b"\0\0")
    end = _END.pack(b"PK\5\6", 0, 0, len(infos), len(infos), len(directory), start, 0)
    return tail == directory + end


def _listed(info: zipfile.ZipInfo) -> bytes:
    """A member's entry in the directory."""
    name, (time, date) = info.orig_filename.encode(), _stamp(info)
    return _ENTRY.pack(
        b"PK\1\2", info.create_version, info.create_system, info.extract_version, 0, info.flag_bits,
        info.compress_type, time, date, info.CRC, min(info.compress_size, _LARGE), min(info.file_size, _LARGE),
        len(name), len(info.extra), 0, 0, 0, info.external_attr, min(info.header_offset, _LARGE),
    ) + name + info.extra  # fmt: skip


def _stamp(info: zipfile.ZipInfo) -> tuple[int, int]:
    """Time and date as archives have them."""
    year, month, day, hour, minute, second = info.date_time
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day
