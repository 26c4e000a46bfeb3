"""One supervised child process: for probing, measuring, compiling and executing, whatever may crash, hang or eat
memory.

The parent holds a `Child` and calls methods of a service object that lives in the child. Messages go over a socket
pair as `wire` bytes. The child is spawned (never forked), in a session of its own, first in line for the kernel's OOM
killer, and it cannot outlive its parent: it holds the read end of a pipe that the parent never writes to, and asks
the kernel for SIGKILL on it, so the parent's death kills it even inside a vendor's library that holds the interpreter
lock.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import IO, Any, Protocol

from edgert import errors
from edgert.errors import ChildDied, ChildError, ChildTimeout, EdgertError, NotEnoughMemory, RunFailed, WireError
from edgert.tensor import Data
from edgert.transport import forked, wire

_log = logging.getLogger(__name__)
_BOOT = (
    "import sys, json; a = json.loads(sys.argv[1]); sys.path[:] = a['path']; "
    "from edgert.transport.child import main; main(a)"
)
START_TIMEOUT_S = 60.0
"""For the interpreter and the service's imports; a cold disk on a small board is slow."""


_MOST_WORDS = 300
"""Of one line of a child's that are kept."""


class Service(Protocol):
    """What lives in the child."""

    def handle(self, method: str, body: Mapping[str, Any], data: Mapping[str, Data]) -> wire.Message:
        """Do one thing. An `EdgertError` goes back to the caller as itself, anything else as `RunFailed`."""
        ...


class Child:
    """A service in a process of its own. Thread-safe: one call at a time."""

    def __init__(self, service: str, *, name: str = "", memory_limit_bytes: int | None = None) -> None:
        """Start it; returns before it is ready (the first call waits for that).

        Args:
            service: 'package.module:Class', made without arguments in the child.
            name: for error messages.
            memory_limit_bytes: address space that it may map beyond which its allocations fail; None for no limit.

        Raises:
            ChildError: the system starts no more processes, or has no more descriptors.
        """
        self.name = name or service
        self._lock = threading.Lock()
        self._ready = False
        self._stderr: deque[str] = deque(maxlen=40)
        self._kills = _kills()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            try:
                self._socket, other = socket.socketpair()
                ours.callback(self._socket.close)
                theirs.callback(other.close)
                lifeline_read, self._lifeline = os.pipe()
                ours.callback(os.close, self._lifeline)
                theirs.callback(os.close, lifeline_read)
                argument = {"fd": other.fileno(), "lifeline": lifeline_read, "service": service, "path": sys.path,
                            "memory_limit_bytes": memory_limit_bytes}  # fmt: skip
                self._process = _spawned(argument, other.fileno(), lifeline_read)
                ours.callback(_abandon, self._process)
                # A vendor's library may write without end: the last lines are kept, for the message of a crash.
                assert self._process.stderr is not None
                self._reader = threading.Thread(
                    target=_drain, args=(self._process.stderr, self._stderr), name=f"stderr of {self.name}", daemon=True
                )
                self._reader.start()
            except (OSError, RuntimeError) as error:  # the latter where there may be no more threads
                raise ChildError(
                    f"{self.name} cannot be started: {getattr(error, 'strerror', '') or error}.",
                    "Raise the limit (ulimit -n, ulimit -u), or close what is open.",
                ) from error
            ours.pop_all()
        _lifelines.add(self._lifeline)
        end = partial(_end, self._process, self._reader, self._socket, self._lifeline)
        self._dropped = weakref.finalize(self, forked.mine(end))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(
        self,
        method: str,
        body: Mapping[str, Any] | None = None,
        data: Mapping[str, Data] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> wire.Message:
        """Have the service do one thing.

        Raises:
            ChildTimeout: no answer within `timeout_s`; the child is killed.
            ChildDied: it exited or was killed; says how, with the last words that it wrote.
            WireError: the request cannot be sent; the child has not seen it.
            EdgertError: whatever the service raised.
        """
        message = wire.encode({"method": method, **({"body": dict(body)} if body else {})}, data)
        with self._lock:
            try:
                if not self._ready:
                    receive(self._socket, time.monotonic() + START_TIMEOUT_S)
                    self._ready = True
                deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
                self._send(message, deadline_s)
                answer, values = receive(self._socket, deadline_s)
            except TimeoutError as error:
                self.kill()
                limit = START_TIMEOUT_S if not self._ready else timeout_s or 0.0
                raise ChildTimeout(
                    f"{self.name}: no answer to {method!r} within {limit:.1f} s; it was killed.", timeout_s=limit
                ) from error
            except (OSError, EOFError) as error:
                raise self._obituary(method) from error
            except BaseException:
                self.kill()  # an answer that nobody waits for would be taken for the next call's
                raise
        if "error" in answer:
            raise errors.from_json(answer["error"])
        return answer.get("body", {}), values

    def kill(self) -> None:
        """SIGKILL; returns when it is gone. Harmless when it is already."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it and release what it held. Harmless when it is gone."""
        self._dropped()

    def ending(self) -> ChildDied:
        """How it ended; waits for that, and kills it when it does not end."""
        return self._obituary("serve")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, message: Sequence[bytes | memoryview], deadline_s: float | None) -> None:
        for piece in wire.pieces(message):
            # A child that reads nothing any more would block a large request for ever.
            self._socket.settimeout(None if deadline_s is None else max(1e-3, deadline_s - time.monotonic()))
            self._socket.sendall(piece)

    def _obituary(self, method: str) -> ChildDied:
        """What is known of the end of the child, which has closed its socket."""
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -signal.SIGKILL
        self._reader.join(timeout=1.0)
        killed_by = -code if code < 0 else None
        how = f"died of {signal.Signals(killed_by).name}" if killed_by else f"exited with status {code}"
        if killed_by == signal.SIGKILL:
            how += _killer(self._kills)
        words = f" Its last words: {' | '.join(list(self._stderr)[-3:])}" if self._stderr else ""
        return ChildDied(
            f"{self.name} {how} during {method!r}.{words}", signal=killed_by, exit_code=None if killed_by else code
        )


def _spawned(argument: Mapping[str, Any], *inherited: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _BOOT, json.dumps(argument)],
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        bufsize=0,  # a buffer has a lock, which the thread that reads holds for ever in a process that is forked
        start_new_session=True,
    )


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """End one that nobody will ever hear."""
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


_lifelines: set[int] = set()
"""Ends that this process holds. One that is forked lets go of them: children end with this process, not with that."""


def _let_go() -> None:
    for lifeline in _lifelines:
        os.close(lifeline)
    _lifelines.clear()


forked.forget(_let_go)


def _kills() -> int | None:
    """How many processes the kernel has ended for want of memory since it started; None where it does not count."""
    with contextlib.suppress(OSError), open("/proc/vmstat", encoding="ascii") as counters:
        for line in counters:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def _killer(before: int | None) -> str:
    """Who sent a SIGKILL that was not ours: the kernel, when it has ended one more process since."""
    now = _kills()
    if before is None or now is None:
        return " (somebody's kill, or the kernel out of memory)"
    return " (the kernel was out of memory)" if now > before else " (somebody killed it)"


def _drain(stream: IO[bytes], last_words: deque[str]) -> None:
    """Read what the child writes to its end. Knows no `Child`, so that one which nobody holds can be collected."""
    with contextlib.suppress(ValueError, OSError):  # closed under our hands
        rest = b""
        while data := stream.read(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            last_words.extend(line.decode(errors="replace").rstrip()[:_MOST_WORDS] for line in lines)
            rest = rest[:_MOST_WORDS]
        if rest:
            last_words.append(rest.decode(errors="replace"))


def _end(process: subprocess.Popen[bytes], reader: threading.Thread, connection: socket.socket, lifeline: int) -> None:
    """End a child and release what its `Child` held: by `close`, or when nobody holds it any more."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    reader.join()
    connection.close()
    if process.stderr is not None:
        process.stderr.close()
    _lifelines.discard(lifeline)
    os.close(lifeline)


def receive(connection: socket.socket, deadline_s: float | None = None) -> wire.Message:
    """One whole message.

    Raises:
        TimeoutError: `time.monotonic()` passed `deadline_s` first.
        EOFError: the other end is gone.
        WireError: what came is no message.
    """
    header_bytes, payload_bytes = wire.sizes(bytes(_exactly(connection, wire.PREFIX.size, deadline_s)))
    header = _exactly(connection, header_bytes, deadline_s)
    return wire.decode(header, _exactly(connection, payload_bytes, deadline_s))


def _exactly(connection: socket.socket, count: int, deadline_s: float | None) -> bytearray:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        if deadline_s is None:
            connection.settimeout(None)
        else:
            connection.settimeout(max(1e-3, deadline_s - time.monotonic()))
        got = connection.recv_into(view)
        if not got:
            raise EOFError("the other end closed the connection")
        view = view[got:]
    return buffer


_inside = False


def inside() -> bool:
    """Whether this process is such a child."""
    return _inside


def main(argument: Mapping[str, Any]) -> None:
    """The child's whole life: ready, then one answer for each request until the parent is gone."""
    import resource  # Linux has it; elsewhere there are no children, and this module still imports

    global _inside  # noqa: PLW0603 - a fact of the process, set once at its start
    _inside = True
    _die_with_parent(argument["lifeline"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here, a core file is not
    if argument["memory_limit_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (argument["memory_limit_bytes"],) * 2)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjustment:
        adjustment.write("1000")  # when memory runs out, the trial dies and not the application
    connection = socket.socket(fileno=argument["fd"])
    module, _, kind = argument["service"].partition(":")
    service: Service = getattr(importlib.import_module(module), kind)()
    _answer(connection, {}, {})
    while True:
        try:
            request, data = receive(connection)
        except EOFError:
            return
        _serve(connection, service, request, data)


def _serve(connection: socket.socket, service: Service, request: Mapping[str, Any], data: Mapping[str, Data]) -> None:
    try:
        body, values = service.handle(request["method"], request.get("body", {}), data)
    except EdgertError as error:
        _answer(connection, {"error": errors.to_json(error)}, {})
    except MemoryError as error:
        shortage = NotEnoughMemory(f"out of memory: {error}.", needed_bytes=None, left_bytes=None)
        _answer(connection, {"error": errors.to_json(shortage)}, {})
    except Exception as error:  # noqa: BLE001 - whatever a vendor's library throws must reach the parent as a message
        failure = RunFailed(f"{type(error).__name__} in {request['method']!r}: {str(error)[:2000]}")
        _answer(connection, {"error": errors.to_json(failure)}, {})
    else:
        _answer(connection, {"body": dict(body)}, values)


def _answer(connection: socket.socket, body: Mapping[str, Any], data: Mapping[str, Data]) -> None:
    try:
        message = wire.encode(body, data)
    except (TypeError, ValueError, WireError) as error:
        message = wire.encode({"error": errors.to_json(RunFailed(f"the answer cannot be sent: {error}."))})
    for piece in wire.pieces(message):
        connection.sendall(piece)


def _die_with_parent(lifeline: int) -> None:
    """Ask the kernel for SIGKILL when the parent's end of the pipe closes, however it closes."""
    import fcntl  # as for resource in `main`

    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    # The pipe may have closed before the kernel was asked.
    os.set_blocking(lifeline, False)
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":
            os._exit(0)
