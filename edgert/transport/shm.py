"""Shared memory that carries tensors between processes of one user on one system. The memory files are in `memory`.

Who makes tensors owns a `Pool`: slots in memory files of its own (memfd), which nobody else can write, shrink or leave
behind: they have no name, so they are gone with the last process that has them open, whatever kills it. Readers map
them by the owner's process number and file descriptor (`Reader`).

    pool = Pool()                                  reader = Reader()
    slot = pool.take("float32", (1, 10))           array = reader.view(descriptor)
    compute(out=slot.array)                        use(array)
    descriptor = slot.publish(["ipc://b"])         reader.check(descriptor)
       ... the descriptor travels in a Work ...       ... its slot travels back in a Free ...
    pool.release("ipc://b", descriptor.slot)

Life of a slot: free -> taken (its generation becomes odd: being written) -> published (even), with a set of readers ->
free again when the last of them released it, or was reclaimed because it died. A reader compares the generation in the
slot's header with that of the descriptor before and after use, so a slot that was recycled is never taken for data.

Memory files are made for size classes (powers of two) as they are needed and kept for reuse, up to the pool's limit.
Elsewhere than on Linux there are no memory files: `Pool` then raises SharedMemoryError, and arrays go in the messages.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from edgert.errors import Overloaded, SharedMemoryError, StaleSlot
from edgert.tensor import Array, DType, Shape, dtype_of, numpy_dtype
from edgert.transport.memory import HEADER_BYTES, Mapping, MemoryFile, open_mapping, process_lives
from edgert.transport.messages import Descriptor

_SMALLEST = 4096
_FILE_BYTES = 1 << 20
"""Small slots share a memory file of about this size, so that many of them need few file descriptors."""
_MOST_SLOTS = 64
ORDERED = platform.machine().lower() in {"x86_64", "amd64"}
"""Whether who sees a slot's generation also sees what was written before it. Elsewhere only a system call in between,
as sending a message is one, makes sure of that."""
Ref = tuple[int, int, int, int]
"""`Descriptor.slot`: pool, file descriptor, offset, generation."""


class Pool:
    """The slots that this process writes. Thread-safe."""

    def __init__(self, limit_bytes: int = 1 << 28) -> None:
        """Nothing is mapped until the first `take`.

        Args:
            limit_bytes: how much may be in use at a time; `take` waits beyond that. One slot alone may exceed it, so
                that no tensor is refused for its size.
        """
        self.limit_bytes = limit_bytes
        self.number = secrets.randbits(63)
        self._condition = threading.Condition()
        self._files: list[MemoryFile] = []
        self._free: dict[int, list[_Room]] = {}
        self._held: dict[Ref, _Published] = {}
        self._used_bytes = 0
        self._mapped_bytes = 0
        self._waiting = 0
        self._generation = 0  # of the whole pool, so that no two uses of any slots share one
        self._closed = False

    @property
    def used_bytes(self) -> int:
        """In slots that are being written or read."""
        return self._used_bytes

    @property
    def mapped_bytes(self) -> int:
        """Memory that the pool holds, in use or kept for reuse."""
        return self._mapped_bytes

    @property
    def published(self) -> int:
        """Slots that wait for their readers."""
        return len(self._held)

    def take(self, dtype: DType, shape: Shape, *, deadline_s: float | None = None) -> Slot:
        """A slot with room for an array, to be written.

        Args:
            dtype: any but 'string'.
            shape: sizes.
            deadline_s: when to give up, on `time.monotonic()`; None waits for ever, a moment that passed not at all.

        Raises:
            Overloaded: the pool's limit is reached and no reader freed enough in time.
            SharedMemoryError: the system gives no more memory or file descriptors.
        """
        kind = _dtype(dtype)
        sizes = tuple(int(size) for size in shape)
        room = self._take(_class_of(math.prod(sizes) * kind.itemsize), deadline_s)
        array: Array = np.ndarray(sizes, kind, room.file.view, room.offset + HEADER_BYTES)
        return Slot(self, room, array, dtype)

    def put(
        self, array: Array, readers: Iterable[str], *, deadline_s: float | None = None, checked: bool = False
    ) -> Descriptor:
        """A copy of an array, published at once. Raises as `take`."""
        slot = self.take(dtype_of(array), array.shape, deadline_s=deadline_s)
        slot.array[...] = array
        return slot.publish(readers, checked=checked)

    def share(self, ref: Ref, reader: str) -> None:
        """Give a published slot one more reader, or one that reads it already one more use.

        Raises:
            StaleSlot: it is free already.
        """
        with self._condition:
            held = self._held.get(ref)
            if held is None:
                raise StaleSlot(f"slot {ref} was freed before {reader!r} was to read it.", "Send the array again.")
            held.readers[reader] = held.readers.get(reader, 0) + 1

    def release(self, reader: str, *refs: Ref) -> int:
        """Take a reader off slots; those without readers are free again. What is unknown or freed already is skipped:
        a peer may say what it will. Returns how many slots became free.
        """
        with self._condition:
            return sum(self._release(reader, ref) for ref in refs)

    def reclaim(self, reader: str) -> int:
        """Take a reader that is gone off all slots; returns how many became free.

        Call it when the reader is dead, not when it is slow: what it still reads may be written again.
        """
        with self._condition:
            return sum(
                self._release(reader, ref, everything=True)
                for ref, held in list(self._held.items())
                if reader in held.readers
            )

    def close(self) -> None:
        """Give the memory back once no reader has it mapped; takers that wait get `Overloaded`. Harmless twice."""
        with self._condition:
            self._closed = True
            files, self._files = self._files, []
            self._free.clear()
            self._held.clear()
            self._condition.notify_all()
        for file in files:
            file.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, size: int, deadline_s: float | None) -> _Room:
        with self._condition:
            while not self._closed:
                if self._used_bytes + size <= self.limit_bytes or not self._used_bytes:
                    room = self._room(size)
                    self._used_bytes += size
                    self._generation += 2
                    room.write_generation(self._generation - 1)
                    return room
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._waiting += 1
                self._condition.wait(left_s)
                self._waiting -= 1
            if self._closed:
                raise Overloaded("the pool of shared memory was closed.", "Load the model again.")
            raise Overloaded(
                f"{self._used_bytes} of {self.limit_bytes} bytes of shared memory are in use, and {size} more are "
                "needed; nobody freed enough in time.",
                "Send fewer requests at a time, or give the pool a larger limit.",
            )

    def _room(self, size: int) -> _Room:
        """A free room of a size class; made when there is none, out of unused ones of other sizes if it must be."""
        rooms = self._free.setdefault(size, [])
        if not rooms:
            count = max(1, min(_MOST_SLOTS, _FILE_BYTES // (size + HEADER_BYTES)))
            self._trim((size + HEADER_BYTES) * count)
            file = MemoryFile(size, count, self.number)
            self._files.append(file)
            self._mapped_bytes += file.length
            rooms.extend(_Room(file, index * (size + HEADER_BYTES), size) for index in reversed(range(count)))
        return rooms.pop()

    def _trim(self, wanted: int) -> None:
        """Give back memory files with no slot in use, the largest first, until what is wanted fits the limit."""
        for file in sorted(self._files, key=lambda each: -each.length):
            if self._mapped_bytes + wanted <= self.limit_bytes:
                return
            rooms = self._free.get(file.size, [])
            idle = [room for room in rooms if room.file is file]
            if len(idle) == file.count:
                self._free[file.size] = [room for room in rooms if room.file is not file]
                self._files.remove(file)
                self._mapped_bytes -= file.length
                file.close()

    def _publish(self, room: _Room, ref: Ref, readers: Iterable[str]) -> None:
        with self._condition:
            room.write_generation(ref[3])
            if not self._closed:
                uses: dict[str, int] = {}
                for reader in readers:
                    uses[reader] = uses.get(reader, 0) + 1
                self._held[ref] = _Published(room, uses)
                if not uses:
                    self._release("", ref)

    def _release(self, reader: str, ref: Ref, *, everything: bool = False) -> bool:
        held = self._held.get(ref)
        if held is None:
            return False
        left = 0 if everything else held.readers.get(reader, 0) - 1
        if left > 0:
            held.readers[reader] = left
        else:
            held.readers.pop(reader, None)
        if held.readers:
            return False
        del self._held[ref]
        self._give_back(held.room)
        return True

    def _drop(self, room: _Room) -> None:
        with self._condition:
            # Not the generation that was promised: what was never published is never read.
            room.write_generation(0)
            if not self._closed:
                self._give_back(room)

    def _give_back(self, room: _Room) -> None:
        self._used_bytes -= room.size
        self._free[room.size].append(room)
        if self._waiting:
            self._condition.notify_all()


class Slot:
    """A slot that is being written."""

    def __init__(self, pool: Pool, room: _Room, array: Array, dtype: DType) -> None:
        self.array = array
        """Where to write: C-contiguous, 64-byte aligned, its content undefined at first."""
        self._pool, self._room = pool, room
        self._open = True
        self.promised = Descriptor(
            pool.number, os.getpid(), room.file.fd, room.offset, room.generation + 1, dtype, array.shape
        )
        """What `publish` will give, but for the checksum: until then, readers find another generation."""

    def publish(self, readers: Iterable[str], *, checked: bool = False) -> Descriptor:
        """Declare the array complete and say who will read it; write it no more.

        Args:
            readers: names, each of which will `release` it (a name that comes twice, twice); none: it is free again
                at once.
            checked: take a checksum, which every reader then compares (about 1 ms for 1 MB).
        """
        self._open = False
        made = replace(self.promised, checksum=_checksum(self.array)) if checked else self.promised
        self._pool._publish(self._room, made.slot, readers)
        return made

    def drop(self) -> None:
        """Give it back unread. Harmless when it was published or dropped already."""
        if self._open:
            self._open = False
            self._pool._drop(self._room)


class Reader:
    """Other processes' slots, mapped read-only. Thread-safe. What is mapped stays so, since it is used again and again,
    until its owner is forgotten or is seen to have closed it.
    """

    def __init__(self, most_bytes: int = 1 << 32) -> None:
        """Args:
        most_bytes: address space for mappings; the oldest make room (arrays in use keep theirs).
        """
        self._most_bytes = most_bytes
        self._maps: dict[tuple[int, int], Mapping] = {}
        self._mapped_bytes = 0
        self._lock = threading.Lock()

    @property
    def mapped_bytes(self) -> int:
        """Address space of the mappings."""
        return self._mapped_bytes

    def view(self, descriptor: Descriptor) -> Array:
        """The array in place: read-only, 64-byte aligned. It stays mapped as long as the array is referenced; whether
        it was recycled meanwhile tells `check`.

        Raises:
            StaleSlot: the slot has another generation.
            SharedMemoryError: it cannot be mapped (another user, host or container, or the owner is gone), is no slot
                of that pool, or its checksum is wrong.
        """
        kind = _dtype(descriptor.dtype)
        count = math.prod(descriptor.shape) * kind.itemsize
        mapping = self._mapping(descriptor)
        generation = mapping.generation(descriptor, count)
        if generation != descriptor.generation and mapping.retired:
            # The owner's descriptor was closed and its number given to newer memory.
            self._drop(descriptor)
            mapping = self._mapping(descriptor)
            generation = mapping.generation(descriptor, count)
        if generation != descriptor.generation:
            raise _stale(descriptor, generation)
        array: Array = np.ndarray(descriptor.shape, kind, mapping.view, descriptor.offset + HEADER_BYTES)
        if descriptor.checksum and _checksum(array) != descriptor.checksum:
            raise SharedMemoryError(f"the bytes of {descriptor} have another checksum.", "Run the request again.")
        return array

    def rehearse(self, descriptor: Descriptor) -> Array:
        """What `view` does, whatever the slot holds by now: its numbers mean nothing. Raises as `view`, else."""
        kind = _dtype(descriptor.dtype)
        mapping = self._mapping(descriptor)
        mapping.generation(descriptor, math.prod(descriptor.shape) * kind.itemsize)
        array: Array = np.ndarray(descriptor.shape, kind, mapping.view, descriptor.offset + HEADER_BYTES)
        return array

    def watch(self, descriptors: Iterable[Descriptor]) -> Callable[[], bool]:
        """What tells whether slots are published by now, each of them, without a message that says so.

        Of use only where memory is `ORDERED`. Raises as `view`, but for the generation and the checksum.
        """
        places: list[tuple[Mapping, int, int]] = []
        for it in descriptors:
            mapping = self._mapping(it)
            mapping.generation(it, math.prod(it.shape) * _dtype(it.dtype).itemsize)
            places.append((mapping, it.offset, it.generation))

        def published() -> bool:
            return all(mapping.counter(offset) == generation for mapping, offset, generation in places)

        return published

    def check(self, *descriptors: Descriptor) -> None:
        """Call when what was viewed has been used, before the outcome is.

        Raises:
            StaleSlot: a slot was recycled meanwhile: throw away what was made of it.
        """
        for descriptor in descriptors:
            generation = self._mapping(descriptor).generation(descriptor, 0)
            if generation != descriptor.generation:
                raise _stale(descriptor, generation)

    def forget(self, pid: int | None = None) -> None:
        """Unmap what a process (None: all) owned, once its arrays are no longer referenced."""
        with self._lock:
            for key in [key for key, mapping in self._maps.items() if pid in (None, mapping.pid)]:
                self._unmap(key)

    def _mapping(self, descriptor: Descriptor) -> Mapping:
        key = (descriptor.pool, descriptor.fd)
        mapping = self._maps.get(key)
        if mapping is not None:
            return mapping
        with self._lock:
            mapping = self._maps.get(key)
            if mapping is None:
                mapping = open_mapping(descriptor)
                for other in [
                    each for each, known in self._maps.items() if known.retired or not process_lives(known.pid)
                ]:
                    self._unmap(other)
                self._maps[key] = mapping
                self._mapped_bytes += len(mapping.view)
                while self._mapped_bytes > self._most_bytes and len(self._maps) > 1:
                    self._unmap(next(iter(self._maps)))
            return mapping

    def _drop(self, descriptor: Descriptor) -> None:
        with self._lock:
            self._unmap((descriptor.pool, descriptor.fd))

    def _unmap(self, key: tuple[int, int]) -> None:
        mapping = self._maps.pop(key, None)
        if mapping is not None:
            self._mapped_bytes -= len(mapping.view)


@dataclass(slots=True)
class _Room:
    """A slot's place in a memory file."""

    file: MemoryFile
    offset: int
    """Of its header."""
    size: int
    """Bytes for the array."""
    generation: int = 0

    def write_generation(self, generation: int) -> None:
        self.generation = generation
        self.file.write_generation(self.offset, generation)


@dataclass(slots=True)
class _Published:
    room: _Room
    readers: dict[str, int]
    """How often each will still release it."""


_dtype = functools.cache(numpy_dtype)


def _class_of(count: int) -> int:
    """The size class of an array: powers of two, above 1 MB in steps of an eighth, which waste less."""
    if count <= _SMALLEST:
        return _SMALLEST
    power = 1 << (count - 1).bit_length()
    step = power // 8 if power > _FILE_BYTES else power
    return -(-count // step) * step


def _checksum(array: Array) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data) or 1 if array.size else 1


def _stale(descriptor: Descriptor, generation: int) -> StaleSlot:
    return StaleSlot(
        f"slot at {descriptor.offset} of process {descriptor.pid} was given to somebody else: generation "
        f"{generation}, not {descriptor.generation}.",
        "Run the request again.",
    )
