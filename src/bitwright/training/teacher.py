"""The net that a stage imitates: the stage before, a net of the zoo, a run, or a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bitwright import zoo
from bitwright.engine.files import load
from bitwright.errors import InputError
from bitwright.experiment.schema import Teacher
from bitwright.runs import build_model, is_run
from bitwright.runs.build import normalized
from bitwright.runs.weight_files import put_weights, read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitwright.experiment import Experiment
    from bitwright.training.job import Job


class Normalized(nn.Module):
    """A teacher that learned on normalized pixels, for a student that reads them as they are: (x - mean) / std first."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def make_teacher(job: Job) -> tuple[nn.Module | None, Teacher | None]:
    """The net that the stage at hand imitates, always read from its file: the same after a resume."""
    index = job.state.stage
    rule = job.experiment.stage[index].teacher
    if rule is None:
        return None, None
    net, fed = _read(job, rule.source, index)
    if fed and not job.normalize:
        net = Normalized(net, job.train.mean, job.train.std)
    elif job.normalize and not fed:
        raise InputError(
            f"stage {index}: teacher {rule.source} reads pixels as they are, this stage gets them normalized",
            code="teacher",
            given=rule.source,
        )
    if job.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net.eval().requires_grad_(False), rule


def _read(job: Job, source: str, index: int) -> tuple[nn.Module, bool]:
    """The teacher, and whether it learned on normalized pixels."""
    if zoo.is_zoo(source):
        return zoo.load(source, form="float"), zoo.card(source).normalize
    if source == "previous":
        if index == 0:
            raise InputError("stage 0: teacher = previous, but there is no stage before it", code="teacher")
        path, fed = job.run.file(f"stages/{index - 1}.safetensors"), normalized(job.experiment, index)
    else:
        path, fed = _file(source), job.normalize
    net = build_model(job.experiment, job.test, weights=False)
    where = f"stage {index}: teacher"
    tensors, metadata = read_weights(path, where)
    if "bitwright" in metadata:
        load(path, net)
    else:
        put_weights(net, tensors, f"{where} {path}", "teacher")
    return net, fed


def check_teachers(experiment: Experiment) -> None:
    """Checked before any work, so that a later stage does not find its teacher missing or with other classes."""
    for index, stage in enumerate(experiment.stage):
        source = "previous" if stage.teacher is None else stage.teacher.source
        if zoo.is_zoo(source):
            card = zoo.card(source)
            if card.data != experiment.data.name:
                raise InputError(
                    f"stage {index}: teacher {source} was trained on {card.data}, this experiment is on "
                    f"{experiment.data.name}",
                    code="teacher",
                    given=source,
                )
            zoo.load(source, form="float")
        elif source != "previous" and not _file(source).is_file():
            raise InputError(
                f"stage {index}: teacher {source}: no such file, and no run with a trained net",
                code="teacher",
                given=source,
                possible='"previous", "zoo:NAME", a run, or a file of weights',
            )


def _file(source: str) -> Path:
    return Path(source) / "model.safetensors" if is_run(source) else Path(source)
