"""ONNX Runtime as one gets it without edgert: a session with every default, to compare against. Lives in a child."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

from edgert.errors import MissingPackage, OptionError, PrepareRefused
from edgert.tensor import Data
from edgert.transport.wire import Message

_SPIN_S = 0.06


class Plain:
    """Service for `edgert.transport.child.Child`: open a model, hold one request, time calls."""

    def __init__(self) -> None:
        self._session: Any = None
        self._request: Mapping[str, Data] = {}

    def handle(self, method: str, body: Mapping[str, Any], data: Mapping[str, Data]) -> Message:
        match method:
            case "open":
                return {"prepare_s": self._open(body["path"])}, {}
            case "hold":
                self._request = dict(data)
                return {}, {}
            case "time":
                return {"seconds": self._time(body["calls"], body["at_most_s"])}, {}
        raise OptionError(f"plain: there is no method {method!r}.")

    def _open(self, path: str) -> float:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackage(
                f"onnxruntime is not installed ({error}).", 'pip install "edgert[onnx]"', package="onnxruntime"
            ) from error
        started_s = time.perf_counter()
        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises a dozen types of its own
            words = str(error).splitlines()[0]
            raise PrepareRefused(f"plain onnxruntime refuses {path}: {words}", target="onnxruntime") from error
        return time.perf_counter() - started_s

    def _time(self, calls: int, at_most_s: float) -> list[float]:
        """Seconds of up to `calls` calls; stops early, after at least one, past `at_most_s`."""
        run, request = self._session.run, dict(self._request)
        times_s: list[float] = []
        total_s = 0.0
        gc.disable()  # a collection in the middle of a call would be charged to the call
        try:
            while len(times_s) < calls and (not times_s or total_s < at_most_s):
                started_s = time.perf_counter()
                run(None, request)
                times_s.append(time.perf_counter() - started_s)
                total_s += times_s[-1]
        finally:
            gc.enable()
        # By default its threads spin on for some 40 ms after a run, on a core that the next contender needs.
        time.sleep(_SPIN_S)
        return times_s
