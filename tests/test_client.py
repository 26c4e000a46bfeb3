"""A daemon in a process of its own, and its clients: `edgert.connect`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgert
from edgert.client import _own_folder
from edgert.data import path as data
from edgert.errors import (
    Closed,
    DeadlineExceeded,
    DtypeMismatch,
    EndpointError,
    ModelNotServed,
    OptionError,
    PeerUnreachable,
    ShapeMismatch,
    UnknownInput,
    VersionMismatch,
)  # fmt: skip
from edgert.transport import frames
from edgert.transport.messages import Answer, Hello
from edgert.transport.sockets import Inbox, Outbox
from tests.serving.conftest import put

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the daemon is for Linux")
X = np.zeros((1, 8, 8, 1), np.int8)
AS_VERSION = """
import edgert
from edgert.transport import frames
frames.VERSION, frames._OURS = {0}, frames._START.pack(b"EDRM", {0})
from edgert.cli import main
main()
"""
"""A program that speaks another version of the messages, as one of another release does."""


class Daemon:
    """`edgert daemon` as an operator starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "models"
        self.folder.mkdir()
        run = folder / "run"
        run.mkdir(mode=0o700)
        self.endpoint = f"ipc://{run}/edgert.sock"
        self.log, self.printed = folder / "log", folder / "printed"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, program: str = "from edgert.cli import main; main()", **environment: str) -> None:
        command = [sys.executable, "-c", program, "daemon", self.folder, "--endpoint", self.endpoint, *options]
        with self.log.open("ab") as log, self.printed.open("ab") as printed:
            self.process = subprocess.Popen(command, stdout=printed, stderr=log, env=os.environ | environment)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def until(self, text: str) -> None:
        """Wait for a line of the log."""
        limit_s = time.monotonic() + 60
        while text not in self.log.read_text():
            assert time.monotonic() < limit_s, self.log.read_text()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that serves a model, for tests that leave it as it is."""
    pytest.importorskip("ai_edge_litert", reason="the model is run by LiteRT")
    made = Daemon(tmp_path_factory.mktemp("daemon"))
    put("digits_i8.tflite", made.folder, "digits.tflite")
    made.start()
    yield made
    assert made.process is not None
    if made.process.poll() is None:
        made.end()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Daemon]:
    """One that the test starts and ends."""
    pytest.importorskip("ai_edge_litert", reason="the model is run by LiteRT")
    made = Daemon(tmp_path)
    put("digits_i8.tflite", made.folder, "digits.tflite")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGKILL)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[edgert.Client]:
    with edgert.connect(daemon.endpoint, timeout_s=60) as made:
        yield made


def test_a_result_is_that_of_the_model_itself_with_its_receipt(client: edgert.Client) -> None:
    image = np.random.default_rng(0).integers(-128, 127, X.shape, np.int8)
    with edgert.load(data("digits_i8.tflite"), targets=["litert@cpu:0"], budget_s=0.2) as model:
        wanted = model.run(image)
    got = client.run("digits", image)
    np.testing.assert_array_equal(got["probabilities"], wanted["probabilities"])
    assert got.receipt.targets[0].backend == "litert"
    got["probabilities"][0, 0] = 1  # the arrays are the caller's


def test_models_are_listed_and_described(client: edgert.Client) -> None:
    assert client.models() == ("digits",)
    model = client.model("digits")
    assert [str(value) for value in (*model.inputs, *model.outputs)] == [
        "image: int8 1x8x8x1", "probabilities: int8 1x10"
    ]  # fmt: skip
    assert model.run([X.tolist()]).receipt.degraded is False  # by position, from a list


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        (X[:, :2], ShapeMismatch),
        (X.astype(np.float32), DtypeMismatch),
        ({"picture": X}, UnknownInput),
    ],
)
def test_wrong_inputs_are_told_before_they_are_sent(client: edgert.Client, inputs: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        client.submit("digits", inputs)


def test_an_unknown_model_is_told(client: edgert.Client) -> None:
    client.model("digits")  # it has started
    with pytest.raises(ModelNotServed, match="Served: digits"):
        client.run("digit", X)


def test_many_threads_share_a_client(client: edgert.Client) -> None:
    model = client.model("digits")
    images = np.random.default_rng(1).integers(-128, 127, (8, *X.shape), np.int8)
    wanted = [model.run(image)["probabilities"] for image in images]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(20):
            if not np.array_equal(model.run(images[number])["probabilities"], wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_status_counts_and_says_what_runs_where(client: edgert.Client) -> None:
    client.run("digits", X)
    status = client.status()
    assert (status["state"], status["folder_error"]) == ("ready", None)
    assert status["models"]["digits"]["targets"][0].startswith("litert@cpu:0/i8")
    assert status["requests"]["answered"] >= 1


def test_what_is_no_call_is_dropped_and_the_next_is_answered(daemon: Daemon, client: edgert.Client) -> None:
    before = client.status()["malformed"]
    stranger = Outbox(daemon.endpoint)
    stranger.ready(time.monotonic() + 30)
    stranger._socket.send_multipart([b"EDRM", b"\0" * 100])
    for _ in range(300):
        stranger.send(Hello("somebody", "", 1, "here", 1))
    while client.status()["malformed"] < before + 301:
        pass
    stranger.close()
    assert daemon.log.read_text().count("which is no call") <= 100  # no flood of it fills the disk
    assert client.run("digits", X).receipt.degraded is False


def test_a_second_daemon_does_not_take_the_place_of_the_first(daemon: Daemon, client: edgert.Client) -> None:
    command = ["-c", "from edgert.cli import main; main()", "daemon", str(daemon.folder), "--endpoint", daemon.endpoint]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "in use" in done.stderr
    assert client.run("digits", X)["probabilities"].shape == (1, 10)


def test_nobody_there_is_told_in_time(tmp_path: Path) -> None:
    with pytest.raises(PeerUnreachable, match="systemctl status edgert"):
        edgert.connect(f"ipc://{tmp_path}/nobody.sock", timeout_s=0.2)


def test_a_daemon_that_does_not_answer_is_told_in_time(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    silent = Inbox(f"ipc://{tmp_path}/silent.sock")
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
        edgert.connect(silent.endpoint, timeout_s=0.5)
    silent.close()


@pytest.mark.parametrize(("theirs", "older"), [(frames.VERSION + 1, "the edgert here"), (1, "the edgert at ipc:")])
def test_a_daemon_of_another_version_says_so_at_once_and_which_end_to_upgrade(
    own: Daemon, theirs: int, older: str
) -> None:
    own.start(program=AS_VERSION.format(theirs))
    with pytest.raises(
        VersionMismatch, match=f"version {theirs} .* version {frames.VERSION} .*Upgrade {older}"
    ) as told:
        edgert.connect(own.endpoint, timeout_s=600)  # beyond the limit of the test
    assert (told.value.ours, told.value.theirs, told.value.endpoint) == (frames.VERSION, theirs, own.endpoint)
    assert f"speaks version {frames.VERSION}" in own.log.read_text()


def test_a_client_of_another_version_disturbs_nobody_and_reads_why(daemon: Daemon, client: edgert.Client) -> None:
    program = AS_VERSION.format(frames.VERSION + 3).replace("main()", f"edgert.connect({daemon.endpoint!r})")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"version {frames.VERSION} of edgert's messages (edgert {edgert.__version__})" in done.stderr
    assert f"Upgrade the edgert at {daemon.endpoint}" in done.stderr
    assert client.run("digits", X).receipt.degraded is False


def test_an_answer_that_is_no_result_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    liar = Inbox(f"ipc://{tmp_path}/liar.sock")

    def lie() -> None:
        while (got := liar.receive(time.monotonic() + 30)) is not None:
            liar.answer(got.peer, Answer(got.message.request, {"version": "x"}))  # type: ignore[union-attr]

    thread = threading.Thread(target=lie, daemon=True)
    thread.start()
    with edgert.Client(liar.endpoint, timeout_s=30) as client, pytest.raises(edgert.errors.WireError):
        client.run("digits", X)
    liar.wake()
    thread.join()
    liar.close()


@pytest.mark.parametrize("endpoint", ["edgert.sock", "http://here", "ipc://relative"])
def test_what_is_no_endpoint_is_told(endpoint: str) -> None:
    with pytest.raises(EndpointError):
        edgert.connect(endpoint)


@pytest.mark.parametrize("squat", ["another user's", "a link", "open to others", "free"])
def test_nobody_can_listen_in_the_place_of_this_users_daemon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, squat: str
) -> None:
    """Where there is no XDG_RUNTIME_DIR the endpoint is in /tmp, where everybody may make folders."""
    user = os.getuid() if squat != "another user's" else os.getuid() + 1
    place = tmp_path / f"edgert-{user}"
    if squat == "a link":
        place.symlink_to(tmp_path)
    elif squat != "free":
        place.mkdir()
        place.chmod(0o777 if squat == "open to others" else 0o755)
    monkeypatch.setattr("os.getuid", lambda: user)
    if squat != "free":
        with pytest.raises(EndpointError, match="not a folder of this user alone"):
            _own_folder(str(place))
        return
    assert _own_folder(str(place)) == str(place)
    assert place.stat().st_mode & 0o777 == 0o700


def test_tcp_is_not_used_without_keys() -> None:
    with pytest.raises(OptionError, match="keys"):
        edgert.connect("tcp://127.0.0.1:5599")


def test_a_closed_client_says_so(daemon: Daemon) -> None:
    client = edgert.connect(daemon.endpoint, timeout_s=60)
    client.close()
    client.close()
    with pytest.raises(Closed):
        client.run("digits", X)


def test_a_killed_daemon_ends_what_it_had_and_is_found_again(own: Daemon) -> None:
    own.start()
    with edgert.connect(own.endpoint, timeout_s=60) as client:
        before = client.run("digits", X)["probabilities"]
        assert own.process is not None
        os.kill(own.process.pid, signal.SIGSTOP)  # it holds the request for good, once all its threads have stopped
        os.waitid(os.P_PID, own.process.pid, os.WSTOPPED | os.WNOWAIT)
        waiting = client.submit("digits", X)
        own.end(signal.SIGKILL)
        with pytest.raises(PeerUnreachable, match="went away"):
            waiting.result(timeout=60)
        later = client.submit("digits", X)  # waits for the next one
        own.start()
        np.testing.assert_array_equal(later.result(timeout=60)["probabilities"], before)


def test_an_orderly_end_answers_what_was_taken_and_exits_with_zero(own: Daemon) -> None:
    own.start()
    with edgert.connect(own.endpoint, timeout_s=60) as client:
        client.model("digits")
        waiting = [client.submit("digits", X, timeout_s=5) for _ in range(40)]
        code = own.end()
        outcomes = [future.exception(timeout=60) for future in waiting]
    assert code == 0
    # What was not taken any more waited for a next daemon, which never came.
    assert {type(error) for error in outcomes} <= {type(None), Closed, PeerUnreachable, edgert.errors.Overloaded}
    assert not any("went away" in str(error) for error in outcomes)
    assert own.printed.read_bytes() == b""
    assert "unanswered" not in own.log.read_text()


def test_a_restart_costs_its_clients_no_request(own: Daemon) -> None:
    own.start()
    errors: list[BaseException | None] = []
    over = threading.Event()
    with edgert.connect(own.endpoint, timeout_s=60) as client, edgert.connect(own.endpoint, timeout_s=60) as other:

        def ask(each: edgert.Client) -> None:
            while not over.is_set():
                errors.append(each.submit("digits", X).exception())

        threads = [threading.Thread(target=ask, args=(each,)) for each in (client, client, other)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            before = len(errors)
            while len(errors) < before + 20:
                time.sleep(0.01)
            assert own.end() == 0
            own.start()
        while len(errors) < before + 60:
            time.sleep(0.01)
        over.set()
        for thread in threads:
            thread.join()
    assert [error for error in errors if error is not None] == []


def test_a_hangup_tries_again_what_was_refused(own: Daemon) -> None:
    (own.folder / "broken.tflite").write_bytes(b"\0\0\0\0TFL3 and nothing more")
    own.start()
    own.until("ready at")
    own.until("broken.tflite is refused")
    refused = own.log.read_text().count("broken.tflite is refused")
    assert own.process is not None
    os.kill(own.process.pid, signal.SIGHUP)
    limit_s = time.monotonic() + 60
    while own.log.read_text().count("broken.tflite is refused") == refused:
        assert time.monotonic() < limit_s
        time.sleep(0.02)


def test_systemd_is_told_when_it_is_ready_alive_and_stopping(own: Daemon, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        own.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="600000")
        told = ""
        while "WATCHDOG=1" not in told:
            told += manager.recv(4096).decode() + "\n"
        assert told.index("READY=1") < told.index("WATCHDOG=1")
        own.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        while "STOPPING=1" not in told:
            told += manager.recv(4096).decode() + "\n"


def test_a_folder_that_is_not_there_is_told(own: Daemon) -> None:
    own.folder.rename(own.folder.with_name("elsewhere"))
    own.start()
    assert own.process is not None
    assert own.process.wait(timeout=60) == 1
    assert "is no folder" in own.log.read_text()
