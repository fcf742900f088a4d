"""What must fit together across the keys of an experiment."""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.errors import nearest
from bitwright.experiment.schema import OPTIMIZER_OPTIONS, Experiment, Stage
from bitwright.usercode import is_file

LOSSES = ("cross_entropy", "squared_hinge", "mse")
Path = tuple[str | int, ...]
Problem = tuple[tuple[Path, ...], str]  # the keys it is about, the one to name first; what is wrong


def problems(experiment: Experiment) -> Iterator[Problem]:
    """Nothing where all is well.

    >>> from bitwright.experiment.schema import Train
    >>> e = Experiment(stage=[Stage(epochs=1)], train=Train(precision="fp16", device="cpu"))
    >>> [text for _, text in problems(e)]
    ['fp16 needs a GPU; possible on device = "cpu": fp32, bf16']
    """
    data, train, expected = experiment.data, experiment.train, experiment.expected
    for table, name in (("model", experiment.model.name), ("data", data.name)):
        if ":" in name and not is_file(name):
            yield ((table, "name"),), f'name = "{name}" is a module; possible: file.py:name, a file in this folder'
    if data.limit is not None and data.val >= data.limit:
        text = f"val = {data.val} leaves no training image of limit = {data.limit}; possible: below {data.limit}"
        yield (("data", "val"), ("data", "limit")), text
    if train.precision == "fp16" and train.device == "cpu":
        text = 'fp16 needs a GPU; possible on device = "cpu": fp32, bf16'
        yield (("train", "precision"), ("train", "device")), text
    if expected is not None and expected.low > expected.high:
        text = f"low = {expected.low:g} is above high = {expected.high:g}; possible: low <= high"
        yield (("expected", "low"), ("expected", "high")), text
    for i, stage in enumerate(experiment.stage):
        for keys, text in _stage(i, stage):
            yield tuple(("stage", i, *key.split(".")) for key in keys), text


def _stage(i: int, stage: Stage) -> Iterator[tuple[tuple[str, ...], str]]:
    optimizer, schedule = stage.optimizer, stage.schedule
    if ":" in stage.loss and not is_file(stage.loss):
        yield ("loss",), f'loss = "{stage.loss}" is a module; possible: file.py:name, a file in this folder'
    if stage.recipe is not None and stage.rule:
        yield ("recipe", "rule"), "a stage has a recipe or rules, not both; to change a recipe, copy its rules"
    if stage.procedure is not None and (stage.recipe is not None or stage.rule):
        yield (
            ("procedure", "recipe", "rule"),
            "a stage has a procedure or a recipe, not both; possible: a stage for each",
        )
    if stage.teacher is not None and stage.teacher.source == "previous" and i == 0:
        yield (
            ("teacher.source", "teacher"),
            'no stage before this one; possible: a run, a file, or "previous" from stage 1',
        )
    if stage.loss not in LOSSES and ":" not in stage.loss:
        text = f'unknown loss "{stage.loss}".{nearest(stage.loss, LOSSES)} Possible: {", ".join(LOSSES)}, file.py:fn'
        yield ("loss",), text
    if stage.label_smoothing and stage.loss != "cross_entropy":
        text = f'label_smoothing belongs to cross_entropy, the loss is "{stage.loss}"; possible: 0'
        yield ("label_smoothing", "loss"), text
    for option, takers in OPTIMIZER_OPTIONS.items():
        if getattr(optimizer, option) and optimizer.name not in takers:
            owns = [key for key, names in OPTIMIZER_OPTIONS.items() if optimizer.name in names]
            text = (
                f"{option} is an option of {', '.join(takers)}; this is {optimizer.name}, which has {', '.join(owns)}"
            )
            yield (f"optimizer.{option}", "optimizer.name"), text
    if optimizer.nesterov and optimizer.name == "sgd" and not optimizer.momentum:
        text = "nesterov needs momentum; possible: momentum = 0.9, or nesterov = false"
        yield ("optimizer.nesterov", "optimizer.momentum", "optimizer.name"), text
    if schedule.name == "milestones" and not schedule.at:
        yield ("schedule.at", "schedule.name"), "milestones need their epochs; possible: at = [10, 15]"
