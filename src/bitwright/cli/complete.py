"""What the tab key offers: names and `key=` overrides. Nothing here imports torch; a test checks that for each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

# the names of `bw.models.list()`, which needs torch; a test compares the two
MODELS = (
    "mlp", "lenet5", "lenet300", "nin", "cifarnet", "m_cifarnet", "vgg_small", "vgg15", "resnet20", "resnet32",
    "resnet44", "resnet56", "resnet20_postact", "resnet20_plain", "bireal_resnet20", "bireal_resnet32", "resnet18",
    "bireal_resnet18", "alexnet", "demo", "selfprune_mlp", "selfprune_conv",
)  # fmt: skip
DATA = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "stl10", "imagenet", "folder")
STAGES = 3  # offered as stage.0 to stage.2; more can be typed


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes.

    >>> complete_recipe("xno")
    ['xnor']
    """
    from bitwright.cli.recipes import FOLDER

    return _starting(incomplete, sorted(path.stem for path in FOLDER.glob("*.toml")))


def complete_part(incomplete: str) -> list[str]:
    """Parts."""
    from bitwright.cli.registry import stored

    return _starting(incomplete, stored())


def complete_model(incomplete: str) -> list[str]:
    """Models by name; paths of the user's own are completed by the shell.

    >>> complete_model("lenet")
    ['lenet5', 'lenet300']
    """
    return _starting(incomplete, MODELS)


def complete_zoo(incomplete: str) -> list[str]:
    """Nets of the zoo."""
    from bitwright import zoo

    return _starting(incomplete, zoo.list())


def complete_experiment(incomplete: str) -> list[str]:
    """Shipped experiments, and run directories."""
    from bitwright import experiment

    return [*_starting(incomplete, experiment.names()), *complete_run(incomplete)]


def complete_plan(incomplete: str) -> list[str]:
    """What `plan` takes first: models, experiments, runs."""
    return [*complete_model(incomplete), *complete_experiment(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Run directories below what is typed so far; folders on the way to one; without a word typed, those in runs/."""
    typed = incomplete or ("runs/" if Path("runs").is_dir() else "")
    head, _, tail = typed.rpartition("/")
    parent = Path(head or ("/" if typed.startswith("/") else "."))
    start = f"{head}/" if "/" in typed else ""
    found: list[str] = []
    for name in _folders(parent):
        if name.startswith(".") or not name.startswith(tail):
            continue
        if (parent / name / "experiment.toml").is_file():
            found.append(f"{start}{name}")
        elif _holds_runs(parent / name):
            found.append(f"{start}{name}/")
    return found


def _holds_runs(folder: Path) -> bool:
    return any((folder / name / "experiment.toml").is_file() for name in _folders(folder))


def _folders(parent: Path) -> list[str]:
    """Names of the folders inside; none where it cannot be read."""
    try:
        with os.scandir(parent) as entries:
            return sorted(e.name for e in entries if e.is_dir())
    except OSError:
        return []


def complete_override(incomplete: str) -> list[str]:
    """`key=` of an experiment, and the values that are names.

    >>> complete_override("data.ba"), complete_override("train.precision=b")
    (['data.batch='], ['train.precision=bf16'])
    """
    from bitwright.experiment.schema import Experiment

    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={v}" for v in _starting(value, _values(key))]
    return _starting(incomplete, sorted({*_keys(Experiment, ""), "recipe=", "epochs="}))


def _keys(table: Any, before: str) -> Iterable[str]:
    """Dotted keys of a schema, tables opened, stages counted from 0."""
    for name, field in table.model_fields.items():
        inner = _table(field.annotation)
        if name == "expected":
            continue  # a record, nothing to set
        if name == "stage":
            for i in range(STAGES):
                yield from _keys(inner, f"stage.{i}.")
        elif inner is not None:
            yield from _keys(inner, f"{before}{name}.")
            if name == "teacher":
                yield f"{before}{name}="
        elif name != "rule":
            yield f"{before}{name}="


def _table(annotation: Any) -> Any:
    """The pydantic table inside an annotation, if there is one."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((t for a in get_args(annotation) if (t := _table(a)) is not None), None)


def _values(key: str) -> Iterable[str]:
    """The names that a key may hold; nothing for numbers and paths."""
    from bitwright.experiment.schema import Experiment

    last = key.rsplit(".", 1)[-1]
    if key == "model.name":
        return MODELS
    if key == "data.name":
        return DATA
    if last == "recipe":
        return complete_recipe("")
    here: Any = Experiment
    for name in key.split("."):
        if name.isdecimal():
            continue
        fields = getattr(_table(here), "model_fields", {})
        if name not in fields:
            return ()
        here = fields[name].annotation
    return _literals(here)


def _literals(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(v) for v in get_args(annotation)]
    return [v for a in get_args(annotation) for v in _literals(a)]


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
