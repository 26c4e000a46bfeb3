"""Which models answer: each file of the folder, loaded beside what answers so far and only then put in its place.

A model that does not load takes nobody down: the version that answered goes on, also across a restart, and the state
says why the new one was refused. Work of the loader's thread (`refresh`) and of those that answer (`lend`) meets only
at a lock that is held for a few instructions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from edgert import errors
from edgert.errors import Closed, EdgertError, ModelNotFound, ModelNotServed, OptionError, PrepareRefused
from edgert.graph import Value
from edgert.model import Model
from edgert.serving.folder import Folder, Found, Stamp
from edgert.serving.repository import Repository, Version
from edgert.tensor import Data, numpy_dtype

_log = logging.getLogger(__name__)
Condition: TypeAlias = Literal["loading", "ready", "stale", "refused"]
"""'stale': an older version answers, because the newer was refused."""
_RETRY_S = 5.0
_LONGEST_RETRY_S = 300.0
"""What was refused is tried again when its file changes, and else after this: data beside it may come later, a disk may
get space."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """What one model of the folder is doing."""

    name: str
    condition: Condition
    file: str
    """Name of its file in the folder."""
    version: int | None = None
    """That answers; None when none does."""
    plan: str = ""
    """`Plan.id` of the version that answers."""
    targets: tuple[str, ...] = ()
    """Of that plan."""
    fallbacks: tuple[str, ...] = ()
    """Of that plan."""
    measured: bool = False
    """Whether that plan was timed; not yet, while a better one is looked for in the background."""
    error: Mapping[str, Any] | None = None
    """`errors.to_json` of why the file in the folder does not answer."""
    unproven: str = ""
    """Why the version that answers could not be tried with an input of zeros; '' when it answered one."""
    notes: tuple[str, ...] = ()
    """What an operator should know, such as files that give the same name."""


class Loaded:
    """A version with its model. Lent to requests; closed when it was retired and nobody uses it any more."""

    def __init__(self, version: Version, model: Model) -> None:
        self.version, self.model = version, model
        self.unproven = ""
        self.sample = zeros(model.inputs)
        """An input to try it with; None when nothing is known to fit."""
        self.proof_s = 0.0
        """How long it took to answer that; 0 when it did not."""
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()

    def prove(self) -> None:
        """Have it answer once, so that the first request waits for nothing."""
        if self.sample is None:
            self.unproven = "its inputs' types or shapes are not known before a request"
            return
        started_s = time.monotonic()
        try:
            self.model.run(self.sample)
        except EdgertError as error:
            self.unproven = error.message
        else:
            self.proof_s = time.monotonic() - started_s

    def enter(self) -> bool:
        """Use it; False when it is retired already."""
        with self._lock:
            self._users += not self._retired
            return not self._retired

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._retired and not self._users
        if last:
            self.model.close()

    def retire(self) -> None:
        """Lend it no more; close it when the last user leaves."""
        with self._lock:
            if self._retired:
                return
            self._retired = True
            idle = not self._users
        if idle:
            self.model.close()


@dataclass(slots=True)
class _Entry:
    """What is known of one name."""

    found: Found | None = None
    active: Loaded | None = None
    tried: Stamp | None = None
    """The file that `error` is about."""
    error: EdgertError | None = None
    failures: int = 0
    retry_at_s: float = 0.0
    missing: bool = False
    """Not seen in the last look; it goes when it is not in the next either."""
    notes: tuple[str, ...] = field(default_factory=tuple)


class Roster:
    """The models of a folder, and who of them answers."""

    def __init__(
        self, folder: Folder, repository: Repository, load: Callable[[Path], Model],
        *, now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Args:
        folder: where model files come and go.
        repository: where the versions are kept.
        load: makes a model of a file; raises EdgertError when it cannot.
        now_s: for the retries.
        """
        self._folder, self._repository, self._load, self._now_s = folder, repository, load, now_s
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._closed = False
        self.folder_error: EdgertError | None = None
        """Why the folder cannot be read, if so."""

    def refresh(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Look at the folder once, and do what changed. For one thread only.

        Args:
            stop: asked between models; True ends the work early.

        Returns:
            Whether all is settled: nothing waits for a writer to end.
        """
        try:
            found = self._folder.look()
        except ModelNotFound as error:
            if self.folder_error is None:
                _log.error("%s", error)
            self.folder_error = error
            return True
        self.folder_error = None
        for name in [name for name in self._entries if name not in found]:
            self._miss(name)
        settled = True
        for name, item in found.items():
            if stop():
                return False
            entry = self._entry(name)
            entry.found, entry.missing = item, False
            entry.notes = tuple(f"{file} gives the same name and is not used" for file in item.shadowed)
            settled &= self._attend(name, entry, item)
        return settled

    def forgive(self) -> None:
        """Have the next `refresh` try again what was refused. For the thread of `refresh`."""
        for entry in self._entries.values():
            entry.retry_at_s = 0.0

    @contextmanager
    def lend(self, name: str) -> Iterator[Loaded]:
        """The version of a model that answers now.

        Raises:
            ModelNotServed: there is none; says why, or which there are.
            Closed: after `close`.
        """
        loaded = self._borrow(name)
        try:
            yield loaded
        finally:
            loaded.leave()

    def states(self) -> tuple[ModelState, ...]:
        """Of every model, by name."""
        with self._lock:
            entries = sorted(self._entries.items())
        return tuple(_state(name, entry) for name, entry in entries if entry.found is not None)

    def names(self) -> tuple[str, ...]:
        """Models that answer."""
        with self._lock:
            return tuple(sorted(name for name, entry in self._entries.items() if entry.active is not None))

    def close(self) -> None:
        """Retire all."""
        with self._lock:
            self._closed = True
            loaded = [entry.active for entry in self._entries.values() if entry.active is not None]
            self._entries.clear()
        for each in loaded:
            each.retire()

    def _entry(self, name: str) -> _Entry:
        with self._lock:
            return self._entries.setdefault(name, _Entry())

    def _borrow(self, name: str) -> Loaded:
        while True:
            with self._lock:
                if self._closed:
                    raise Closed("the models were closed.", "Start the daemon again.")
                entry = self._entries.get(name)
                active = entry.active if entry else None
                known = [other for other, each in self._entries.items() if each.active is not None]
            if active is None:
                raise _not_served(name, entry, known)
            if active.enter():
                return active

    def _attend(self, name: str, entry: _Entry, item: Found) -> bool:
        """Load a file if that is due; whether it is settled."""
        if entry.active is None:
            self._revive(name, entry, item)
        if entry.active is not None and entry.active.version.origin == item.stamp:
            entry.error, entry.failures, entry.tried = None, 0, None
            return True
        if not item.rests:
            return False
        if entry.tried == item.stamp and self._now_s() < entry.retry_at_s:
            return True
        if entry.tried != item.stamp:
            entry.failures = 0
        try:
            self._renew(name, entry, item)
        except EdgertError as error:
            entry.tried, entry.error, entry.failures = item.stamp, error, entry.failures + 1
            entry.retry_at_s = self._now_s() + min(_LONGEST_RETRY_S, _RETRY_S * 2 ** (entry.failures - 1))
            still = f"; version {entry.active.version.number} goes on answering" if entry.active else ""
            _log.error("model %s: %s is refused%s: %s", name, item.file.name, still, error)
        return True

    def _revive(self, name: str, entry: _Entry, item: Found) -> None:
        """Have the version answer that did before a restart, whatever the file in the folder is now."""
        version = self._repository.active(name)
        if version is None or entry.tried is not None:
            return
        try:
            self._activate(entry, self._loaded(version))
        except EdgertError as error:
            # If the file is still the same, this is its refusal; else the new one may do better.
            if version.origin == item.stamp:
                entry.tried, entry.error, entry.failures = item.stamp, error, 1
                entry.retry_at_s = self._now_s() + _RETRY_S
            _log.error("model %s: version %d, which answered before, does not load: %s", name, version.number, error)

    def _renew(self, name: str, entry: _Entry, item: Found) -> None:
        version = self._repository.take(name, item.file)
        if entry.active is not None and version.number == entry.active.version.number:
            # The same content with other times: it answers already.
            entry.active.version = version
            return
        try:
            loaded = self._loaded(version)
        except EdgertError:
            active = self._repository.active(name)
            if active is None or active.number != version.number:
                self._repository.drop(version)
            raise
        try:
            self._repository.make_active(version)
        except EdgertError:
            loaded.retire()
            raise
        self._activate(entry, loaded)

    def _loaded(self, version: Version) -> Loaded:
        started_s = self._now_s()
        loaded = Loaded(version, self._loaded_model(version))
        loaded.prove()
        targets = ", ".join(dict.fromkeys(map(str, loaded.model.plan.targets)))
        _log.info("model %s: version %d answers on %s, after %.2f s", version.model, version.number, targets,
                  self._now_s() - started_s)  # fmt: skip
        if loaded.unproven:
            _log.warning("model %s: not tried with zeros: %s", version.model, loaded.unproven)
        return loaded

    def _loaded_model(self, version: Version) -> Model:
        try:
            return self._load(version.path)
        except EdgertError:
            raise
        except Exception as error:  # a fault of ours, or of a library: this model is refused, and others are loaded
            _log.exception("model %s: an unexpected error", version.model)
            raise PrepareRefused(
                f"{version.path.name}: {type(error).__name__}: {error}.", "The log has its traceback.", target=""
            ) from error

    def _activate(self, entry: _Entry, loaded: Loaded) -> None:
        with self._lock:
            closed, old = self._closed, entry.active
            if not closed:
                entry.active = loaded
        entry.error, entry.failures, entry.tried = None, 0, None
        for each in (loaded if closed else None, old):
            if each is not None:
                each.retire()

    def _miss(self, name: str) -> None:
        """A file that is gone in two looks is gone on purpose; in one, it may be about to be replaced."""
        entry = self._entry(name)
        if not entry.missing:
            entry.missing = True
            return
        with self._lock:
            del self._entries[name]
        if entry.active is not None:
            entry.active.retire()
        self._repository.forget(name)
        _log.info("model %s: its file is gone, so it answers no more", name)


def _state(name: str, entry: _Entry) -> ModelState:
    active, error = entry.active, entry.error
    condition: Condition = "ready" if active and not error else "stale" if active else "refused" if error else "loading"
    file = entry.found.file.name if entry.found else ""
    told = errors.to_json(error) if error else None
    if active is None:
        return ModelState(name, condition, file, error=told, notes=entry.notes)
    try:
        plan = active.model.plan
    except Closed:  # it is being replaced
        return ModelState(name, "loading", file, error=told, notes=entry.notes)
    targets, fallbacks = tuple(map(str, plan.targets)), tuple(map(str, plan.fallbacks))
    return ModelState(
        name, condition, file, active.version.number, plan.id, targets, fallbacks, plan.measured_s > 0, told,
        active.unproven, entry.notes,
    )  # fmt: skip


def _not_served(name: str, entry: _Entry | None, known: list[str]) -> ModelNotServed:
    if entry is None or entry.found is None:
        return ModelNotServed(f"no model {name!r} is served here.", f"Served: {', '.join(sorted(known)) or 'none'}.")
    if entry.error is not None:
        return ModelNotServed(f"model {name!r} does not load: {entry.error.message}", entry.error.remedy)
    return ModelNotServed(f"model {name!r} is not loaded yet.", "Ask again in a moment.")


def zeros(inputs: tuple[Value, ...]) -> dict[str, Data] | None:
    """An input of zeros (empty texts), free dimensions 1; None when the model does not say enough for that."""
    sample: dict[str, Data] = {}
    for value in inputs:
        if value.kind != "tensor" or value.dtype is None or value.shape is None:
            return None
        try:
            dtype = numpy_dtype(value.dtype)
        except EdgertError as error:
            if isinstance(error, OptionError):
                return None
            raise
        array = np.zeros([size if isinstance(size, int) else 1 for size in value.shape], dtype)
        if value.dtype == "string":
            array[...] = ""
        sample[value.name] = array
    return sample
