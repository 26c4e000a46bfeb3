"""What a planning knows once whole models were tried: where the search for splits begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgert.formats import ModelFile
from edgert.measure import Contestant
from edgert.planning.reference import Checker, Reference
from edgert.planning.remember import Memory, Wish
from edgert.planning.trials import Course, Trial, Trials
from edgert.profile import Target


class Work(Protocol):
    """What of an `Assignment` counts here."""

    @property
    def file(self) -> ModelFile: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def wish(self) -> Wish: ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What a planning knows once whole models were tried."""

    work: Work
    course: Course
    tried: Trials
    trials: Sequence[Trial]
    """Checked, and raced."""
    reference: Reference
    checker: Checker
    say: Callable[[str], None]

    @property
    def targets(self) -> list[Target]:
        """All that were tried."""
        return [trial.row.target for trial in self.trials]

    @property
    def certain(self) -> bool:
        """Whether the reference is one, and undisputed."""
        return bool(self.reference.name) and not self.reference.disputed

    @property
    def whole(self) -> dict[Target, Contestant]:
        """Targets that ran the whole model right, ready to be timed."""
        return {
            trial.row.target: trial.contestant
            for trial in self.trials
            if trial.contestant is not None and trial.contestant.failure is None
        }
