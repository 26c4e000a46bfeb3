"""What goes into an inference and what comes out of it, whoever makes it: this process or a daemon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from edgert.plan import Receipt
from edgert.tensor import Array, Data

Inputs: TypeAlias = "Mapping[str, Any] | Sequence[Any] | Array"
"""By name, by position, or the one array of a model with one input."""


class Result(Mapping[str, Any]):
    """Outputs by name, and the receipt that says how they were made. The arrays are the caller's."""

    __slots__ = ("_outputs", "receipt")

    def __init__(self, outputs: dict[str, Data], receipt: Receipt) -> None:
        self._outputs = outputs
        self.receipt = receipt

    def __getitem__(self, name: str) -> Any:
        try:
            return self._outputs[name]
        except KeyError:
            raise KeyError(f"there is no output {name!r}; the model has {', '.join(self._outputs)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        return f"Result({', '.join(self._outputs)}; {', '.join(map(str, self.receipt.targets))})"
