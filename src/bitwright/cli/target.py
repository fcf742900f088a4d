"""A run directory or an experiment where a command also takes a file or a model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.cli.output import Output
from bitwright.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitwright.cli.model_argument import Shape
    from bitwright.data import Dataset, Images
    from bitwright.experiment import Experiment
    from bitwright.runs import Run


def looks_like_run(target: str) -> bool:
    """A folder: a run, or a mistake that `open_run` explains. Needs no torch.

    >>> looks_like_run("resnet20")
    False
    """
    return Path(target).is_dir()


def open_run(out: Output, target: str, command: str) -> Run:
    """The run at `target`; says so before the slow imports begin. Details of an internal error will go there."""
    if (Path(target) / "experiment.toml").is_file():
        out.begin(f"{command} {target}: reading the run")
    from bitwright.runs import Run

    run = Run.open(target, command)
    out.folder = run.path
    return run


def only_for_files(command: str, target: str, given: Mapping[str, Any]) -> None:
    """A run knows its model, data and shapes: an option that would say otherwise is a mistake, not ignored."""
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise InputError(
            f"{command} {target}: {wrong[0]} is for files and models; a run has its own experiment.toml. Leave it out",
            code="usage",
            given=wrong[0],
        )


def experiment_of(target: str) -> Experiment | None:
    """The experiment that `target` names: a run, a shipped name or a TOML file; None where it is none of these."""
    from bitwright import experiment

    if looks_like_run(target) or target.endswith(".toml") or target in experiment.names():
        return experiment.load(target)
    return None


def test_images(experiment: Experiment, data_root: str | None = None) -> Images:
    """The test images of an experiment; `data_root` where its data lies on this machine."""
    from bitwright.runs import dataset

    return dataset(at_root(experiment, data_root), "test")


def at_root(experiment: Experiment, data_root: str | None) -> Experiment:
    """The same experiment with its data at another place."""
    if data_root is None:
        return experiment
    return experiment.model_copy(update={"data": experiment.data.model_copy(update={"root": data_root})})


def experiment_net(experiment: Experiment, shape: Shape | None, classes: int) -> tuple[nn.Module, Tensor]:
    """The float net of an experiment, and one input as it will see it.

    shape   given: no data is looked for, the input is random
    """
    from bitwright.cli.model_argument import example
    from bitwright.runs import build_model, example_of

    if shape is not None:
        images = stand_in(shape, classes)
        return build_model(experiment, images, weights=False).eval(), example(shape)
    try:
        images = test_images(experiment)
    except InputError as error:
        if error.code != "data-missing":
            raise
        raise error.reworded(f"{error}. Or give the shape: --input 3,32,32 --classes 10") from None
    return build_model(experiment, images, weights=False).eval(), example_of(experiment, images, 1)


def stand_in(shape: Shape, classes: int) -> Dataset:
    """One black image: enough to know a model's sizes by where the data set itself is not at hand."""
    import torch

    from bitwright.data import Dataset

    if len(shape) != 3:
        given = ",".join(map(str, shape))
        raise InputError(
            f"--input {given} is not an image. Give channels,height,width", code="input-shape", given=given
        )
    image = torch.zeros(1, *shape, dtype=torch.uint8)
    channel = (0.5,) * shape[0]
    names = tuple(str(i) for i in range(classes))
    return Dataset("stand-in", image, torch.zeros(1, dtype=torch.int64), names, channel, channel)


def quoted(path: str | Path) -> str:
    """A path as a shell word, for a command that can be pasted.

    >>> quoted("my runs/a")
    "'my runs/a'"
    """
    return shlex.quote(str(path))


def trained_net(run: Run, images: Images) -> nn.Module:
    """The run's trained net in eval mode, sized by these images; an unfinished run is `Run.model`'s one line."""
    from bitwright.engine.files import load
    from bitwright.runs import build_model

    if not run.has("model.safetensors"):
        return run.model()
    return load(run.file("model.safetensors"), build_model(run.experiment, images, weights=False)).eval()
