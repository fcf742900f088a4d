"""`bitwright plan --diff A B`: what differs between the rules of two recipes, trained files or runs."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.transforms import Recipe


def plan_diff(out: Output, first: str, second: str | None) -> None:
    """Lines of the two recipes: `-` only in the first, `+` only in the second."""
    if second is None:
        raise InputError(
            "plan --diff: needs two, e.g. bitwright plan --diff xnor bireal", code="usage", remedy="bitwright recipes"
        )
    a, b = _rules(first), _rules(second)
    lines = [line for line in difflib.ndiff(a, b) if not line.startswith("?")]
    changed = [line for line in lines if line[0] in "+-"]
    out.data["diff"] = {"first": first, "second": second, "lines": [line.rstrip() for line in changed]}
    if not changed:
        out.result(f"{first} and {second}: equal rules")
        return
    out.result(f"- {first}\n+ {second}")
    for line in lines:
        out.result(line.rstrip())


def _rules(name: str) -> list[str]:
    """TOML lines without name and comment."""
    from dataclasses import replace

    return replace(_recipe(name), name="", comment="").to_toml().splitlines()


def _recipe(name: str) -> Recipe:
    """A shipped recipe, a TOML file, the recipe inside a trained file, or all stages of a run or an experiment."""
    from bitwright.cli.target import experiment_of
    from bitwright.tensors import read_tensors
    from bitwright.transforms import Recipe, recipes

    path = Path(name)
    weights = path / "model.safetensors" if path.is_dir() else path
    if weights.suffix == ".safetensors" and weights.is_file():
        _, metadata = read_tensors(weights)
        if metadata.get("bitwright") != "trained":
            raise InputError(f"plan --diff {name}: not a trained file of bitwright's", code="file-foreign", given=name)
        return Recipe.from_toml(metadata.get("recipe", ""), name)
    if name in recipes() or (path.suffix == ".toml" and "[[rule]]" in path.read_text(encoding="utf-8")):
        return Recipe.load(name)
    experiment = experiment_of(name)
    if experiment is None:
        return Recipe.load(name)
    from bitwright.runs import recipe_of_stage

    total = Recipe()
    for i in range(len(experiment.stage)):
        total += recipe_of_stage(experiment, i)
    return total
