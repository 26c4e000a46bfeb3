"""What happened to executors and devices: kept, logged, and told to whoever listens."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

_log = logging.getLogger(__name__)
EventKind: TypeAlias = Literal[
    "started", "ready", "lost", "hung", "stopped", "garbage", "refused", "degraded", "restored", "drift", "drained"
]
_QUIET = frozenset({"started", "ready", "restored", "drained"})
"""Good news: logged at INFO, the rest at WARNING."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    at_s: float
    """`time.time()`, for people; order is that of the log."""
    kind: EventKind
    device: str
    """Device id; '' when it concerns a whole plan."""
    model: str
    """File name of the model; '' when it concerns an executor that several models share."""
    detail: str
    """What was seen, with numbers."""

    def __str__(self) -> str:
        return f"{self.kind} {self.device or self.model}: {self.detail}"


class Events:
    """The last events, oldest first. Thread-safe."""

    def __init__(self, most: int = 1000) -> None:
        self._kept: deque[Event] = deque(maxlen=most)
        self._listeners: list[Callable[[Event], None]] = []
        self._lock = threading.Lock()

    def add(self, kind: EventKind, detail: str, *, device: str = "", model: str = "") -> None:
        """Keep it, log it, tell it. A listener that raises is logged and does no harm."""
        event = Event(time.time(), kind, device, model, detail)
        with self._lock:
            self._kept.append(event)
            listeners = tuple(self._listeners)
        _log.log(logging.INFO if kind in _QUIET else logging.WARNING, "%s", event)
        for listener in listeners:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - the user's code; what it raises must not stop recovery
                _log.exception("a listener for events failed at %s", event)

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with every event from now on, in edgert's own thread: it must return at once.

        Returns:
            What ends it.
        """
        with self._lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    def __call__(self) -> tuple[Event, ...]:
        """All that are kept."""
        with self._lock:
            return tuple(self._kept)
