"""Do executors still give the right numbers? A share of the requests is run again, in idle time, on the last resort.

A device that computes plausible nonsense is seen by nothing else. An answer that differs too far is
drift, and its way is not used any more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgert.errors import EdgertError
from edgert.execution.pipeline import Made
from edgert.execution.reserve import Reserve
from edgert.execution.trial import Witness
from edgert.profile import Target
from edgert.tensor import Data


@dataclass(frozen=True, slots=True)
class Drift:
    """Wrong numbers, seen while serving."""

    targets: tuple[Target, ...]
    """Of the plan's segments."""
    reason: str
    """Which output, and how far it was off."""


class Shadow:
    """Belongs to the fleet's loop."""

    def __init__(self, reserve: Reserve, witness: Witness, share: float, seed: int | None = None) -> None:
        """Args:
        reserve: what to compare with.
        witness: judges.
        share: of the requests, 0 to 1.
        seed: of the choice; None for another one each time.
        """
        self._reserve, self._witness, self._share = reserve, witness, share
        self._random = random.Random(seed)
        self._busy = False
        self.checked = 0
        """Requests that were run again."""

    def watch(
        self, inputs: Mapping[str, Data], made: Made, post: Callable[[Callable[[], None]], None],
        drifted: Callable[[Drift], None],
    ) -> None:  # fmt: skip
        """Perhaps run a request again that was answered; one at a time, and only while nothing else needs the reserve.

        Args:
            inputs: of the request. They are copied, and so are the outputs: they are the caller's.
            made: its answer.
            post: brings work to the loop.
            drifted: called in the loop when the answer is wrong.
        """
        if self._busy or self._random.random() >= self._share or not self._reserve.idle():
            return
        self._busy = True
        kept, outputs = self._witness.copies(inputs, made.outputs)

        def conclude(again: Made | EdgertError) -> None:
            post(lambda: self._judge(again, outputs, made, drifted))

        self._reserve.run(kept, conclude, lambda: False)

    def _judge(
        self, again: Made | EdgertError, outputs: Mapping[str, Data], made: Made, drifted: Callable[[Drift], None]
    ) -> None:
        self._busy = False
        if isinstance(again, EdgertError):
            return  # the last resort cannot say
        self.checked += 1
        wrong = self._witness.differ(again.outputs, outputs, made.targets)
        if wrong:
            drifted(Drift(made.targets, f"{wrong}, beside {again.target}"))
