"""The race between targets, run again while its result could be luck or somebody else's work."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgert.devices.load import ForeignLoad
from edgert.errors import EdgertError
from edgert.measure import Contestant
from edgert.partitioner.race import Outcome, heats, race
from edgert.profile import Target

_log = logging.getLogger(__name__)
_DISTURBED_CORES = 0.1
"""More than that much of one processor taken by others, and a heat counts as disturbed."""
_CHILD_S = 0.5
"""To start a child and import a library in it, about."""


class Heats:
    """One race in up to three heats; each prepares its targets anew, in new children."""

    def __init__(self, runners: Mapping[Target, Contestant], end_s: float, budget_end_s: float) -> None:
        """Args:
        runners: what races.
        end_s: on `time.monotonic`, when the first heat ends at the latest.
        budget_end_s: the same for all further heats.
        """
        self._runners, self._end_s, self._budget_end_s = runners, end_s, budget_end_s
        self._load = ForeignLoad()
        self._foreign_cores: list[float] = []
        self._took_s = 0.0

    def run(self) -> Outcome[Target]:
        """The standings; a target that failed on the way has `Contestant.failure` set."""
        return heats(list(self._runners), self._heat, self._more, self._disturbed)

    def _heat(self, names: Sequence[Target]) -> Outcome[Target]:
        started_s = time.monotonic()
        end_s = self._budget_end_s if self._foreign_cores else self._end_s
        if self._foreign_cores:
            names = [name for name in names if self._renew(self._runners[name])]
        pids = self._pids()
        self._load.start(pids)
        outcome = (
            race(names, lambda name: self._runners[name].visit(), lambda: time.monotonic() < end_s)
            if names
            else Outcome[Target]((), certain=False)
        )
        # What fell in the middle of a heat has rounds, and no chance.
        outcome = replace(outcome, standings=tuple(
            standing for standing in outcome.standings if self._runners[standing.name].failure is None
        ))  # fmt: skip
        self._foreign_cores.append(self._load.cores(pids))
        self._took_s = time.monotonic() - started_s
        if self._disturbed():
            _log.info("timed while other work kept %.1f processors busy", self._foreign_cores[-1])
        _log.debug("heat %d: %s, others used %.2f cores, %.2f s", len(self._foreign_cores),
                   [f"{standing.name} {1e3 * standing.median_s:.3f} ms" for standing in outcome.standings],
                   self._foreign_cores[-1], self._took_s)  # fmt: skip
        return outcome

    def _renew(self, contestant: Contestant) -> bool:
        try:
            contestant.renew()
        except EdgertError as error:
            contestant.failure = error
            return False
        return True

    def _pids(self) -> set[int]:
        pids = {contestant.remote.pid for contestant in self._runners.values()}
        return {pid for pid in pids if pid is not None}

    def _more(self) -> bool:
        """Whether another heat, preparing included, should end within the budget."""
        prepare_s = sum(contestant.runnable.prepare_s for contestant in self._runners.values())
        children = len({contestant.remote for contestant in self._runners.values()})
        return time.monotonic() + self._took_s + prepare_s + children * _CHILD_S < self._budget_end_s

    def _disturbed(self) -> bool:
        return self._foreign_cores[-1] > _DISTURBED_CORES
