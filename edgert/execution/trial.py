"""A request and its answer that are kept, to try executors on: after a restart, and after a doubtful failure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from edgert.errors import Garbage
from edgert.execution.checks import check_values
from edgert.graph import Value
from edgert.plan import Tolerance
from edgert.profile import Precision, Target
from edgert.tensor import Data
from edgert.verify import compare, judge


class Witness:
    """Belongs to the fleet's loop."""

    def __init__(
        self, outputs: Sequence[Value], own: Precision, tolerance: Tolerance, most_bytes: int, *, repeats: bool
    ) -> None:
        """Args:
        outputs: the model's.
        own: its own precision.
        tolerance: how far an answer may be from the kept one.
        most_bytes: a request that is larger, with its answer, is not kept.
        repeats: whether the model gives the same answer twice; if not, only names, types and shapes are compared.
        """
        self._declared, self._own, self._tolerance = tuple(outputs), own, tolerance
        self._most_bytes, self._repeats = most_bytes, repeats
        self._primary = False
        self._keeps_sizes = False
        self.inputs: Mapping[str, Data] | None = None
        self._outputs: Mapping[str, Data] = {}

    def keep(self, inputs: Mapping[str, Data], outputs: Mapping[str, Data], *, primary: bool) -> None:
        """Keep the first request whose answer came from the plan's own way; until then, the first of all.

        The arrays are copied: they are the caller's.
        """
        if self._primary or (self.inputs is not None and not primary):
            return
        self._primary = primary
        if _size_bytes(inputs) + _size_bytes(outputs) > self._most_bytes:
            return
        self.inputs, self._outputs = self.copies(inputs, outputs)
        self._keeps_sizes = _keeps(outputs, self._declared)

    def drop(self) -> None:
        """An executor ended over the kept request: keep another one, unless the plan's own way answered this."""
        if not self._primary:
            self.inputs = None

    @staticmethod
    def copies(
        inputs: Mapping[str, Data], outputs: Mapping[str, Data]
    ) -> tuple[Mapping[str, Data], Mapping[str, Data]]:
        """Of both, which no caller can change."""
        return copy.deepcopy(dict(inputs)), copy.deepcopy(dict(outputs))

    @property
    def keeps_sizes(self) -> bool:
        """Whether an answer was seen that keeps to the sizes that the model declares."""
        return self._keeps_sizes

    def judge(self, outputs: Mapping[str, Data], targets: Sequence[Target]) -> str:
        """Why this answer to the kept request is wrong; '' when it is right."""
        return self.differ(self._outputs, outputs, targets)

    def differ(self, expected: Mapping[str, Data], got: Mapping[str, Data], targets: Sequence[Target]) -> str:
        """Why an answer is too far from another one to the same request; '' when it is not."""
        errors = compare(expected, got, {}, self._tolerance.relative or 0.0)
        if not self._repeats:
            return next((f"output {error.name!r}: {error.mismatch}" for error in errors if error.mismatch), "")
        lowest = next((target.precision for target in targets if target.precision != self._own), self._own)
        dtypes = {value.name: value.dtype for value in self._declared}
        return judge(errors, self._tolerance, self._own, lowest, dtypes)


def _keeps(outputs: Mapping[str, Data], declared: Sequence[Value]) -> bool:
    try:
        check_values("", outputs, declared, sizes=True)
    except Garbage:
        return False
    return True


def _size_bytes(values: Mapping[str, Data]) -> int:
    return sum(value.nbytes for value in values.values() if isinstance(value, np.ndarray))
