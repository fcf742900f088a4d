"""A value that a part keeps from a forward pass to its next moment (an optional method), and no longer."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """A value of the last forward that copies and checkpoints do not take along.

    >>> import copy
    >>> kept = Remembered[int]()
    >>> kept.value = 3
    >>> copy.deepcopy(kept).value is None
    True
    """

    def __init__(self) -> None:
        self.value: Value | None = None

    def __deepcopy__(self, memo: Any) -> Remembered[Value]:
        return type(self)()

    def __reduce__(self) -> Any:
        return (Remembered, ())
