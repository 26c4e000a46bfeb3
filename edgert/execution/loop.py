"""One thread in which everything that changes is changed: it receives, does what was posted, and minds its timers."""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from edgert.errors import Closed
from edgert.execution.mail import Mail
from edgert.transport.messages import Message

_log = logging.getLogger(__name__)
_LEAVE_S = 5.0
"""For threads that see to what may block; they end with the process anyway."""
_BREATH_S = 0.05
"""Before what the system refused is tried again."""


class Minder(Protocol):
    """Who owns a loop. Called in it, must not block."""

    def take(self, message: Message) -> None:
        """A message came."""
        ...

    def look(self) -> float | None:
        """See to what nobody reports; the seconds until that is wanted again, None for not before something comes."""
        ...


class Loop:
    """Thread-safe, but for `after`, which belongs to the loop."""

    def __init__(self, mail: Mail, minder: Minder, name: str) -> None:
        """Args:
        mail: whose messages are received.
        minder: told of them; called only once `start` was.
        name: of the threads.
        """
        self.mail = mail
        self._minder, self._name = minder, name
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._workers: list[threading.Thread] = []
        self._closed = False
        self._awaited: set[threading.Event] = set()
        self.ended = threading.Event()
        """Nothing that is posted happens any more."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    def post(self, work: Callable[[], None]) -> None:
        """From any thread: have the loop do something soon."""
        self._posted.put(work)
        if threading.current_thread() is not self._thread:
            self.mail.wake()

    def wait(self, event: threading.Event) -> None:
        """From any other thread: until something posted sets the event, or nothing posted happens any more."""
        self._awaited.add(event)
        if not self.ended.is_set():
            event.wait()
        self._awaited.discard(event)

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        """From the loop: do something later."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), work))

    def apart(self, work: Callable[[], None]) -> None:
        """From the loop: do what may block in a thread of its own.

        Raises:
            RuntimeError: this process may start no more threads.
        """
        thread = threading.Thread(target=work, name=f"{self._name} worker", daemon=True)
        thread.start()
        self._workers = [each for each in self._workers if each.is_alive()]
        self._workers.append(thread)

    def apart_soon(self, work: Callable[[], None]) -> None:
        """As `apart`, but as soon as there may be one more thread."""
        try:
            self.apart(work)
        except RuntimeError as error:
            _log.warning("%s: tried again in %.2f s", error, _BREATH_S)
            self.after(_BREATH_S, lambda: self.apart_soon(work))

    def close(self, last: Callable[[], None]) -> None:
        """End it, after `last` was done in it. Harmless twice."""
        done = threading.Event()

        def work() -> None:
            self._closed = True
            last()
            done.set()

        if self._thread.is_alive():
            self.post(work)
            self.wait(done)
            self._thread.join()
            limit_s = time.monotonic() + _LEAVE_S
            for worker in self._workers:
                worker.join(max(0.0, limit_s - time.monotonic()))

    def _run(self) -> None:
        patience_s: float | None = None
        while not self._closed:
            self._receive(self._patience_s(patience_s))
            while not self._posted.empty():
                self._guard(self._posted.get())
            now_s = time.monotonic()
            while self._timers and self._timers[0][0] <= now_s:
                self._guard(heapq.heappop(self._timers)[2])
            patience_s = self._looked()
        self.mail.close()
        self.ended.set()
        for event in tuple(self._awaited):
            event.set()

    def _receive(self, wait_s: float | None) -> None:
        """Take what comes within that time, and all that is there then."""
        try:
            received = self.mail.receive(wait_s)
            while received is not None:
                self._guard(partial(self._minder.take, received[0]))
                received = self.mail.receive(0.0)
        except Closed:  # by the interpreter, at its end
            self._closed = True
        except Exception:  # noqa: BLE001 - as in `_guard`
            _log.exception("a fault in edgert: the loop of the executors cannot receive; it goes on")
            time.sleep(_BREATH_S)

    def _looked(self) -> float | None:
        """`Minder.look`, guarded."""
        try:
            return self._minder.look()
        except Exception:  # noqa: BLE001 - as in `_guard`
            _log.exception("a fault in edgert: the loop of the executors goes on")
            return _BREATH_S

    def _guard(self, work: Callable[[], None]) -> None:
        """A fault of ours in one place must not end the loop, which all requests wait for."""
        try:
            work()
        except MemoryError as error:
            # Whose answer this was is asked for again when nobody else has it (`Dispatcher`).
            _log.error("no memory is left: the loop of the executors goes on: %s", error)
        except Exception:  # noqa: BLE001 - whatever it is, the other requests must go on
            _log.exception("a fault in edgert: the loop of the executors goes on")

    def _patience_s(self, longest_s: float | None) -> float | None:
        if not self._posted.empty():
            return 0.0
        soonest_s = self._timers[0][0] - time.monotonic() if self._timers else None
        if longest_s is not None:
            soonest_s = longest_s if soonest_s is None else min(soonest_s, longest_s)
        return None if soonest_s is None else max(0.0, soonest_s)
