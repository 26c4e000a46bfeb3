"""A request under way, and the future that its caller holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from edgert.errors import EdgertError
from edgert.execution.member import Member
from edgert.execution.ways import Way
from edgert.tensor import Data
from edgert.transport import forked

Answer = TypeVar("Answer")
Stand: TypeAlias = Literal["waiting", "flying", "reserve", "over"]
_callbacks = ThreadPoolExecutor(1, thread_name_prefix="edgert callbacks")
_called = False
"""Whether its thread runs."""


def _call_back() -> None:
    """Start the thread, so that what is to be called later does not depend on whether there may be one more then.

    Raises:
        RuntimeError: this process may start no more threads.
    """
    global _called  # noqa: PLW0603 - one a process is the point
    if not _called:
        _callbacks.submit(_nothing)
        _called = True


def _forget() -> None:
    """In a process that was forked: the thread is its parent's."""
    global _callbacks, _called
    _callbacks, _called = ThreadPoolExecutor(1, thread_name_prefix="edgert callbacks"), False


forked.forget(_forget)


def _nothing() -> None:
    """In place of what is over."""


class Promise(Future[Answer]):
    """A future that can be cancelled until it is answered, and whose callbacks hold up no other request."""

    def __init__(self, called_off: Callable[[], None]) -> None:
        super().__init__()
        self._called_off = called_off

    def cancel(self) -> bool:
        """Call the request off, wherever it is; False when it was answered already."""
        cancelled = super().cancel()
        if cancelled:
            self._called_off()
        return cancelled

    def resolve(self, make: Callable[[], Answer]) -> None:
        """End it with what `make` makes, or raises, unless it was called off."""
        if not self.set_running_or_notify_cancel():
            return
        try:
            self.set_result(make())
        except Exception as error:  # noqa: BLE001 - `make` is the caller's, and its future must end in any case
            self.set_exception(error)

    def let_go(self) -> None:
        """The request is over: hold nothing of it any more, however long the caller keeps this."""
        self._called_off = _nothing

    def add_done_callback(self, fn: Callable[[Future[Answer]], object]) -> None:
        """As `Future.add_done_callback`; runs in a thread of edgert's that answers nothing else.

        Raises:
            RuntimeError: this process may start no more threads.
        """
        _call_back()
        super().add_done_callback(lambda future: _callbacks.submit(fn, future))


@dataclass(slots=True, eq=False)
class Flight:
    """Belongs to the fleet's loop."""

    number: int
    inputs: Mapping[str, Data]
    promise: Promise[Any] | None
    """None for a trial, whose answer goes to nobody."""
    finish: Callable[..., Any]
    """Makes the caller's result of a `Made`."""
    priority: int = 0
    deadline_s: float | None = None
    """On `time.monotonic()`."""
    given_s: float = 0.0
    """Seconds that the caller gave it; 0 when it has no deadline."""
    started_s: float = field(default_factory=time.monotonic)
    attempt: int = -1
    stand: Stand = "waiting"
    way: Way | None = None
    chosen: tuple[Member, ...] = ()
    route: int = 0
    sent_s: float = 0.0
    patience_s: float = 0.0
    """An answer to this attempt that took longer comes no more."""
    missed: int = 0
    """Looks in a row that found no executor at work on anything."""
    outputs: dict[str, Data] = field(default_factory=dict)
    tried: list[Way] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why earlier attempts gave no answer."""
    errors: list[tuple[Way, tuple[Member, ...], EdgertError]] = field(default_factory=list)
    """Ways that failed on it while their executors lived, and what they said."""
    fatal: bool = False
    """Whether an executor ended, or was given up, while it had this: no other one is tried on it."""
    trial: Member | None = None
    """The member that this is a trial of."""

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline_s is not None and time.monotonic() > self.deadline_s

    @property
    def over(self) -> bool:
        return self.stand == "over"
