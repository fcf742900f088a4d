"""From an experiment to its objects: data sets, the model, the recipe of each stage."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright import data, models, usercode, zoo
from bitwright.data.function import read_function
from bitwright.errors import InputError
from bitwright.runs.init import initialize
from bitwright.runs.weight_files import put_weights, read_weights
from bitwright.transforms import Recipe, apply
from bitwright.transforms.copying import copy_model

if TYPE_CHECKING:
    from bitwright.data import Images
    from bitwright.experiment import Experiment


def dataset(experiment: Experiment, split: str) -> Images:
    """ "train", "test", or "val" (the last `data.val` training images, which "train" then lacks)."""
    spec = experiment.data
    which = "test" if split == "test" else "train"
    if usercode.is_own(spec.name):
        found = read_function(spec.name, which, experiment.home.find(spec.name, "data"))
    else:
        found = data.load(
            spec.name,
            spec.root,
            which,
            size=spec.size,
            transform=spec.transform,
            format=spec.format,
            workers=spec.workers,
            skip_bad=spec.skip_bad,
        )
    if split == "test":
        found = found.limit(spec.limit_test) if spec.limit_test else found
    else:
        found = found.limit(spec.limit) if spec.limit else found
        found = found.part(split, spec.val) if spec.val or split == "val" else found
    return found.binarized() if spec.binarize else found


def normalized(experiment: Experiment, stages: int | None = None) -> bool:
    """Whether pixels are normalized: off where a recipe makes the first layer read pixels as 8-bit codes.

    stages   only this many stages count, for the net of an early stage. [default: all, the trained net]
    """
    if experiment.data.normalize is not None:
        return experiment.data.normalize
    if experiment.data.binarize:
        return False
    rules = [rule for i in range(len(experiment.stage[:stages])) for rule in recipe_of_stage(experiment, i).rules]
    return not any("input8" in repr(rule.slots.get("x", "")) for rule in rules)


def example_of(experiment: Experiment, images: Images, batch: int = 2) -> Tensor:
    """The first images, as the model gets them."""
    return next(iter(images.limit(batch).batches(batch, normalize=normalized(experiment))))[0]


def build_model(experiment: Experiment, images: Images | None = None, *, weights: bool = True) -> nn.Module:
    """The float model, before any stage. Sizes that the file leaves open come from the data.

    weights   False: no init scheme and no start weights, for a model whose weights are read anyway
    """
    spec = experiment.model
    arguments: dict[str, Any] = spec.arguments
    if usercode.is_own(spec.name):
        model = usercode.call(experiment.home.find(spec.name, "model"), spec.name, "model", **arguments)
        if not isinstance(model, nn.Module):
            raise InputError(f"model {spec.name}: gave {type(model).__name__}, not a torch module", code="own-call")
    else:
        images = images if images is not None else dataset(experiment, "test")
        sizes = {"in_channels": images.shape[0], "size": images.shape[-1]}
        classes = arguments.pop("num_classes", len(images.classes))
        model = models.create(spec.name, classes, **{**sizes, **arguments})
    if weights:
        initialize(model, spec.init)
        if spec.weights is not None:
            _start_from(model, spec.weights)
    return model


def _start_from(model: nn.Module, source: str) -> None:
    """Weights of a float or trained file, or of a run, into the model as it is."""
    from pathlib import Path

    from bitwright.runs.folder import is_run

    if zoo.is_zoo(source):
        path = zoo.weights(source)
    else:
        path = Path(source) / "model.safetensors" if is_run(source) else Path(source)
    put_weights(model, read_weights(path, "model weights")[0], f"model weights {path}")


def recipe_of_stage(experiment: Experiment, index: int) -> Recipe:
    """The stage's own recipe; empty where it has none."""
    stage = experiment.stage[index]
    if stage.recipe is not None and stage.rule:
        raise InputError(f"stage {index}: has a recipe and rules; possible: one of them", code="experiment-stage")
    if stage.recipe is not None:
        return Recipe.load(stage.recipe)
    return Recipe.from_rules(stage.rule, name=f"stage {index}") if stage.rule else Recipe()


def apply_stage(model: nn.Module, experiment: Experiment, index: int, example: Tensor) -> nn.Module:
    """Gives the model the parts of one stage, in place; returns it."""
    recipe = recipe_of_stage(experiment, index)
    return apply(model, recipe, example) if recipe.rules else model


def rehearse(model: nn.Module, experiment: Experiment, example: Tensor) -> None:
    """Applies the recipes of all stages to a copy: one that does not fit is told before the first epoch.

    The global random state stays; what the parts warn of is said when their stage begins.
    """
    trial = copy_model(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in range(len(experiment.stage)):
            apply_stage(trial, experiment, index, example)
