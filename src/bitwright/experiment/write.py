"""An experiment as TOML, every default filled in: the record of what ran."""

from __future__ import annotations

from typing import Any

from bitwright.experiment.schema import Experiment
from bitwright.toml import toml_value


def to_toml(experiment: Experiment) -> str:
    """TOML that `parse` reads back to an equal experiment.

    >>> from bitwright.experiment import parse
    >>> e = parse('[[stage]]\\nepochs = 1')
    >>> parse(to_toml(e)) == e
    True
    """
    table = experiment.model_dump(exclude_none=True)
    lines = [f"seed = {table['seed']}"]
    for name in ("data", "model"):
        lines += ["", f"[{name}]", *_lines(table[name])]
    for stage in table["stage"]:
        rules = stage.pop("rule")
        if not stage["epochs"]:  # a procedure alone
            del stage["epochs"]
        lines += ["", "[[stage]]", *_lines(stage)]
        for rule in rules:
            lines += ["[[stage.rule]]", *_lines(rule)]
    for name in ("train", "log", "expected"):
        if name in table:
            lines += ["", f"[{name}]", *_lines(table[name])]
    return "\n".join(lines) + "\n"


def _lines(table: dict[str, Any]) -> list[str]:
    return [f"{toml_key(key)} = {toml_value(value)}" for key, value in table.items()]


def toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else toml_value(key)
