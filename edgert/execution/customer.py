"""Who uses executors, as their fleet sees it."""

from __future__ import annotations

from typing import Protocol

from edgert.errors import EdgertError
from edgert.execution.events import EventKind
from edgert.execution.member import Member
from edgert.transport.messages import Done, Failed


class Customer(Protocol):
    """Who uses members: a pipeline. Called in the loop, must not block."""

    def ready(self, member: Member, name: str) -> None:
        """A segment was prepared there."""
        ...

    def refused(self, member: Member, name: str, error: EdgertError) -> None:
        """A segment will not be prepared there."""
        ...

    def lost(self, member: Member, kind: EventKind, reason: str) -> None:
        """The member is gone, with all that it had prepared and taken."""
        ...

    def done(self, answer: Done) -> None:
        """A part of an answer to one of its requests."""
        ...

    def failed(self, answer: Failed) -> None:
        """One of its requests failed at an executor that lives."""
        ...

    def garbled(self, segment: str, reason: str) -> None:
        """Whoever runs that segment sent what makes no sense."""
        ...
