"""A ceiling on what a child may allocate."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from edgert.devices import quota
from edgert.devices.host import Host
from edgert.devices.memory import available
from edgert.devices.remote import Remote
from edgert.errors import NotEnoughMemory, RunFailed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")


class Eats(Host):
    """A service whose runs hold what they are given, and more."""

    def _do(self, method, body, data):
        if method != "eat":
            return super()._do(method, body, data)
        self.held = [*getattr(self, "held", []), np.ones(body["bytes"], np.uint8)]
        return {}, {}


@pytest.fixture
def eater():
    remote = Remote("eater", service=f"{__name__}:Eats")
    yield remote
    remote.close()


def test_an_allocation_beyond_the_ceiling_fails_and_the_child_lives_on(eater):
    eater.call("ration", {"bytes": 96 << 20})
    eater.call("eat", {"bytes": 32 << 20})
    with pytest.raises(NotEnoughMemory, match="Unable to allocate"):
        eater.call("eat", {"bytes": 96 << 20})
    assert eater.pid is not None
    eater.call("eat", {"bytes": 32 << 20})


def test_the_ceiling_is_lifted_with_the_end_of_the_trials(eater):
    eater.call("ration", {"bytes": 16 << 20})
    eater.call("empty")
    eater.call("eat", {"bytes": 64 << 20})


def test_the_ceiling_follows_what_the_box_has(eater):
    eater.call("ration")
    text = Path(f"/proc/{eater.pid}/limits").read_text(encoding="ascii")
    limit_bytes = int(re.search(r"Max data size\s+(\d+)", text)[1])
    assert limit_bytes < available().size_bytes + (256 << 20)
    with pytest.raises(NotEnoughMemory):
        eater.call("eat", {"bytes": available().size_bytes})


@pytest.mark.parametrize(
    "words",
    ["std::bad_alloc", "terminate called after throwing an instance of 'std::bad_alloc'", "Unable to allocate 1. TiB",
     "CUDA error: out of memory", "Failed to allocate memory for requested buffer of size 7", "Cannot allocate memory"],
)  # fmt: skip
def test_libraries_words_for_it_are_known(words):
    assert quota.is_hit(words)
    assert not quota.is_hit("Conv is not implemented for memory format NCHW")


def test_who_is_not_on_a_ration_keeps_its_own_words():
    class Talks(Host):
        def _do(self, method, body, data):
            raise RunFailed("std::bad_alloc.")

    with pytest.raises(RunFailed):
        Talks().handle("run", {}, {})
