"""The daemon: a folder of models that answers over ZeroMQ until it is told to stop.

Threads: one watches the folder and loads, one reads the socket, several answer, one keeps the pulse (`pulse`).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import edgert
from edgert import errors, store
from edgert.errors import CacheUnwritable, OptionError
from edgert.model import Model
from edgert.serving.folder import Folder
from edgert.serving.pulse import Pulse
from edgert.serving.repository import Repository
from edgert.serving.roster import Roster
from edgert.serving.service import Limits, Service
from edgert.serving.zmq import FLUSH_S, Front
from edgert.transport import contexts, notify
from edgert.transport.keys import Keyring

__all__ = ["Daemon", "Settings", "serve"]

_log = logging.getLogger(__name__)
_LOOK_S = 0.5
"""Between two looks at the folder."""
_FIRST_LOOKS_S = 30.0
"""How long the start waits for files that somebody is writing."""
_LOAD_LIMIT_S = 180
"""What systemd is asked for before each model at the start: planning a large one takes time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve a folder."""

    folder: Path
    """Of model files: .onnx, .tflite, .edgert."""
    endpoint: str
    state: Path | None = None
    """Where versions are kept; None for a folder in the cache."""
    group: bool = False
    """Whether members of the endpoint's folder's group may connect."""
    budget_s: float = 0.0
    """For planning each model, as for `edgert.load`: 0 answers at once and looks for better in the background."""
    drain_s: float = 20.0
    """How long requests in flight may take when the daemon is told to stop."""
    limits: Limits = field(default_factory=Limits)
    keyring: Keyring | None = None
    """For tcp."""


def serve(settings: Settings) -> bool:
    """Run a daemon until SIGTERM or SIGINT; SIGHUP looks at everything that was refused again.

    Returns:
        Whether every request that was taken got its answer.

    Raises:
        EndpointError, OptionError, ModelNotFound: it cannot start.
    """
    stop, again = threading.Event(), threading.Event()

    def on_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    def on_hangup(_number: int, _frame: FrameType | None) -> None:
        again.set()

    with ExitStack() as handlers:
        for number, handler in ((signal.SIGTERM, on_stop), (signal.SIGINT, on_stop), (signal.SIGHUP, on_hangup)):
            handlers.callback(signal.signal, number, signal.signal(number, handler))
        daemon = Daemon(settings, again)
        try:
            daemon.start(stop)
            stop.wait()
        finally:
            done = daemon.stop()
            contexts.flush(FLUSH_S)
    return done


class Daemon:
    """A folder's models behind a socket."""

    def __init__(self, settings: Settings, again: threading.Event | None = None) -> None:
        """Listen. Errors as for `serve`.

        Args:
            settings: what to serve, and where.
            again: set by others to have everything that was refused tried again.
        """
        self.settings = settings
        self._started_s = time.monotonic()
        self._again = again or threading.Event()
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._close = ExitStack()
        self.state = "starting"
        if not settings.folder.is_dir():
            raise OptionError(f"{settings.folder} is no folder.", "Make it, and put models into it.")
        try:
            self._cache = self._cache_folder()
            self._roster = Roster(Folder(settings.folder), self._repository(), self._load)
            self._close.callback(self._roster.close)
            self._service = Service(self._roster, settings.limits)
            self._close.callback(self._service.close)
            self._front = Front(
                settings.endpoint, self._service, self.status, group=settings.group, keyring=settings.keyring
            )
            self._close.callback(self._front.close)
            self.pulse = Pulse(self._front.endpoint, self._service, notify.watchdog_s(), settings.keyring)
            self._close.callback(self.pulse.close)
        except BaseException:
            self._close.close()
            raise
        self.endpoint = self._front.endpoint
        """Where it listens."""
        self._loader = threading.Thread(target=self._watch, name="edgert loader", daemon=True)

    def start(self, stop: threading.Event) -> None:
        """Load what is in the folder, then tell that this is ready; `stop` ends it early."""
        self._front.start()
        self._loader.start()
        while not self._ready.wait(0.05) and not stop.is_set():
            pass
        if stop.is_set():
            return
        self.state = "ready"
        self._front.release()
        self.pulse.start()
        notify.tell(READY=1, STATUS=self._summary())
        _log.info("ready at %s: %s", self.endpoint, self._summary())

    def stop(self) -> bool:
        """Take no more, finish what was taken, release everything; whether all was finished."""
        self.state = "draining"
        self._stopping.set()
        notify.tell(STOPPING=1, STATUS=f"stopping: {self._service.waiting()} requests in flight")
        self._front.farewell()
        done = self._service.drain(self.settings.drain_s)
        if not done:
            _log.error("stopped with %d requests unanswered after %.0f s", self._service.waiting(),
                       self.settings.drain_s)  # fmt: skip
        self._loader.join(timeout=1.0)  # it may be planning; its children end with this process
        self._close.close()
        _log.info("stopped: %s", self._service.counts())
        return done

    def status(self) -> dict[str, Any]:
        """What the daemon tells of itself."""
        states = self._roster.states()
        folder_error = self._roster.folder_error
        return {
            "edgert": edgert.__version__,
            "pid": os.getpid(),
            "up_s": round(time.monotonic() - self._started_s, 3),
            "state": self.state,
            "healthy": self.state == "ready" and not self.pulse.trouble and folder_error is None,
            "trouble": self.pulse.trouble,
            "folder": str(self.settings.folder),
            "folder_error": errors.to_json(folder_error) if folder_error else None,
            "models": {state.name: asdict(state) for state in states},
            "waiting": self._service.waiting(),
            "running": [asdict(run) for run in self._service.running()],
            "requests": asdict(self._service.counts()),
        }

    def _repository(self) -> Repository:
        """In the folder that was asked for; else in the cache; else, on a system that can keep nothing, in a temporary
        one.
        """
        asked = self.settings.state or _systemd_folder("STATE_DIRECTORY")
        if asked is not None:
            return Repository(asked)
        name = str(self.settings.folder.absolute()).strip("/").replace("/", "-") or "root"
        kept = store.subfolder(self._cache, "daemon", name)
        if kept is not None:
            return Repository(kept)
        temporary = self._temporary()
        _log.warning("versions are kept in %s and not across a restart", temporary)
        return Repository(temporary)

    def _cache_folder(self) -> Path | None:
        """Where plans are remembered; on a system that can keep nothing a temporary folder: it answers all the same."""
        try:
            return store.folder()
        except CacheUnwritable as error:
            temporary = self._temporary()
            _log.warning("%s Plans are kept in %s and not across a restart", error, temporary)
            return temporary

    def _temporary(self) -> Path:
        """A folder until the end.

        Raises:
            CacheUnwritable: there is not even that.
        """
        try:
            made = TemporaryDirectory(prefix="edgert-daemon-")
        except OSError as error:
            raise CacheUnwritable(
                f"no temporary folder can be made: {error.strerror or error}.", "Set TMPDIR to one that can be written."
            ) from error
        self._close.callback(made.cleanup)
        return Path(made.name)

    def _load(self, path: Path) -> Model:
        if not self._ready.is_set():
            notify.tell(EXTEND_TIMEOUT_USEC=_LOAD_LIMIT_S * 1_000_000, STATUS=f"loading {path.name}")
        # A bundle brings its plan.
        if path.suffix == ".edgert":
            return edgert.load(path, cache_dir=self._cache)
        return edgert.load(path, cache_dir=self._cache, budget_s=self.settings.budget_s)

    def _watch(self) -> None:
        """Keep the roster as the folder is."""
        first_until_s = time.monotonic() + _FIRST_LOOKS_S
        while not self._stopping.is_set():
            if self._again.is_set():
                self._again.clear()
                self._roster.forgive()
            settled = self._roster.refresh(self._stopping.is_set)
            if settled or time.monotonic() > first_until_s:
                if self._ready.is_set():
                    self.pulse.say(self._summary())
                self._ready.set()
            self._stopping.wait(_LOOK_S)

    def _summary(self) -> str:
        states = self._roster.states()
        answering = sum(state.version is not None for state in states)
        refused = [state.name for state in states if state.error is not None]
        text = f"{answering} models answer"
        return f"{text}; refused: {', '.join(refused)}" if refused else text


def _systemd_folder(variable: str) -> Path | None:
    """The folder that systemd made for this service (systemd.exec(5)); the first, where there are several."""
    value = os.environ.get(variable, "").split(":")[0]
    return Path(value) if value else None
