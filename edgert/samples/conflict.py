"""That sizes do not fit a node."""

from __future__ import annotations

NONSENSE = (ArithmeticError, LookupError, TypeError, ValueError)
"""What a rule trips over when a file's attributes make no sense (a stride of zero, an axis beyond the rank): the rule
then has nothing to say, and the backend that prepares the model does."""


class Conflict(Exception):
    """Sizes that a node cannot take; how many of them, so that a search sees each one that it mends."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.count = count


def check(*pairs: tuple[int | None, int | None]) -> None:
    """Each pair has to be equal where both are known."""
    count = sum(one is not None and other is not None and one != other for one, other in pairs)
    if count:
        raise Conflict(count)
