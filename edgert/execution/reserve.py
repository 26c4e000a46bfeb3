"""The last resort of a staged plan: its CPU fallbacks in the caller's own process, prepared before they are needed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from edgert.errors import Cancelled, DeviceLost, EdgertError, RunFailed
from edgert.execution.pipeline import Made, Pipeline
from edgert.tensor import Data

_log = logging.getLogger(__name__)
_NEW = 0.2


class Reserve:
    """Thread-safe. Prepares in a thread of its own from the moment it is made."""

    def __init__(self, make: Callable[[], Pipeline] | None, name: str, width: int) -> None:
        """Args:
        make: prepares the fallbacks; None when the plan has none on a CPU.
        name: of the model.
        width: requests that may run at once.
        """
        self._name, self._width = name, width
        self._pipeline: Pipeline | None = None
        self._why = "" if make else "the plan has no fallback on a CPU"
        self._made = threading.Event()
        self._lock = threading.Lock()
        self._taken = 0
        self._mean_s = 0.0
        self._pool = ThreadPoolExecutor(width, thread_name_prefix="edgert reserve")
        self._pool.submit(int)  # starts a thread: one there will be, also when this process may start no more
        if make is None:
            self._made.set()
        else:
            threading.Thread(target=self._prepare, args=(make,), name=f"reserve of {name}", daemon=True).start()

    def free(self) -> bool:
        """Whether a request would run at once."""
        with self._lock:
            return self._taken < self._width

    def idle(self) -> bool:
        """Whether it is ready and nothing runs on it."""
        with self._lock:
            return self._pipeline is not None and not self._taken

    def expected_s(self) -> float:
        """Time between two answers when it is busy, as far as known."""
        return self._mean_s / self._width

    def hopeless(self) -> str:
        """Why it will never answer; '' while it may. Waits until it is prepared."""
        self._made.wait()
        return self._why

    def run(
        self, inputs: Mapping[str, Data], conclude: Callable[[Made | EdgertError], None], over: Callable[[], bool]
    ) -> None:
        """Answer in a thread of its own; `conclude` is called once, in that thread.

        Args:
            inputs: checked already.
            conclude: gets the answer, or why there is none.
            over: asked when the request's turn comes, whether anybody still waits for it.
        """
        with self._lock:
            self._taken += 1
        with suppress(RuntimeError):  # no further thread can be started: those that there are do what was put
            self._pool.submit(self._work, inputs, conclude, over)

    def close(self) -> None:
        """Finish what runs, release everything."""
        self._made.wait()
        self._pool.shutdown()
        if self._pipeline is not None:
            self._pipeline.close()

    def _prepare(self, make: Callable[[], Pipeline]) -> None:
        try:
            self._pipeline = make()
        except EdgertError as error:
            self._why = error.message
            _log.warning("%s has no last resort: %s", self._name, error.message)
        except Exception as error:  # noqa: BLE001 - requests must learn of it, whatever a library or the system says
            self._why = f"{type(error).__name__}: {error}"
            _log.warning("%s has no last resort: %s", self._name, self._why)
        finally:
            self._made.set()

    def _work(
        self, inputs: Mapping[str, Data], conclude: Callable[[Made | EdgertError], None], over: Callable[[], bool]
    ) -> None:
        try:
            outcome = self._answer(inputs, over)
        finally:
            with self._lock:
                self._taken -= 1
        conclude(outcome)

    def _answer(self, inputs: Mapping[str, Data], over: Callable[[], bool]) -> Made | EdgertError:
        if over():
            return Cancelled(f"{self._name}: nobody waits for this request any more.")
        self._made.wait()
        if self._pipeline is None:
            return DeviceLost(
                f"{self._name}: no executor can answer, and there is no last resort ({self._why}).",
                "Look at `edgert probe --refresh`; load again to plan anew.",
            )
        started_s = time.monotonic()
        try:
            made = self._pipeline.run(inputs)
        except EdgertError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the request must end, whatever a library raised
            return RunFailed(f"{self._name}: {type(error).__name__}: {error}.")
        run_s = time.monotonic() - started_s
        self._mean_s += (run_s - self._mean_s) * (_NEW if self._mean_s else 1.0)
        return made
