"""The daemon's pulse: it asks the daemon's own models through the same socket that clients use, and only its success
feeds systemd's watchdog. A daemon whose process lives but whose models hang is started anew.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from edgert.client import Client
from edgert.errors import EdgertError, Overloaded
from edgert.serving.service import Running, Service
from edgert.tensor import Data
from edgert.transport import notify
from edgert.transport.keys import Keyring

_log = logging.getLogger(__name__)
_PULSE_S = 10.0
"""Between two beats where no watchdog asks for more."""
_QUICK_S = 1.0
"""What a model may take to be asked for the pulse: a slower one, such as one that takes turns in memory, would load the
box, and is watched while others ask it."""
_HANG_FACTOR = 10.0
"""A run hangs after so many times what the model took when it was loaded, but not before the watchdog's limit."""


class Pulse:
    """Asks the daemon's models again and again, the way that clients do, and feeds the watchdog when that succeeds."""

    def __init__(
        self, endpoint: str, service: Service, watchdog_s: float | None, keyring: Keyring | None = None
    ) -> None:
        """Args:
        endpoint: the daemon's own.
        service: for its models and its counts.
        watchdog_s: systemd's limit; None when nobody watches.
        keyring: with which it listens, for tcp.
        """
        self._service = service
        self._limit_s = watchdog_s or 3 * _PULSE_S
        self.trouble = ""
        """Why the last beat failed; '' when it did not."""
        self._text = ""
        self._end = threading.Event()
        self._turn = itertools.count()
        self._client: Client | None = None
        key = keyring.own().public if keyring is not None else None  # this process is both ends
        self._connect: Callable[[], Client] = partial(
            Client, endpoint, timeout_s=self._limit_s / 3, key=key, keyring=keyring
        )
        self._thread = threading.Thread(target=self._beat_on, name="edgert pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def say(self, text: str) -> None:
        """What to tell systemd with the next beat."""
        self._text = text

    def close(self) -> None:
        self._end.set()
        if self._client is not None:
            self._client.close()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _beat_on(self) -> None:
        while not self._end.wait(self._limit_s / 3):
            trouble = self._trouble()
            if self._end.is_set():
                return
            if trouble and not self.trouble:
                _log.error("no progress: %s", trouble)
            elif self.trouble and not trouble:
                _log.info("progress again after: %s", self.trouble)
            self.trouble = trouble
            if not trouble:
                notify.tell(WATCHDOG=1, **({"STATUS": self._text} if self._text else {}))

    def _trouble(self) -> str:
        """Why this is no progress; '' when it is."""
        stuck = [run for run in self._service.running() if self._hangs(run)]
        if stuck:
            return f"model {stuck[0].model} runs since {stuck[0].for_s:.0f} s"
        samples = self._samples()
        name = list(samples)[next(self._turn) % len(samples)] if samples else ""
        before = self._service.answered(name)
        try:
            self._ask(name, samples.get(name))
        except Overloaded:
            # Others are answered first; that they are is progress enough.
            return "" if self._service.answered(name) > before else f"model {name}: full, and nothing gets done"
        except EdgertError as error:
            if self._service.answered(name) > before:
                return ""
            return f"model {name}: {error.message}" if name else error.message
        return ""

    def _hangs(self, run: Running) -> bool:
        """Whether a run takes longer than this model may: one that is slow by nature is no hang."""
        proof_s = 0.0
        with suppress(EdgertError), self._service.roster.lend(run.model) as loaded:
            proof_s = loaded.proof_s
        return run.for_s > max(self._limit_s, _HANG_FACTOR * proof_s)

    def _samples(self) -> dict[str, dict[str, Data]]:
        """The models that can be asked at each beat, with what to ask them: those that answered once, and quickly."""
        found = {}
        for name in self._service.roster.names():
            with suppress(EdgertError), self._service.roster.lend(name) as loaded:
                if loaded.sample is not None and not loaded.unproven and loaded.proof_s < _QUICK_S:
                    found[name] = loaded.sample
        return found

    def _ask(self, name: str, sample: dict[str, Data] | None) -> None:
        if self._client is None:
            self._client = self._connect()
        if sample is None:
            self._client.status()
        else:
            self._client.run(name, sample)
