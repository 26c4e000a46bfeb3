"""Real sockets of every kind: what is sent arrives, and whoever may not talk here learns nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgert
from edgert.errors import Closed, EndpointError, OptionError, Overloaded, PeerRefused, PeerUnreachable, WireError
from edgert.transport import endpoints, frames
from edgert.transport.endpoints import Endpoint
from edgert.transport.keys import KeyPair, Keyring
from edgert.transport.messages import Bye, Call, Cancel, Speaks
from edgert.transport.sockets import Inbox, Outbox, host_id

SCHEMES = ("inproc", "ipc", "tcp")


def soon():
    """Far enough that only a failure reaches it."""
    return time.monotonic() + 30


class Site:
    """An inbox of one kind, and outboxes to it."""

    def __init__(self, scheme, folder, **options):
        self.ring = Keyring(folder / "keys")
        self.client = KeyPair.random()
        self.scheme = scheme
        where = {"inproc": f"inproc://{folder.name}", "ipc": "ipc://*", "tcp": "tcp://127.0.0.1:0"}[scheme]
        if scheme == "tcp":
            self.ring.make()
            self.ring.allow("client", self.client.public)
        self.options = options
        self.inbox = Inbox(where, keyring=self.ring if scheme == "tcp" else None, **options)
        self.outboxes = []

    def outbox(self, **changes):
        keys = {"keys": self.client, "server_key": self.ring.own().public} if self.scheme == "tcp" else {}
        made = Outbox(self.inbox.endpoint, **{**keys, **self.options, **changes})
        self.outboxes.append(made)
        return made

    def ready(self, **changes):
        made = self.outbox(**changes)
        made.ready(soon())
        return made

    def close(self):
        for each in (*self.outboxes, self.inbox):
            each.close()


@pytest.fixture(params=SCHEMES)
def site(request, tmp_path):
    made = Site(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def tcp(tmp_path):
    made = Site("tcp", tmp_path)
    yield made
    made.close()


def test_messages_arrive_in_order_and_answers_come_back(site):
    outbox = site.ready()
    for number in range(50):
        outbox.send(Cancel(number, 0))
    for number in range(50):
        received = site.inbox.receive(soon())
        assert received.message == Cancel(number, 0)
        site.inbox.answer(received.peer, Cancel(number, 1))
    assert [outbox.receive(soon()).attempt for _ in range(50)] == [1] * 50


@pytest.mark.parametrize("lend", [False, True])
def test_arrays_arrive_whole_both_ways(site, lend):
    outbox = site.ready()
    sent = {
        "x": np.random.default_rng(0).random((300, 1000)),
        "e": np.zeros((0, 3), np.int8),
        "t": np.array(["é"], object),
    }
    outbox.send(Call(1, "m", {}, sent), lend=lend)
    received = site.inbox.receive(soon())
    site.inbox.answer(received.peer, received.message, lend=lend)
    for values in (received.message.values, outbox.receive(soon()).values):
        for name, array in sent.items():
            np.testing.assert_array_equal(values[name], array)


def test_an_array_that_was_not_lent_may_be_changed_once_it_was_sent(site):
    outbox = site.ready()
    array = np.ones(1 << 20)
    outbox.send(Call(1, "m", {}, {"x": array}))
    array[:] = 2
    assert site.inbox.receive(soon()).message.values["x"].max() == 1


def test_many_threads_may_send_and_each_answer_reaches_its_asker(site):
    boxes = [site.ready() for _ in range(3)]
    stop = threading.Event()

    def serve():
        while not stop.is_set():
            received = site.inbox.receive(time.monotonic() + 0.1)
            if received is not None:
                site.inbox.answer(received.peer, received.message)

    def ask(box, start):
        for number in range(start, start + 100):
            box.send(Cancel(number, 0))

    server = threading.Thread(target=serve)
    askers = [threading.Thread(target=ask, args=(box, 1000 * (2 * index + half))) for index, box in enumerate(boxes)
              for half in (0, 1)]  # fmt: skip
    for thread in (server, *askers):
        thread.start()
    got = [{box.receive(soon()).request for _ in range(200)} for box in boxes]
    stop.set()
    for thread in (server, *askers):
        thread.join()
    for index, numbers in enumerate(got):
        assert numbers == {1000 * (2 * index + half) + each for half in (0, 1) for each in range(100)}


def test_receive_ends_at_its_deadline_at_a_wake_and_at_close(site):
    assert site.inbox.receive(time.monotonic() + 0.01) is None
    site.inbox.wake()
    assert site.inbox.receive(soon()) is None
    ended = []

    def wait():
        ended.append(site.inbox.receive(soon()))
        try:
            site.inbox.receive(soon())
        except Closed:
            ended.append("closed")

    waiting = threading.Thread(target=wait)
    waiting.start()
    site.inbox.wake()
    while not ended:
        time.sleep(0.001)
    site.inbox.close()
    waiting.join(30)
    assert ended == [None, "closed"]
    site.inbox.close()
    with pytest.raises(Closed):
        site.inbox.receive(soon())


def test_a_peer_that_is_gone_is_a_typed_error_on_both_sides(site):
    outbox = site.ready()
    outbox.send(Cancel(1, 1))
    peer = site.inbox.receive(soon()).peer
    outbox.close()
    if site.scheme != "inproc":
        wait_for(lambda: raises(PeerUnreachable, site.inbox.answer, peer, Cancel(1, 1)))
    with pytest.raises(Closed):
        outbox.send(Cancel(1, 1))
    other = site.ready()
    site.inbox.close()
    wait_for(lambda: raises(PeerUnreachable, other.send, Cancel(1, 1)))


def raises(kind, call, *arguments):
    try:
        call(*arguments)
    except kind:
        return True
    return False


def wait_for(condition):
    limit_s = soon()
    while not condition():
        assert time.monotonic() < limit_s
        time.sleep(0.002)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_what_was_meant_for_a_dead_peer_never_reaches_its_successor(scheme, tmp_path):
    site = Site(scheme, tmp_path)
    outbox = site.ready()
    where = site.inbox.endpoint
    site.inbox.close()
    wait_for(lambda: raises(PeerUnreachable, outbox.send, Cancel(1, 0)))
    with Inbox_(where, site) as successor:
        outbox.ready(soon())
        outbox.send(Cancel(2, 0))
        assert successor.receive(soon()).message == Cancel(2, 0)
        assert outbox.breaks == 1
    site.close()


class Inbox_:
    def __init__(self, where, site):
        self.inbox = Inbox(where, keyring=site.ring if site.scheme == "tcp" else None)

    def __enter__(self):
        return self.inbox

    def __exit__(self, *_):
        self.inbox.close()


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_peer_that_does_not_read_is_an_overload_and_not_endless_memory(scheme, tmp_path):
    site = Site(scheme, tmp_path, queue=4)
    outbox = site.ready()
    block = np.zeros(1 << 18, np.uint8)
    with pytest.raises(Overloaded, match="does not read"):
        flood(outbox, block)
    site.close()


def flood(outbox, block):
    for number in range(1000):
        outbox.send(Call(number, "m", {}, {"x": block}))


def test_who_sends_while_the_connection_is_made_is_never_told_of_a_full_queue(site):
    for number in range(60 if site.scheme == "ipc" else 10):
        outbox, limit_s = site.outbox(), soon()
        while time.monotonic() < limit_s:
            try:
                outbox.send(Cancel(number, 0))
                break
            except PeerUnreachable:
                pass
        got = site.inbox.receive(soon())
        assert got is not None
        assert got.message == Cancel(number, 0)


def test_a_message_beyond_the_limit_is_refused_by_the_sender(tmp_path):
    site = Site("ipc", tmp_path, max_message_bytes=10_000)
    outbox = site.ready()
    with pytest.raises(WireError, match="larger than"):
        outbox.send(Call(1, "m", {}, {"x": np.zeros(10_001, np.uint8)}))
    site.close()


def test_a_peer_that_sends_too_much_is_cut_off_and_others_are_served(tmp_path):
    site = Site("ipc", tmp_path, max_message_bytes=10_000)
    good = site.ready()
    site.options = {}
    bad = site.ready()
    bad.send(Call(1, "m", {}, {"x": np.zeros(100_000, np.uint8)}))
    wait_for(lambda: bad.breaks > 0)
    good.send(Cancel(1, 1))
    assert site.inbox.receive(soon()).message == Cancel(1, 1)
    site.close()


# Endpoints


@pytest.mark.parametrize(
    "text",
    ["", "ipc", "ipc://", "ipc://relative", "ipc://@abstract", "ipc:///" + "x" * 120, "tcp://1.2.3.4", "tcp://:5",
     "tcp://1.2.3.4:70000", "tcp://1.2.3.4:http", "udp://1.2.3.4:5", "pgm://x"],
)  # fmt: skip
def test_what_is_no_private_endpoint_is_refused(text):
    with pytest.raises(EndpointError):
        Endpoint.parse(text)


def test_an_endpoint_in_use_is_refused_and_its_owner_goes_on(site):
    with pytest.raises(EndpointError, match=r"in use|cannot be listened on"):
        Inbox(site.inbox.endpoint, keyring=site.ring if site.scheme == "tcp" else None)
    outbox = site.ready()
    outbox.send(Cancel(1, 1))
    assert site.inbox.receive(soon()).message == Cancel(1, 1)


def test_an_address_that_is_not_here_is_refused(tmp_path):
    ring = Keyring(tmp_path)
    ring.make()
    with pytest.raises(EndpointError, match="ip address"):
        Inbox("tcp://203.0.113.9:5000", keyring=ring)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o701])
def test_an_ipc_socket_where_others_may_go_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(EndpointError, match="would not be private"):
        Inbox(f"ipc://{tmp_path}/s")


def test_nobody_is_told_to_shut_a_folder_that_others_share(tmp_path):
    tmp_path.chmod(0o1777)  # as /tmp
    with pytest.raises(EndpointError, match="would not be private") as caught:
        Inbox(f"ipc://{tmp_path}/s")
    assert str(tmp_path) not in caught.value.remedy


def test_a_group_may_be_let_in_and_nobody_else(tmp_path):
    tmp_path.chmod(0o750)
    inbox = Inbox(f"ipc://{tmp_path}/s", group=True)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660
    inbox.close()
    tmp_path.chmod(0o755)
    with pytest.raises(EndpointError):
        Inbox(f"ipc://{tmp_path}/s", group=True)


def test_an_ipc_socket_is_for_its_user_alone_and_leaves_nothing(tmp_path):
    tmp_path.chmod(0o700)
    inbox = Inbox(f"ipc://{tmp_path}/s")
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0
    inbox.close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named_with_the_command_that_helps(tmp_path):
    with pytest.raises(EndpointError, match="mkdir -m 700"):
        Inbox(f"ipc://{tmp_path}/none/s")


HOLDER = """
import sys
from edgert.transport.sockets import Inbox
inbox = Inbox(sys.argv[1])
print(inbox.endpoint, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def short_path():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def holder(where):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return process, process.stdout.readline().decode().strip()


def test_a_path_is_held_against_other_processes_and_free_when_its_holder_is_killed(tmp_path):
    tmp_path.chmod(0o700)
    process, where = holder(f"ipc://{tmp_path}/s")
    with process:
        with pytest.raises(EndpointError, match="in use by another process"):
            Inbox(where)
        process.kill()
        process.wait()
        Inbox(where).close()


def test_the_folder_of_a_killed_process_is_removed_by_the_next(short_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    process, _ = holder("ipc://*")
    with process:
        process.kill()
        process.wait()
    (left,) = short_path.iterdir()
    process, where = holder("ipc://*")
    with process:
        assert not left.exists()
        assert where.startswith(f"ipc://{short_path}/")
        process.communicate()
    assert list(short_path.iterdir()) == []


def test_a_temporary_folder_with_a_long_name_is_no_hindrance(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    process, where = holder("ipc://*")
    process.communicate()
    assert where.startswith("ipc:///tmp/")


def test_processes_of_one_system_and_user_have_one_host_id():
    code = "from edgert.transport.sockets import host_id; print(host_id())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == host_id()


def test_an_inbox_that_nobody_holds_is_closed():
    before = len(os.listdir("/proc/self/fd"))
    inbox = Inbox("ipc://*")
    path = Endpoint.parse(inbox.endpoint).path
    del inbox
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before + 6)  # the shared context keeps some
    assert not path.exists()
    assert endpoints.private_folder().exists()


# Keys


def test_tcp_without_keys_is_refused_on_both_ends(tmp_path):
    for attempt in (
        lambda: Inbox("tcp://127.0.0.1:0"),
        lambda: Inbox("tcp://127.0.0.1:0", keyring=Keyring(tmp_path)),
        lambda: Outbox("tcp://127.0.0.1:9"),
        lambda: Outbox("tcp://127.0.0.1:9", keys=KeyPair.random()),
    ):
        with pytest.raises(OptionError):
            attempt()


def test_a_peer_is_known_by_its_key(tcp):
    tcp.ready().send(Cancel(1, 1))
    assert tcp.inbox.receive(soon()).key == tcp.client.public


def test_a_key_that_is_not_allowed_is_told_so_and_others_are_served(tcp):
    stranger = tcp.outbox(keys=KeyPair.random())
    with pytest.raises(PeerRefused, match="edgert keys allow"):
        stranger.ready(soon())
    assert tcp.inbox.refused == 1
    with pytest.raises(PeerRefused):
        stranger.send(Cancel(1, 1))
    tcp.ready().send(Bye("friend", 1))
    assert tcp.inbox.receive(soon()).message == Bye("friend", 1)


def test_a_server_with_another_key_than_it_is_known_by_is_refused(tcp):
    with pytest.raises(PeerRefused):
        tcp.outbox(server_key=KeyPair.random().public).ready(soon())
    assert tcp.inbox.receive(time.monotonic() + 0.05) is None


def test_a_key_counts_from_the_moment_it_is_allowed_until_it_is_removed(tcp):
    late = KeyPair.random()
    tcp.ring.allow("late", late.public)
    tcp.ready(keys=late)
    tcp.ring.remove("late")
    with pytest.raises(PeerRefused):
        tcp.outbox(keys=late).ready(soon())


def test_nobody_at_an_address_is_told_in_time():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    outbox = Outbox(f"tcp://127.0.0.1:{port}", keys=KeyPair.random(), server_key=KeyPair.random().public)
    with pytest.raises(PeerUnreachable, match="nobody answers"):
        outbox.ready(time.monotonic() + 0.2)
    with pytest.raises(PeerUnreachable):
        outbox.send(Cancel(1, 1))
    outbox.close()


def listens(peer):
    """Whether the other end of this has not closed it."""
    try:
        return bool(peer.recv(1 << 10))
    except TimeoutError:
        return True


@pytest.mark.parametrize("hears", [True, False])
def test_what_takes_connections_for_a_peer_that_is_off_is_nobody_and_no_wrong_key(hears):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        outbox = Outbox(f"tcp://127.0.0.1:{proxy.getsockname()[1]}", keys=KeyPair.random(),
                        server_key=KeyPair.random().public)  # fmt: skip
        for _ in range(8):  # the ends of handshakes, and what is made of them
            taken, _ = proxy.accept()
            with taken:
                taken.shutdown(socket.SHUT_WR)  # an end, and no reset
                taken.settimeout(0.01)
                while hears and listens(taken):
                    assert outbox.state in ("connecting", "lost")
            assert outbox.state in ("connecting", "lost")
        with pytest.raises(PeerUnreachable, match="nobody answers"):
            outbox.ready(time.monotonic() + 0.1)
        outbox.close()


def test_who_rings_late_writes_into_nothing_that_was_opened_since(site):
    """Descriptors have small numbers, which are given again: a byte of ours in another's pipe is corrupt data."""
    outbox = site.ready()
    outbox.close()
    pipes = [os.pipe() for _ in range(32)]  # among them the numbers that were just freed
    try:
        outbox.wake()
        outbox.close()
        with contextlib.suppress(Closed):
            outbox.receive(0.0)
        for read, _ in pipes:
            os.set_blocking(read, False)
            with pytest.raises(BlockingIOError):
                os.read(read, 1)
    finally:
        for pipe in pipes:
            for fd in pipe:
                os.close(fd)


def test_an_unencrypted_peer_gets_no_word(tcp):
    with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.linger = 0
        plain.connect(tcp.inbox.endpoint)
        plain.send_multipart(frames.pack(Cancel(1, 1)))
        assert tcp.inbox.receive(time.monotonic() + 0.2) is None
        assert not plain.poll(0)


# Noise


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_random_frames_are_counted_and_dropped(parts):
    inbox = Inbox("ipc://*")
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as noisy:
            noisy.linger = 0
            noisy.connect(inbox.endpoint)
            noisy.send_multipart(parts)
            noisy.send_multipart(frames.pack(Cancel(1, 1)))
            assert inbox.receive(soon()).message == Cancel(1, 1)
            assert inbox.dropped == 1
    finally:
        inbox.close()


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_at_the_port_disturb_nobody(noise_site, chunks):
    site, friend = noise_site
    address, _, port = Endpoint.parse(site.inbox.endpoint).address.rpartition(":")
    with socket.create_connection((address, int(port))) as raw:
        for chunk in chunks:
            try:
                raw.sendall(chunk)
            except OSError:
                break  # it was cut off, as it should be
    friend.send(Cancel(1, 1))
    assert site.inbox.receive(soon()).message == Cancel(1, 1)


@pytest.fixture(scope="module")
def noise_site(tmp_path_factory):
    site = Site("tcp", tmp_path_factory.mktemp("noise"))
    yield site, site.ready()
    site.close()


@pytest.mark.parametrize("foreign", [frames.VERSION + 1, 0])
def test_a_peer_of_another_version_is_told_ours_and_others_are_served(site, foreign):
    """What it says may look like anything but for its first six bytes."""
    stranger, friend = site.ready(), site.ready()
    stranger._socket.send_multipart([b"EDRM" + foreign.to_bytes(2, "little") + b"?", b"more"])
    while not site.inbox.dropped:
        assert site.inbox.receive(time.monotonic() + 0.05) is None
    assert stranger.receive(soon()) == Speaks(frames.VERSION, edgert.__version__)
    friend.send(Cancel(1, 0))
    assert site.inbox.receive(soon()).message == Cancel(1, 0)


def test_a_word_about_the_version_is_not_answered(site):
    """Two ends that each tell the other would never end."""
    stranger = site.ready()
    stranger._socket.send(b"EDRV\x07\x009.9")
    stranger.send(Cancel(1, 0))
    got = site.inbox.receive(soon())
    assert got.message == Cancel(1, 0)
    assert site.inbox.dropped == 1
    site.inbox.answer(got.peer, Bye("inbox", 1))
    assert stranger.receive(soon()) == Bye("inbox", 1)
