"""What a key may hold, in words, read off the schema."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from bitwright.experiment.schema import Experiment

_TYPES = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


def field(path: Sequence[str | int]) -> tuple[Any, Iterable[Any]] | None:
    """Type and limits of what stands at `path`, or None where the schema has nothing there.

    >>> field(("stage", 0, "epochs"))[0]
    <class 'int'>
    """
    kind: Any = Experiment
    limits: Iterable[Any] = ()
    for key in path:
        kind, limits = _open(kind, limits)
        if isinstance(key, int):
            if get_origin(kind) not in (list, tuple):
                return None
            kind, limits = get_args(kind)[0], ()
        elif isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
            kind, limits = kind.model_fields[key].annotation, kind.model_fields[key].metadata
        else:
            return None
    return _open(kind, limits)


def keys(path: Sequence[str | int]) -> list[str]:
    """Keys that the table at `path` may hold.

    >>> keys(("expected",))
    ['low', 'high', 'seeds', 'source']
    """
    found = field(path)
    kind = found[0] if found else None
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def possible(path: Sequence[str | int]) -> str:
    """The values that may stand at `path`.

    >>> possible(("stage", 0, "epochs")), possible(("train", "precision"))
    ('a whole number of at least 1', 'fp32, bf16, fp16')
    """
    found = field(path)
    return _say(*found) if found else "another value"


def _open(kind: Any, limits: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Without `| None` and Annotated: None is how Python says that a key may be left out."""
    while True:
        if get_origin(kind) is Annotated:
            kind, *more = get_args(kind)
            limits = [*limits, *more]
        elif get_origin(kind) in (Union, types.UnionType):
            kind = next(k for k in get_args(kind) if k is not type(None))
        else:
            return kind, limits


def _say(kind: Any, limits: Iterable[Any]) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return "a table"
    if get_origin(kind) is list:
        return f"a list, each {_say(*_open(get_args(kind)[0], ()))}"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))}, each {_say(*_open(get_args(kind)[0], ()))}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"a table with {', '.join(kind.model_fields)}"
    return _TYPES.get(kind, "another value") + _range(kind, limits)


def _range(kind: Any, limits: Iterable[Any]) -> str:
    """The numbers that annotated-types markers (Gt, Ge, Lt, Le), also inside a Field, allow."""
    flat = [m for limit in limits for m in (limit, *getattr(limit, "metadata", ()))]
    gt, ge, lt, le = (next((getattr(m, n) for m in flat if getattr(m, n, None) is not None), None) for n in _MARKS)
    if kind is int and gt is not None:
        gt, ge = None, gt + 1
    low = f"above {gt:g}" if gt is not None else f"at least {ge:g}" if ge is not None else ""
    high = f"below {lt:g}" if lt is not None else f"at most {le:g}" if le is not None else ""
    if ge is not None and le is not None:
        return f" from {ge:g} to {le:g}"
    return " " + " and ".join(filter(None, (f"of {low}" if low.startswith("at") else low, high))) if low or high else ""


_MARKS = ("gt", "ge", "lt", "le")
