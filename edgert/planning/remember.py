"""Plans and profiles on disk, keyed by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgert import store
from edgert.errors import CacheUnwritable, UnknownTarget
from edgert.execution.segments import is_at_hand
from edgert.machine import Machine
from edgert.plan import Objective, Plan, Tolerance
from edgert.profile import Profile, Row, Target

_log = logging.getLogger(__name__)
_FORMAT = 3
"""Raised when what is measured or how it is judged changes: older entries are then not found."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for, as far as it decides the plan."""

    objective: Objective = "latency"
    precision: str = "own"
    tolerance: Tolerance = field(default_factory=Tolerance)
    targets: tuple[str, ...] | None = None
    samples: str = ""
    """Digest of the user's samples, or '' for synthesised ones."""
    memory_limit_bytes: int = 0
    """What the process may hold resident, everything counted; 0 for no limit."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The cache entries of one model on one machine."""

    folder: Path | None
    """None: remember nothing."""
    model: str
    """Digest of the model file."""
    machine: Machine

    def compiled(self) -> Path | None:
        """Where backends may keep what they compiled from this model."""
        if self.folder is None:
            return None
        path = self.folder / "compiled" / self.model[:16]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.warning("cache folder %s cannot be written (%s): compiled models are not kept", path, error)
            return None
        return path

    def plan(self, wish: Wish, budget_s: float = 0.0) -> Plan | None:
        """The plan that was made for this wish, with the same versions of everything.

        One that left candidates untried serves only who has no more time to spend than it had.
        """
        path = self._path("plans", wish)
        content = store.read_or_drop(path) if path else None
        if content is None or path is None:
            return None
        try:
            plan = Plan.from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError, UnknownTarget) as error:
            _log.warning("cached plan %s is of another form (%s): measuring again", path, error)
            return None
        compiled = self.compiled()
        if plan.tidied and (compiled is None or not is_at_hand(plan, compiled)):
            _log.warning("what plan %s cuts its segments from is gone: measuring again", plan.id)
            return None
        return plan if plan.complete or plan.budget_s >= budget_s else None

    def keep_plan(self, wish: Wish, plan: Plan) -> None:
        self._write(self._path("plans", wish), plan.to_json())

    def forget_plan(self, wish: Wish) -> None:
        """The next one who wishes the same gets a plan that is made then."""
        path = self._path("plans", wish)
        if path is not None:
            path.unlink(missing_ok=True)

    def rows(self, samples: str) -> Mapping[Target, Row]:
        """What is known of targets, measured with the same versions."""
        path = self._path("profiles", samples)
        content = store.read_or_drop(path) if path else None
        if content is None:
            return {}
        try:
            return {row.target: row for row in Profile.from_json(content).rows}
        except (KeyError, TypeError, ValueError, AttributeError, UnknownTarget) as error:
            _log.warning("cached profile %s is of another form (%s): measuring again", path, error)
            return {}

    def keep_rows(self, samples: str, reference: str, rows: Sequence[Row]) -> None:
        """Add rows to what is known; newer ones replace older ones of the same target."""
        path = self._path("profiles", samples)
        known = {**self.rows(samples), **{row.target: row for row in rows if row.outcome != "untried"}}
        profile = Profile(
            self.model,
            self.machine.fingerprint,
            self.versions(),
            samples or "synthesised:0",
            reference,
            tuple(known.values()),
        )
        self._write(path, profile.to_json())

    def versions(self) -> dict[str, str]:
        """Backend -> version, of those that are usable."""
        return {backend.name: backend.version for backend in self.machine.backends if backend.usable}

    def _path(self, kind: str, wish: Wish | str) -> Path | None:
        if self.folder is None:
            return None
        asked = asdict(wish) if isinstance(wish, Wish) else wish
        health = [(reach.backend, reach.device, reach.variant, reach.health) for reach in self.machine.reaches]
        key = [_FORMAT, self.machine.fingerprint, self.versions(), sorted(health), asked]
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / kind / self.model[:16] / f"{name}.json"

    def _write(self, path: Path | None, content: Mapping[str, object]) -> None:
        if path is None:
            return
        try:
            store.write_json(path, content)
        except CacheUnwritable as error:
            # The folder could be written when this began: the answer is there, and only the memory of it is lost.
            _log.warning("%s The plan will be measured again next time.", error.message)
