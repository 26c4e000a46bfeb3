"""A board that throttles gets a cheaper plan until it has cooled down.

One thread for the whole process looks at the board every few seconds, and only while somebody listens and the board
has anything to look at: a request reads one attribute.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgert.devices.thermal import Heat, Hysteresis, look, watchable
from edgert.errors import EdgertError
from edgert.plan import Plan
from edgert.profile import Target

if TYPE_CHECKING:  # which imports sockets, and a plan on the CPU needs none
    from edgert.execution.start import Running

_log = logging.getLogger(__name__)
_EVERY_S = 2.0
"""Between two looks: heat takes longer than that to build up, and a look takes about a millisecond."""


class Climate:
    """Tells its listeners when the board begins to throttle, and when it has cooled down. Thread-safe."""

    def __init__(self, root: Path = Path("/"), every_s: float = _EVERY_S) -> None:
        """Args:
        root: as for `thermal.look`.
        every_s: between two looks.
        """
        self._root, self._every_s = root, every_s
        self._listeners: dict[int, Callable[[str], None]] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._stop: threading.Event | None = None
        self.throttled = ""
        """Why the board slows down now; '' when it does not."""

    def heed(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener` on every change: with the reason, or with '' when it is over. At once where the board
        throttles already. Its exceptions end nothing but its own call, and are logged.

        Returns:
            What ends that; harmless to call twice.
        """
        if not watchable(self._root):
            return lambda: None
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._listeners[number] = listener
            if self._stop is None:
                self._stop = threading.Event()
                threading.Thread(target=self._watch, args=(self._stop,), name="edgert climate", daemon=True).start()
            throttled = self.throttled
        if throttled:
            _tell(listener, throttled)
        return lambda: self._forget(number)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._listeners.pop(number, None)
            if not self._listeners and self._stop is not None:
                self._stop.set()
                self._stop, self.throttled = None, ""

    def _watch(self, stop: threading.Event) -> None:
        state = Hysteresis()
        heat: Heat | None = None
        while not stop.is_set():
            heat = look(self._root, heat)
            if state.update(heat):
                self._changed(heat.text() if state.throttled else "", stop)
            stop.wait(self._every_s)

    def _changed(self, throttled: str, stop: threading.Event) -> None:
        with self._lock:
            if stop.is_set():  # nobody listens any more
                return
            self.throttled = throttled
            listeners = list(self._listeners.values())
        _log.warning("%s", f"the board throttles: {throttled}" if throttled else "the board has cooled down")
        for listener in listeners:
            _tell(listener, throttled)


def _tell(listener: Callable[[str], None], throttled: str) -> None:
    try:
        listener(throttled)
    except Exception:  # noqa: BLE001 - one model's trouble must not keep the others from hearing
        _log.exception("a listener failed: the board %s", throttled or "has cooled down")


class Eased:
    """Cheaper plans of one model, each prepared once: a board that throttles once does so again."""

    def __init__(self, made_ready: Callable[[Plan], Running]) -> None:
        """`made_ready` prepares a plan."""
        self._made_ready = made_ready
        self._ready: dict[str, Running] = {}

    def of(self, plan: Plan, throttled: str) -> tuple[Running | None, str]:
        """What runs instead of a plan, ready, if there is something; and what receipts say."""
        cheap = cooler(plan)
        if cheap is None:
            return None, f"{throttled}: there is no cheaper plan"
        try:
            if cheap.id not in self._ready:
                self._ready[cheap.id] = self._made_ready(cheap)
        except EdgertError as error:
            _log.warning("no cheaper plan than %s runs while the board throttles: %s", plan.id, error)
            return None, f"{throttled}: no cheaper plan could be prepared"
        return self._ready[cheap.id], f"{throttled}: {_cost(cheap)} instead of {_cost(plan)}"

    def close(self) -> None:
        """Release them. Closing twice is harmless."""
        for running in self._ready.values():
            running.close()
        self._ready = {}


def _cost(plan: Plan) -> str:
    """What it runs on: its target, and how many instances where there are several."""
    count = len(plan.instances)
    return str(plan.targets[0]) + (f" x {count}" if count > 1 else "")


CLIMATE = Climate()
"""Of this board, shared by all models of the process."""


def cooler(plan: Plan) -> Plan | None:
    """The plan with about half of its threads, or of its instances, each of which was checked; None where there is
    nothing cheaper: it runs elsewhere than on the CPU, in several segments, or on one thread already.
    """
    if len(plan.segments) > 1 or plan.residency is not None or not plan.targets[0].device.startswith("cpu"):
        return None
    note = f"a cheaper form of plan {plan.id}, while the board throttles"
    if len(plan.instances) > 1:
        half = plan.instances[: len(plan.instances) // 2]
        return replace(plan, instances=half, items_per_s=0.0, notes=(*plan.notes, note))
    target = plan.targets[0]
    rows = [
        row
        for row in plan.candidates
        if _way(row.target) == _way(target)
        and 0 < row.target.threads <= target.threads // 2
        and row.outcome in ("ok", "slow")
    ]
    if not rows:
        return None
    row = max(rows, key=lambda row: row.target.threads)
    (segment,) = plan.segments
    return replace(
        plan,
        segments=(replace(segment, target=row.target),),
        verification=replace(plan.verification, errors=row.errors if plan.verification.reference else ()),
        measured_s=row.timing.p50_s if row.timing else 0.0,
        notes=(*plan.notes, note),
    )


def _way(target: Target) -> tuple[str, ...]:
    """The target without its threads."""
    return target.backend, target.variant, target.device, target.precision
