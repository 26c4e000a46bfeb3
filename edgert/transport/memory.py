"""Memory files: the memory under `shm`. With it the only module that maps memory.

A memory file (memfd) has no name, so it is gone with the last process that has it open, whatever kills that. It is
sealed: nobody can shrink it under a reader, and nobody but its maker can write it. It holds equal slots, each a header
and room for an array.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import weakref
from dataclasses import dataclass

from edgert.errors import SharedMemoryError
from edgert.transport.messages import Descriptor

HEADER = struct.Struct("<8sQQQ")
"""Of each slot: magic, pool, generation, bytes for the array; padded to HEADER_BYTES."""
HEADER_BYTES = 64
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Of this process or system: whose fault a failed call then is not."""
_MAGIC = b"EDRTSLOT"
_RETIRED = b"EDRTOVER"
_GENERATION = struct.Struct("<Q")
_GENERATION_AT = 16
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
"""Page tables filled at once: a first use would else pay a fault for each 4 KB."""
_SEAL_FUTURE_WRITE = 0x0010
"""linux/fcntl.h: no new writable mapping, by whomever; Python has no name for it before 3.13. Since Linux 5.1."""


class MemoryFile:
    """One memory file, with equal slots."""

    def __init__(self, size: int, count: int, pool: int) -> None:
        self.size, self.count = size, count
        self.length = (size + HEADER_BYTES) * count
        try:
            self.fd = _memory_file(self.length)
        except OSError as error:
            raise _no_memory(self.length, error) from error
        self._dropped = weakref.finalize(self, os.close, self.fd)
        try:
            # Filled now, where a lack of memory is an error that can be told; later it would be a SIGBUS.
            os.posix_fallocate(self.fd, 0, self.length)
            self.view: mmap.mmap | memoryview = mmap.mmap(self.fd, self.length, mmap.MAP_SHARED | _POPULATE)
            _seal(self.fd)
        except OSError as error:
            self._dropped()
            raise _no_memory(self.length, error) from error
        for index in range(count):
            HEADER.pack_into(self.view, index * (size + HEADER_BYTES), _MAGIC, pool, 0, size)

    def close(self) -> None:
        """Tell readers that this memory is over, and let go of it: the last array in it unmaps it."""
        HEADER.pack_into(self.view, 0, _RETIRED, 0, 0, 0)
        self._dropped()
        self.view = memoryview(b"")

    def write_generation(self, offset: int, generation: int) -> None:
        """Into the header of the slot at `offset`; nothing when the file was closed."""
        if self.view:
            _GENERATION.pack_into(self.view, offset + _GENERATION_AT, generation)


@dataclass(frozen=True, slots=True)
class Mapping:
    """Another process's memory file, read-only."""

    view: mmap.mmap
    pid: int

    @property
    def retired(self) -> bool:
        """Whether its owner gave it back."""
        return self.view[:8] == _RETIRED

    def counter(self, offset: int) -> int:
        """The generation in the header at `offset`, which `generation` found to be one."""
        return int(_GENERATION.unpack_from(self.view, offset + _GENERATION_AT)[0])

    def generation(self, descriptor: Descriptor, count: int) -> int:
        """What the slot's header says; 0 when there is no such slot any more.

        Raises:
            SharedMemoryError: the descriptor does not fit the memory.
        """
        start = descriptor.offset
        if start % 64 or start + HEADER_BYTES + count > len(self.view):
            raise SharedMemoryError(f"{descriptor} leaves its memory of {len(self.view)} bytes.")
        magic, pool, generation, size = HEADER.unpack_from(self.view, start)
        if magic == _RETIRED or self.retired:
            return 0
        if magic != _MAGIC or pool != descriptor.pool or count > size:
            raise SharedMemoryError(f"{descriptor} names no slot that could hold it.")
        return int(generation)


def available() -> bool:
    """Whether this system has memory files."""
    return hasattr(os, "memfd_create")


def _memory_file(length: int) -> int:
    if not available():
        raise SharedMemoryError(
            "this system has no memfd_create (Linux with glibc 2.27 has).", "Send arrays in the messages."
        )
    fd = os.memfd_create("edgert", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, length)
    except OSError:
        os.close(fd)
        raise
    return fd


def _seal(fd: int) -> None:
    """No one, we included, can shrink or grow it, and nobody else can map it to write: a reader never meets SIGBUS."""
    import fcntl  # Linux has it; elsewhere there are no memory files, and this module still imports

    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | _SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
    except OSError:  # Linux before 5.1
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)


def open_mapping(descriptor: Descriptor) -> Mapping:
    path = f"/proc/{descriptor.pid}/fd/{descriptor.fd}"
    try:
        return _mapped(path, descriptor)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise SharedMemoryError(
                f"{path} cannot be mapped: {error.strerror}.", "Raise the limit (ulimit -n, ulimit -v).", shortage=True
            ) from error
        raise SharedMemoryError(f"{path} cannot be mapped: {error}.") from error


def _mapped(path: str, descriptor: Descriptor) -> Mapping:
    import fcntl  # as in `_seal`

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        raise SharedMemoryError(
            f"the memory of process {descriptor.pid} cannot be opened: {error.strerror}.",
            "It is gone, or runs as another user or in another container: then send arrays in the messages.",
        ) from error
    try:
        # Only a sealed memory file: nothing else can be named, and none can shrink under the mapping.
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise SharedMemoryError(f"{path} is not sealed memory of edgert.")
        view = mmap.mmap(fd, 0, mmap.MAP_SHARED | _POPULATE, mmap.PROT_READ)
    except ValueError as error:
        raise SharedMemoryError(f"{path} cannot be mapped: {error}.") from error
    finally:
        os.close(fd)
    if len(view) < HEADER.size:
        raise SharedMemoryError(f"{path} is not memory of edgert.")
    return Mapping(view, descriptor.pid)


def _no_memory(length: int, error: OSError) -> SharedMemoryError:
    return SharedMemoryError(
        f"{length} bytes of shared memory cannot be made: {error.strerror or error}.",
        "Raise the limit of memory (cgroup, ulimit -v, -n), or give the pool a smaller one.",
    )


def process_lives(pid: int) -> bool:
    """Whether there is such a process."""
    return os.path.exists(f"/proc/{pid}")
