"""`key=value` on the command line: dotted keys, stages and rules counted from 0."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bitwright.errors import InputError
from bitwright.toml import read_toml

_PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.|\.\d+)([eE][+-]?\d+)?")  # `.1` and `1.`, which TOML does not know


@dataclass(frozen=True)
class Override:
    """One override: as given, where it goes, what it puts there."""

    text: str
    path: tuple[str | int, ...]
    value: Any


def put_all(data: dict[str, Any], overrides: Iterable[str], title: str) -> list[Override]:
    """Puts each `key=value` into the tables that tomllib read; returns what was put where.

    value    a TOML value, else text: `0.1`, `true`, `[5, 8]`, `{ name = "sgd" }`, `bf16`
    recipe   `recipe=NAME` is `stage.LAST.recipe=NAME`, and the rules of that stage go
    epochs   `epochs=N` is `stage.K.epochs=N` for every stage that trains

    >>> data = {"stage": [{"epochs": 5}]}
    >>> _ = put_all(data, ["stage.0.optimizer.lr=0.1", "train.precision=bf16"], "experiment")
    >>> data
    {'stage': [{'epochs': 5, 'optimizer': {'lr': 0.1}}], 'train': {'precision': 'bf16'}}
    """
    return [put for text in overrides for put in _put(data, text, title)]


def value_of(text: str) -> Any:
    """A TOML value, else the text itself.

    >>> value_of("3"), value_of(".5"), value_of("bf16"), value_of("[1, 2]")
    (3, 0.5, 'bf16', [1, 2])
    """
    text = text.strip()
    if _PLAIN_NUMBER.fullmatch(text):
        return float(text)
    try:
        found = read_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = found.get("value")
    plain = isinstance(value, (bool, int, float, str, list, dict))
    return value if len(found) == 1 and plain and "\n" not in text else text


def _put(data: dict[str, Any], text: str, title: str) -> list[Override]:
    key, equals, value = text.partition("=")
    keys = [part.strip() for part in key.split(".")]
    if not equals or not all(keys):
        raise InputError(
            f"{title}: override {text!r}: possible: key=value, e.g. seed=3 or stage.0.epochs=2",
            code="experiment-key",
            given=text,
        )
    stages = data.get("stage")
    stages = stages if isinstance(stages, list) and all(isinstance(s, dict) for s in stages) else []
    if keys == ["epochs"]:
        targets = [["stage", str(i), "epochs"] for i, s in enumerate(stages) if "epochs" in s or "procedure" not in s]
    elif keys == ["recipe"] and stages:
        stages[-1].pop("rule", None)
        targets = [["stage", str(len(stages) - 1), "recipe"]]
    else:
        targets = [keys]
    return [Override(text, _put_at(data, k, value_of(value), f"{title}: override {text}"), value) for k in targets]


def _put_at(data: dict[str, Any], keys: list[str], value: Any, where: str) -> tuple[str | int, ...]:
    """Walks to the last key and sets it; tables that are not there yet are made, tables of an array are not."""
    here: Any = data
    path: tuple[str | int, ...] = ()
    for key, after in zip(keys, [*keys[1:], None], strict=True):
        step = _step(here, key, path, where)
        path += (step,)
        if after is None:
            here[step] = value
        elif step == "teacher" and isinstance(here.get(step), str):
            here[step] = {"source": here[step]}  # the short form, now that it gets more keys
        elif isinstance(step, str):
            here.setdefault(step, [] if step in ("stage", "rule") and after.isdecimal() else {})
        here = here[step]
    return path


def _step(here: Any, key: str, path: tuple[str | int, ...], where: str) -> str | int:
    """The key as the table or array `here` wants it."""
    name = ".".join(map(str, path))
    if isinstance(here, dict):
        return key
    if not isinstance(here, list):
        raise InputError(f"{where}: {name} is {here!r}, not a table with keys", code="experiment-key", given=key)
    if not key.isdecimal() or int(key) >= len(here):
        raise InputError(f"{where}: {_counted(name, here)}", code="experiment-key", given=key)
    return int(key)


def _counted(name: str, items: list[Any]) -> str:
    """What can be given for the number in `stage.N`."""
    if not items:
        return f"there is no {name}.0; overrides change what the file has"
    last = name.rsplit(".", 1)[-1]
    many = f"{len(items)} {last if last in ('stage', 'rule') else 'item'}{'s' if len(items) > 1 else ''}"
    where = f" in {name.rpartition('.')[0]}" if "." in name else ""
    numbers = "0" if len(items) == 1 else f"0 to {len(items) - 1}"
    return f"{many}{where}, counted from 0; possible: {numbers}"
