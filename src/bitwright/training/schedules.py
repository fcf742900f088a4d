"""The factor on the learning rate: a plain function of the step, so that a resume needs no state of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitwright.experiment.schema import Schedule


def factor(schedule: Schedule, step: int, per_epoch: int, epochs: int) -> float:
    """What multiplies the base rate at a step of a stage, counted from 0; plateau's own factor comes on top.

    warmup   rises linearly to 1 over `warmup` epochs; the first step already moves: (step + 1) / steps of warmup
    cosine and linear run from 1 at the end of the warmup to `final` at the last step of the stage

    >>> from bitwright.experiment.schema import Schedule
    >>> [factor(Schedule(name="linear"), step, 5, 1) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    rise = round(schedule.warmup * per_epoch)
    if step < rise:
        return (step + 1) / rise
    epoch = step // per_epoch
    if schedule.name == "step":
        return schedule.gamma ** (epoch // schedule.every)
    if schedule.name == "milestones":
        return schedule.gamma ** sum(epoch >= at for at in schedule.at)
    if schedule.name in ("cosine", "linear"):
        way = (step - rise) / max(1, per_epoch * epochs - rise - 1)  # 0 at the first step after warmup, 1 at the last
        shape = (1 + math.cos(math.pi * way)) / 2 if schedule.name == "cosine" else 1 - way
        return schedule.final + (1 - schedule.final) * shape
    return 1.0


@dataclass
class Plateau:
    """`gamma` each time the watched loss has not fallen for more than `patience` epochs.

    >>> from bitwright.experiment.schema import Schedule
    >>> plateau, rule = Plateau(), Schedule(name="plateau", patience=1, gamma=0.5)
    >>> [plateau.update(rule, loss) for loss in (3.0, 2.0, 2.0, 2.5, 2.1)]
    [1.0, 1.0, 1.0, 0.5, 0.5]
    """

    best: float = math.inf
    bad: int = 0
    factor: float = 1.0

    def update(self, schedule: Schedule, loss: float) -> float:
        """One epoch's loss; returns the factor from here on. A fall counts from 0.01 % on."""
        if schedule.name != "plateau":
            return self.factor
        if loss < self.best * (1 - 1e-4):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.bad > schedule.patience:
            self.factor *= schedule.gamma
            self.bad = 0
        return self.factor
