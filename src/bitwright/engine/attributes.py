"""Bounds of what a file may hold, and attributes of nodes: a check of each value, and which values a file leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

MAX_RANK = 8
MAX_VALUES = 1 << 28  # of one value, per sample
MAX_STEP = 1 << 16  # stride, padding, dilation, kernel
MAX_MULT = 1 << 14
MAX_LEVELS, MAX_PLANES, MAX_TERMS = 255, 8, 8

Fits = Callable[[Any], bool]


class Unfit(ValueError):
    """What is wrong with a node of a file."""


def need(condition: bool, text: str) -> None:
    if not condition:
        raise Unfit(text)


def whole(low: int, high: int) -> Fits:
    return lambda v: type(v) is int and low <= v <= high


def listed(item: Fits, low: int = 0, high: int = 65536) -> Fits:
    return lambda v: isinstance(v, list) and low <= len(v) <= high and all(item(x) for x in v)


def number(v: Any) -> bool:
    return type(v) in (int, float) and v == v


@dataclass(frozen=True)
class Attr:
    """fits: of a file's value; usual: the value that files leave out."""

    fits: Fits
    usual: Callable[[Mapping[str, Any]], Any] | None = None
    required: bool = True

    def usually(self, value: Any) -> Attr:
        return replace(self, usual=lambda attrs: value)

    @property
    def optional(self) -> Attr:
        return replace(self, required=False)


def _ones(attrs: Mapping[str, Any]) -> Any:
    rank = attrs.get("rank")
    return [1] * rank if isinstance(rank, int) and 0 < rank <= 3 else ...


NUMBER, FLAG = Attr(number), Attr(lambda v: type(v) is bool)
SHARE = Attr(lambda v: number(v) and 0 <= v <= 1)
STEPS, PADS = Attr(listed(whole(1, MAX_STEP), 1, 3)), Attr(listed(whole(0, MAX_STEP), 1, 3))
END = Attr(lambda v: v is None or number(v))
RANK, AXIS, INDEX = Attr(whole(1, 3)), Attr(whole(1, MAX_RANK)), Attr(whole(-(1 << 31), 1 << 31))
SIZE = whole(1, MAX_VALUES)
ONES, GROUPS, LAST = replace(STEPS, usual=_ones), Attr(whole(1, 1 << 24)).usually(1), FLAG.usually(False)
TEXT, TABLE = Attr(lambda v: isinstance(v, str)), Attr(lambda v: isinstance(v, dict))
CONV = {"rank": RANK, "stride": ONES, "padding": PADS, "dilation": ONES, "groups": GROUPS}


def words(*words: str) -> Attr:
    return Attr(lambda v: isinstance(v, str) and v in words)
