"""Requests whose message was shown to their executor before the run that makes their values was over.

A message after a run costs what the run threw out of the caches: system calls and all that reads and writes messages,
on both sides. So an executor shows it before (`messages.Ahead`), and the next one, where it watches at that moment
anyway (`attention`), sees in shared memory that the slots are published, and begins. The message itself follows all the
same, for a reader that sleeps, and is passed over by one that has begun (`Arrivals.take_ahead`).

A promise counts only if some slot of it was not published yet when it was read: else its message may have come before
it. A slot that is dropped, since its run failed, never gets the generation that was promised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from edgert.errors import EdgertError
from edgert.execution.arrivals import Arrivals, Job
from edgert.execution.mail import Mail
from edgert.transport.messages import Ahead, Work

_MOST = 64
"""Segments for which one is kept."""


@dataclass(frozen=True, slots=True)
class _Promise:
    """The newest of a segment."""

    work: Work
    published: Callable[[], bool]


class Promises:
    """Belongs to the executor's loop."""

    def __init__(self, mail: Mail, arrivals: Arrivals) -> None:
        """Args:
        mail: with which they come.
        arrivals: that take what came true.
        """
        self._mail, self._arrivals = mail, arrivals
        self._newest: dict[str, _Promise] = {}

    def heard(self, it: Ahead) -> None:
        """One came."""
        work = Work(it.request, it.attempt, it.deadline_s, it.route, it.segment, it.values, it.home)
        with contextlib.suppress(EdgertError):  # what cannot be mapped is told when the message itself comes
            published = self._mail.watch(work)
            if it.values and not published():
                self._newest.pop(it.segment, None)
                self._newest[it.segment] = _Promise(work, published)
                if len(self._newest) > _MOST:
                    self._newest.pop(next(iter(self._newest)))

    def came(self, work: Work) -> None:
        """A message came by itself: there is nothing more to watch for."""
        promise = self._newest.get(work.segment)
        if promise is not None and (promise.work.request, promise.work.attempt) == (work.request, work.attempt):
            del self._newest[work.segment]

    def forget(self, segment: str) -> None:
        """A segment is gone, and with it what was promised to it: that would keep its memory."""
        self._newest.pop(segment, None)

    def is_kept(self, segment: str) -> bool:
        """Whether the values that were promised to a segment are there."""
        promise = self._newest.get(segment)
        return promise is not None and promise.published()

    def kept(self, segment: str) -> Job | None:
        """The request whose values are there, once."""
        if not self.is_kept(segment):
            return None
        return self._arrivals.take_ahead(self._newest.pop(segment).work)
