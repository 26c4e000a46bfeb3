"""How long executors may take, how much may wait, and how faults are met: the numbers that recovery goes by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one pipeline. All times are of the monotonic clock: a wall clock that jumps changes nothing."""

    heartbeat_s: float = 0.05
    """How often an executor says that it lives, and what it runs since when."""
    lapse_s: float = 0.6
    """An executor of which nothing was heard for so long counts as stopped; never less than the longest hang limit
    of what it has prepared, since a library may hold the interpreter for a whole run."""
    hang_factor: float = 20.0
    """A run counts as hung after so many times its measured time, ..."""
    fewest_hang_s: float = 0.2
    """... but not before this."""
    first_run_s: float = 30.0
    """The same for the first run of a segment after it was prepared: libraries compile and allocate then."""
    prepare_s: float = 60.0
    """Preparing a segment may take so long, ..."""
    prepare_factor: float = 5.0
    """... and so many times what it took when the plan was made."""
    start_s: float = 60.0
    """From spawning an executor to its first word; imports on a small board are slow."""
    backoff_s: float = 0.1
    """Wait before the first restart of an executor; doubles with every fault, ..."""
    most_backoff_s: float = 30.0
    """... up to this."""
    calm_s: float = 60.0
    """An executor that ran so long without a fault starts its backoff anew."""
    waiting: int = 256
    """Requests of one model that may wait; one more is refused as `Overloaded`."""
    ahead_s: float = 0.004
    """Work that executors are given ahead, so that they need not wait for the next request."""
    attempts: int = 4
    """Ways on which one request is tried before the last resort, plain CPU in the caller's process."""
    witness_bytes: int = 64 << 20
    """The inputs and outputs of one request are kept to test a device that comes back, if they are no larger."""

    shadow: float = 0.001
    """Share of the requests that are run again on the last resort, in idle time, to see whether numbers drift."""

    def hang_s(self, measured_s: float) -> float:
        """When a run that was measured at `measured_s` counts as hung."""
        return max(self.fewest_hang_s, self.hang_factor * measured_s)

    def backoff(self, faults: int) -> float:
        """Wait before the next start, after so many faults in a row (1 or more)."""
        doublings = min(faults - 1, 64)  # more would leave the numbers of a float: faults of a day
        return float(min(self.most_backoff_s, self.backoff_s * 2.0**doublings))
