"""The short way: what takes it arrives once, what cannot take it arrives too, and nobody else can use it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import EndpointError, PeerUnreachable, WireError
from edgert.transport import direct, port
from edgert.transport.messages import Call, Cancel, Descriptor, Done, Free, Soon, Work
from edgert.transport.port import Lookout
from edgert.transport.sockets import Inbox, Outbox
from tests.conftest import no_more_files


def soon():
    """Far enough that only a failure reaches it."""
    return time.monotonic() + 30


def work(number, **values):
    slot = Descriptor(1 << 62, 3, 4, 4096, 2 * number, "float32", (1, number + 1))
    return Work(number, 0, None, 1 << 61, "segment", values or {"x": slot}, "ipc:///home")


@pytest.fixture(params=["inproc", "ipc"])
def pair(request, tmp_path):
    inbox = Inbox({"inproc": f"inproc://{tmp_path.name}", "ipc": f"ipc://{tmp_path}/socket"}[request.param])
    outbox = Outbox(inbox.endpoint)
    outbox.ready(soon())
    yield inbox, outbox
    outbox.close()
    inbox.close()


@pytest.fixture
def folder(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


def test_what_is_said_at_every_request_takes_it_and_the_rest_does_not(pair):
    inbox, outbox = pair
    short = [work(1), Done(1, 0, "segment", {}, "", {"run_s": 1.0}), Free("me", ((1, 2, 3, 4),))]
    for message in short:
        outbox.send(message)
        assert inbox.receive(soon()) == (message, b"", "")
    outbox.send(Cancel(1, 0))
    assert inbox.receive(soon()).peer


def test_a_receiver_that_waits_is_woken(pair):
    inbox, outbox = pair
    for number in range(200):
        got = []
        waiting = threading.Thread(target=lambda got=got: got.append(inbox.receive(soon())))
        waiting.start()
        outbox.send(work(number))
        waiting.join()
        assert got[0].message.request == number


def test_small_arrays_go_with_it_and_may_be_changed_afterwards(pair):
    inbox, outbox = pair
    array, empty = np.arange(10.0), np.zeros((0, 3), np.int8)
    outbox.send(work(1, x=array, e=empty))
    array[:] = -1
    received = inbox.receive(soon())
    assert received.peer == b""
    np.testing.assert_array_equal(received.message.values["x"], np.arange(10.0))
    assert received.message.values["e"].shape == (0, 3)


@pytest.mark.parametrize("value", [np.zeros(1 << 20), np.array(["text"], object), [np.ones(2)], None])
def test_what_does_not_fit_arrives_the_long_way(pair, value):
    inbox, outbox = pair
    outbox.send(work(1, x=value))
    np.testing.assert_equal(inbox.receive(soon()).message.values["x"], value)


def test_a_reader_that_is_busy_gets_everything_once(pair):
    inbox, outbox = pair
    for number in range(300):
        outbox.send(work(number))
    assert sorted(inbox.receive(soon()).message.request for _ in range(300)) == list(range(300))
    assert inbox.receive(time.monotonic()) is None


def test_many_threads_use_it_at_once(pair):
    inbox, outbox = pair

    def send(first):
        for number in range(first, first + 100):
            outbox.send(work(number))

    threads = [threading.Thread(target=send, args=(100 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    assert sorted(inbox.receive(soon()).message.request for _ in range(400)) == list(range(400))
    for thread in threads:
        thread.join()


def test_it_does_not_keep_others_from_being_heard(pair):
    inbox, outbox = pair
    outbox.send(Call(1, "long"))
    limit_s, number = soon(), 0
    outbox.send(work(number))
    while type(inbox.receive(limit_s).message) is not Call:
        assert time.monotonic() < limit_s
        outbox.send(work(number := number + 1))  # there is always one that came the short way


def test_what_was_sent_to_the_dead_never_reaches_their_successor(folder):
    where = f"ipc://{folder}/socket"
    before = Inbox(where)
    outbox = Outbox(where)
    outbox.ready(soon())
    outbox.send(work(1))
    before.close()
    after = Inbox(where)
    limit_s, received = soon(), None
    while received is None:
        assert time.monotonic() < limit_s
        with contextlib.suppress(PeerUnreachable):
            outbox.send(work(2))
        received = after.receive(time.monotonic() + 0.05)
    assert received.message.request == 2
    outbox.close()
    after.close()


def test_within_a_process_too(tmp_path):
    where = f"inproc://{tmp_path.name}"
    before = Inbox(where)
    outbox = Outbox(where)
    outbox.send(work(1))
    before.close()
    after = None
    while after is None:
        with contextlib.suppress(EndpointError):  # libzmq lets go of the name in the background
            after = Inbox(where)
    assert after.receive(time.monotonic() + 0.05) is None
    outbox.close()
    after.close()


def test_a_draft_is_the_message_with_the_time_that_is_left(folder):
    inbox = Inbox(f"ipc://{folder}/socket")
    outbox = Outbox(inbox.endpoint)
    deadline_s = time.monotonic() + 1000
    message = replace(work(1), deadline_s=deadline_s)
    draft = outbox.draft(message)
    time.sleep(0.01)  # the time left that was written first is 10 ms too long
    sent_s = time.monotonic()
    assert draft.sent()
    received = inbox.receive(soon()).message
    way_s = time.monotonic() - sent_s  # what the message took at most: so much later its receiver counts from
    assert replace(received, deadline_s=None) == work(1)
    assert deadline_s <= received.deadline_s <= deadline_s + way_s + 1e-6
    outbox.close()
    inbox.close()


def test_a_draft_for_the_dead_is_not_sent(folder):
    inbox = Inbox(f"ipc://{folder}/socket")
    outbox = Outbox(inbox.endpoint)
    draft = outbox.draft(work(1))
    inbox.close()
    assert not draft.sent()
    outbox.close()


def test_a_hint_takes_it_or_is_lost(folder):
    inbox = Inbox(f"ipc://{folder}/socket")
    outbox = Outbox(inbox.endpoint)
    outbox.hint(Soon(1, "segment"))
    assert inbox.receive(soon()).message == Soon(1, "segment")
    inbox.close()
    outbox.hint(Soon(1, "segment"))
    outbox.close()


@pytest.mark.parametrize("late", [False, True])
def test_whoever_looks_out_finds_what_comes_then_and_later(folder, late):
    inbox = Inbox(f"ipc://{folder}/socket")
    outbox = Outbox(inbox.endpoint)
    begun = threading.Event()
    now_s = time.monotonic()
    lookout = Lookout(now_s + 0.02, now_s + (0.03 if late else 30), begun.set, lambda: False)
    got = []
    waiting = threading.Thread(target=lambda: got.append(inbox.receive(soon(), lookout=lookout)))
    waiting.start()
    assert begun.wait(30)
    while late and time.monotonic() < lookout.end_s:
        time.sleep(0.001)
    outbox.send(work(1))
    waiting.join()
    assert got[0].message == work(1)
    outbox.close()
    inbox.close()


def test_whoever_looks_out_for_what_no_message_tells_stops_when_it_is_there(folder, monkeypatch):
    monkeypatch.setattr(port, "_WANTED_S", 1e9)
    inbox = Inbox(f"ipc://{folder}/socket")
    there = threading.Event()
    asked = threading.Event()

    def seen():
        asked.set()
        return there.is_set()

    now_s = time.monotonic()
    lookout = Lookout(now_s, now_s + 30, lambda: None, seen)
    got = []
    waiting = threading.Thread(target=lambda: got.append(inbox.receive(None, lookout=lookout)))
    waiting.start()
    assert asked.wait(30)
    there.set()
    waiting.join(30)
    assert got == [None]
    inbox.close()


def test_to_rehearse_a_message_changes_nothing(pair):
    inbox, _ = pair
    inbox.rehearse(work(1))
    assert inbox.receive(time.monotonic()) is None


@pytest.mark.parametrize(("group", "mode"), [(False, 0o600), (True, 0o660)])
def test_it_is_as_private_as_the_inbox_and_goes_with_it(folder, group, mode):
    inbox = Inbox(f"ipc://{folder}/socket", group=group)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_socket()}
    assert modes == {"socket": mode, "socket.hot": mode}
    inbox.close()
    assert not list(folder.iterdir())


def test_what_a_killed_process_left_there_is_no_hindrance(folder):
    left = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.bind(f"{folder}/socket.hot")
    left.close()
    inbox = Inbox(f"ipc://{folder}/socket")
    outbox = Outbox(inbox.endpoint)
    outbox.send(work(1))
    assert inbox.receive(soon()).peer == b""
    outbox.close()
    inbox.close()


def test_a_path_too_long_for_it_is_served_the_long_way(folder):
    path = f"{folder}/"
    path += "x" * (107 - len(os.fsencode(path)))
    inbox = Inbox(f"ipc://{path}")
    outbox = Outbox(inbox.endpoint)
    outbox.ready(soon())
    outbox.send(work(1))
    assert inbox.receive(soon()).message == work(1)
    outbox.close()
    inbox.close()


def test_datagrams_that_are_no_messages_are_counted_and_dropped(folder):
    inbox = Inbox(f"ipc://{folder}/socket")
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    stranger.connect(f"{folder}/socket.hot")
    bad = [b"", b"\1", b"\1\0\0\0", b"\0\0", os.urandom(500), b"\1\0\xff\xff" + bytes(9000), b"\1\0\4\0EDRM"]
    for datagram in bad:
        stranger.send(datagram)
        assert inbox.receive(time.monotonic()) is None
    assert inbox.dropped == len(bad)
    outbox = Outbox(inbox.endpoint)
    outbox.send(work(1))
    assert inbox.receive(soon()).message == work(1)
    for each in (stranger, outbox, inbox):
        each.close()


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_error(datagram):
    try:
        parts = direct.frames_of(datagram)
    except WireError:
        return
    assert sum(map(len, parts)) + 2 * len(parts) + 2 == len(datagram)


def test_without_files_for_it_messages_arrive_the_long_way(folder):
    inbox = Inbox(f"ipc://{folder}/socket")
    outbox = Outbox(inbox.endpoint)
    outbox.ready(soon())
    with no_more_files():
        outbox.send(work(1))
        received = inbox.receive(soon())
    assert (received.message, bool(received.peer)) == (work(1), True)
    while received.peer:  # until the short way is tried again
        outbox.send(work(2))
        received = inbox.receive(soon())
    outbox.close()
    inbox.close()
