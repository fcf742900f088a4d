"""Attributes of nodes: which values a file may hold, and how an argument of ATen becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitwright.engine.graph import ints

MAX_RANK = 8
MAX_VALUES = 1 << 28  # of one value, per sample
MAX_STEP = 1 << 16  # stride, padding, dilation, kernel
MAX_MULT = 1 << 14
MAX_LEVELS, MAX_PLANES, MAX_TERMS = 255, 8, 8


class Unfit(ValueError):
    """Why a call has no form as this operator, or what is wrong with a node of a file."""


def need(condition: bool, text: str) -> None:
    if not condition:
        raise Unfit(text)


Fits = Callable[[Any], bool]


@dataclass(frozen=True)
class Attr:
    """fits: of a file's value; read: from an ATen argument and its value's rank; usual: left out in files."""

    fits: Fits
    read: Callable[[Any, int], Any] = lambda v, rank: v
    argument: str = ""  # its name in ATen, where that differs
    usual: Callable[[Mapping[str, Any]], Any] | None = None
    required: bool = True

    def of(self, argument: str) -> Attr:
        return replace(self, argument=argument)

    def usually(self, value: Any) -> Attr:
        return replace(self, usual=lambda attrs: value)


def whole(low: int, high: int) -> Fits:
    return lambda v: type(v) is int and low <= v <= high


def listed(item: Fits, low: int = 0, high: int = 65536) -> Fits:
    return lambda v: isinstance(v, list) and low <= len(v) <= high and all(item(x) for x in v)


def _number(v: Any) -> bool:
    return type(v) in (int, float) and v == v


def axis(v: int, rank: int) -> int:
    if not isinstance(v, int) or v % rank == 0:
        raise Unfit("mixes images of a batch")
    return v % rank


def words(*words: str) -> Attr:
    return Attr(lambda v: isinstance(v, str) and v in words, lambda v, rank: str(v))


NUMBER = Attr(_number, lambda v, rank: float(v))
BOUND = Attr(lambda v: v is None or _number(v), lambda v, rank: None if v is None else float(v))
FLAG = Attr(lambda v: type(v) is bool, lambda v, rank: bool(v))
STEPS = Attr(listed(whole(1, MAX_STEP), 1, 3), lambda v, rank: ints(v, rank - 2) if v else [])
PADS = Attr(listed(whole(0, MAX_STEP), 1, 3), lambda v, rank: ints(v, rank - 2))
RANK = Attr(whole(1, 3), lambda v, rank: rank - 2)
AXIS = Attr(whole(1, MAX_RANK), axis)
AXES = Attr(listed(whole(1, MAX_RANK), 1, MAX_RANK), lambda v, rank: [axis(d, rank) for d in ints(v, 1)])
INDEX = Attr(whole(-(1 << 31), 1 << 31))
SIZE = whole(1, MAX_VALUES)


def _ones(attrs: Mapping[str, Any]) -> Any:
    rank = attrs.get("rank")
    return [1] * rank if isinstance(rank, int) and 0 < rank <= 3 else ...


ONES = replace(STEPS, usual=_ones)
GROUPS = Attr(whole(1, 1 << 24)).usually(1)
LAST = FLAG.usually(False)
WEIGHT = Attr(lambda v: isinstance(v, dict))
CONV = {"rank": RANK, "stride": ONES, "padding": PADS, "dilation": ONES, "groups": GROUPS}
