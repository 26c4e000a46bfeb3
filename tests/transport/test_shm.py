"""Slots between processes: never data of somebody else, never lost, never left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edgert.errors import Overloaded, SharedMemoryError, StaleSlot
from edgert.tensor import BITS, numpy_dtype
from edgert.transport import memory
from edgert.transport.shm import Pool, Reader

SOON_S = 0.0
"""A deadline that has passed: `take` must not wait."""


@pytest.fixture
def pool():
    with Pool(1 << 24) as made:
        yield made


@pytest.fixture
def reader():
    return Reader()


def array(value, size=100):
    return np.full(size, value, np.float32)


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("dtype", sorted(set(BITS) - {"string"}))
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3, 5)])
def test_arrays_of_every_type_and_rank_arrive_aligned_and_read_only(pool, reader, dtype, shape):
    sent = np.ones(shape, numpy_dtype(dtype))
    got = reader.view(pool.put(sent, ["a"]))
    assert got.dtype == sent.dtype
    assert got.shape == shape
    assert got.tobytes() == sent.tobytes()
    assert not got.flags.writeable
    assert got.ctypes.data % 64 == 0


def test_a_reader_sees_what_is_written_in_place_and_not_a_copy(pool, reader):
    slot = pool.take("float32", (4,))
    slot.array[...] = 1
    got = reader.view(slot.publish(["a"]))
    slot.array[...] = 2  # against the rules, to show that it is one memory
    assert got.tolist() == [2, 2, 2, 2]


def test_a_slot_is_used_again_only_when_the_last_reader_released_it(pool):
    first = pool.put(array(1), ["a", "b", "b"])
    for release, free in ((("a",), 0), (("a",), 0), (("b",), 0), (("b",), 1), (("b",), 0)):
        assert pool.release(*release, first.slot) == free
    second = pool.put(array(2), ["a"])
    assert (second.fd, second.offset) == (first.fd, first.offset)
    assert second.generation > first.generation


def test_a_slot_without_readers_is_free_at_once(pool):
    pool.put(array(1), [])
    assert pool.used_bytes == pool.published == 0


def test_a_recycled_slot_is_stale_before_and_after_it_was_viewed(pool, reader):
    first = pool.put(array(1), ["a"])
    reader.view(first)
    reader.check(first)
    pool.release("a", first.slot)
    slot = pool.take("float32", (100,))
    with pytest.raises(StaleSlot):
        reader.check(first)
    with pytest.raises(StaleSlot):
        reader.view(first)
    second = slot.publish(["a"])
    with pytest.raises(StaleSlot):
        reader.view(first)
    assert reader.view(second).size == 100


def test_a_slot_that_is_being_written_cannot_be_viewed(pool, reader):
    slot = pool.take("float32", (1,))
    published = dataclasses.replace(slot.publish(["a"]), generation=0)
    with pytest.raises(StaleSlot):
        reader.view(dataclasses.replace(published, generation=1))


def test_what_a_dead_reader_held_is_free_and_what_others_hold_is_not(pool):
    pool.put(array(1), ["dead", "dead"])
    both = pool.put(array(2), ["dead", "alive"])
    assert pool.reclaim("dead") == 1
    assert pool.reclaim("nobody") == 0
    assert pool.published == 1
    pool.share(both.slot, "other")
    assert pool.release("alive", both.slot) == 0
    assert pool.release("other", both.slot) == 1
    with pytest.raises(StaleSlot):
        pool.share(both.slot, "late")


@pytest.mark.parametrize("bad", [(1, 2, 3, 4), (0, 0, 0, 0), (1 << 63, 1 << 40, 5, 6)])
def test_a_release_of_what_there_is_not_changes_nothing(pool, bad):
    kept = pool.put(array(1), ["a"])
    assert pool.release("a", bad) == 0
    assert pool.release("stranger", kept.slot) == 0
    assert pool.published == 1


def test_beyond_the_limit_a_taker_waits_for_a_reader():
    with Pool(8192) as pool:
        first = [pool.put(array(1), ["a"]) for _ in range(2)]
        with pytest.raises(Overloaded, match="8192 of 8192 bytes"):
            pool.take("float32", (1,), deadline_s=SOON_S)
        got = []
        waiting = threading.Thread(target=lambda: got.append(pool.take("float32", (1,))))
        waiting.start()
        pool.release("a", first[0].slot)
        waiting.join(30)
        assert len(got) == 1
        with pytest.raises(Overloaded):
            pool.take("float32", (1,), deadline_s=time.monotonic() + 0.01)


def test_who_waits_is_told_when_the_pool_is_closed():
    pool = Pool(4096)
    pool.put(array(1), ["a"])
    failed = []

    def take():
        try:
            pool.take("float32", (1,))
        except Overloaded as error:
            failed.append(error.message)

    waiting = threading.Thread(target=take)
    waiting.start()
    pool.close()
    waiting.join(30)
    assert failed == ["the pool of shared memory was closed."]


def test_one_array_may_be_larger_than_the_whole_pool(reader):
    with Pool(1 << 16) as pool:
        large = pool.put(np.arange(1 << 18), ["a"])
        assert reader.view(large)[-1] == (1 << 18) - 1
        with pytest.raises(Overloaded):
            pool.take("int8", (1,), deadline_s=SOON_S)
        pool.release("a", large.slot)
        pool.put(array(1), ["a"])
        assert pool.mapped_bytes < 2 << 20


def test_memory_for_sizes_that_are_not_used_any_more_is_given_back(pool, reader):
    files, used = open_files(), []
    for step in range(40):
        size = 100_000 + 70_000 * step
        used.append(pool.put(np.zeros(size, np.uint8), ["a"]))
        reader.view(used[-1])
        pool.release("a", used[-1].slot)
        assert pool.mapped_bytes <= pool.limit_bytes + (4 << 20)
    assert open_files() - files <= 2 * (pool.limit_bytes // 100_000)
    # The readers let go of it too, though nobody tells them.
    assert reader.mapped_bytes <= pool.limit_bytes + (4 << 20)
    readable = 0
    for old in used:
        with contextlib.suppress(StaleSlot, SharedMemoryError):
            readable += bool(reader.view(old).size)
    assert readable < len(used)


def test_a_file_number_that_is_given_again_is_not_taken_for_the_old_memory(reader):
    with Pool(1 << 20) as pool:
        first = pool.put(np.full(1 << 20, 1, np.uint8), ["a"])
        reader.view(first)
        pool.release("a", first.slot)
        second = pool.put(np.full(3 << 18, 2, np.uint8), ["a"])
        assert second.fd == first.fd
        assert reader.view(second).max() == 2
        with pytest.raises((StaleSlot, SharedMemoryError)):
            reader.view(first)


def test_a_checksum_finds_bytes_that_changed(pool, reader):
    slot = pool.take("float32", (1000,))
    slot.array[...] = 3
    checked = slot.publish(["a"], checked=True)
    reader.view(checked)
    slot.array[500] = 4
    with pytest.raises(SharedMemoryError, match="checksum"):
        reader.view(checked)


@pytest.mark.parametrize(
    "change",
    [{"pool": 5}, {"offset": 64}, {"offset": 1}, {"offset": 1 << 40}, {"shape": (1 << 50,)}, {"fd": 0},
     {"fd": 1 << 20}, {"pid": 1 << 30}, {"shape": (1 << 62, 1 << 62)}],
)  # fmt: skip
def test_a_descriptor_that_names_no_slot_is_refused(pool, change):
    good = pool.put(array(1), ["a"])
    with pytest.raises(SharedMemoryError):
        Reader().view(dataclasses.replace(good, **change))


@pytest.mark.parametrize("kind", ["pipe", "file", "unsealed", "short"])
def test_only_sealed_memory_of_edgert_is_mapped(pool, kind, tmp_path):
    good = pool.put(array(1), ["a"])
    other, rest = os.pipe() if kind == "pipe" else (0, 0)
    if kind == "file":
        (tmp_path / "f").write_bytes(bytes(8192))
        other = os.open(tmp_path / "f", os.O_RDWR)
    elif kind in ("unsealed", "short"):
        other = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.truncate(other, 8192 if kind == "unsealed" else 8)
        if kind == "short":
            memory._seal(other)
    try:
        with pytest.raises(SharedMemoryError):
            Reader().view(dataclasses.replace(good, fd=other))
    finally:
        os.close(other)
        if rest:
            os.close(rest)


def test_nobody_can_shrink_grow_or_write_the_memory_of_another(pool):
    good = pool.put(array(1), ["a"])
    path = f"/proc/{good.pid}/fd/{good.fd}"
    for size in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.truncate(path, size)
    with open(path, "r+b", buffering=0) as file, pytest.raises(OSError, match="not permitted"):
        file.write(b"x" * 4096)


def take_all(pool):
    for _ in range(12):
        pool.take("uint8", (1 << 20,), deadline_s=SOON_S)


def test_lack_of_file_descriptors_is_an_error_with_a_remedy(pool):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))  # one more, where memory takes two
    try:
        with pytest.raises(SharedMemoryError, match="cannot be made: Too many open files"):
            take_all(pool)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    pool.put(array(1), ["a"])


LIMITED = """
import resource, sys
from edgert.errors import SharedMemoryError
from edgert.transport.shm import Pool
used = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
try:
    Pool().take('uint8', (64 << 20,))
except SharedMemoryError as error:
    print(error.message)
"""


def test_lack_of_memory_is_an_error_and_no_crash():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot be made" in done.stdout


OWNER = """
import sys
import numpy as np
from edgert.transport.shm import Pool
pool = Pool()
it = pool.put(np.arange(1000), ["a"])
print(it.pool, it.pid, it.fd, it.offset, it.generation, flush=True)
sys.stdin.read()
"""


def test_a_view_outlives_its_owner_and_nothing_of_a_killed_one_is_left(reader):
    before = set(os.listdir("/dev/shm")), set(os.listdir("/tmp"))
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        words = [int(word) for word in owner.stdout.readline().split()]
        from edgert.transport.messages import Descriptor

        there = Descriptor(*words, "int64", (1000,))
        got = reader.view(there)
        owner.kill()
        owner.wait()
    assert got.sum() == 499_500
    reader.check(there)
    assert set(os.listdir("/dev/shm")) == before[0]
    with pytest.raises(SharedMemoryError, match="cannot be opened"):
        Reader().view(there)
    reader.forget(there.pid)
    assert reader.mapped_bytes == 0


def test_a_pool_that_nobody_holds_closes_its_files():
    before = open_files()
    pool = Pool()
    pool.put(array(1), ["a"])
    assert open_files() > before
    del pool
    assert open_files() == before


class PoolMachine(RuleBasedStateMachine):
    """Random takes, publications, releases, deaths and late readers, beside a plain account of what must hold."""

    readers = st.lists(st.sampled_from(["a", "b", "c"]), max_size=3)

    def __init__(self):
        super().__init__()
        self.pool = Pool(1 << 20)
        self.reader = Reader()
        self.writing = []
        self.held = {}  # descriptor -> (content, readers)
        self.gone = []
        self.counter = 0

    @rule(size=st.integers(0, 300_000))
    def take(self, size):
        try:
            slot = self.pool.take("uint8", (size,), deadline_s=SOON_S)
        except Overloaded:
            assert self.pool.used_bytes + size > self.pool.limit_bytes // 2
            return
        self.counter += 1
        slot.array[...] = self.counter % 251
        self.writing.append((slot, self.counter % 251))

    @rule(readers=readers, checked=st.booleans(), drop=st.booleans())
    def end_writing(self, readers, checked, drop):
        if not self.writing:
            return
        slot, content = self.writing.pop(0)
        if drop:
            slot.drop()
            return
        descriptor = slot.publish(readers, checked=checked)
        if readers:
            self.held[descriptor] = (content, sorted(readers))
        else:
            self.gone.append(descriptor)

    @rule(which=st.integers(0, 20), reader=st.sampled_from(["a", "b", "c"]))
    def release(self, which, reader):
        if not self.held:
            return
        descriptor = list(self.held)[which % len(self.held)]
        _, readers = self.held[descriptor]
        freed = self.pool.release(reader, descriptor.slot)
        if reader in readers:
            readers.remove(reader)
        assert freed == (not readers)
        if freed:
            del self.held[descriptor]
            self.gone.append(descriptor)

    @rule(reader=st.sampled_from(["a", "b", "c"]))
    def die(self, reader):
        self.pool.reclaim(reader)
        for descriptor, (_, readers) in list(self.held.items()):
            readers[:] = [each for each in readers if each != reader]
            if not readers:
                del self.held[descriptor]
                self.gone.append(descriptor)

    @invariant()
    def what_is_held_reads_as_it_was_written(self):
        for descriptor, (content, _) in self.held.items():
            view = self.reader.view(descriptor)
            assert (view == content).all()
            self.reader.check(descriptor)

    @invariant()
    def what_is_gone_and_was_taken_again_is_not_read(self):
        taken = {(d.fd, d.offset) for d in self.held}
        for descriptor in self.gone[-20:]:
            if (descriptor.fd, descriptor.offset) in taken:
                with pytest.raises((StaleSlot, SharedMemoryError)):
                    self.reader.view(descriptor)

    @invariant()
    def the_account_is_right(self):
        assert self.pool.published == len(self.held)
        assert (self.pool.used_bytes == 0) == (not self.held and not self.writing)

    def teardown(self):
        self.pool.close()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
