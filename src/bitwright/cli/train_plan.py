"""`bitwright train --dry-run`: what a training would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.cli.output import Output

if TYPE_CHECKING:
    from bitwright.experiment import Experiment

# float32 copies of the weights in a checkpoint: the weights, and what the optimizer keeps of each
_COPIES = {"sgd": 1, "adam": 3, "adamw": 3, "nadam": 3, "rmsprop": 2}


def show_plan(screen: Output, experiment: Experiment, folder: Path) -> None:
    """The plan of each stage, steps, and an upper guess of the disk space."""
    import torch

    from bitwright.cli.plan import LIMIT, show_table
    from bitwright.numbers import kb
    from bitwright.runs import apply_stage, build_model, recipe_of_stage
    from bitwright.runs.build import example_of
    from bitwright.training.job import accelerator, open_data
    from bitwright.training.loader import steps_per_epoch
    from bitwright.transforms.plan import plan

    accelerator(experiment)
    train, test, _ = open_data(experiment)
    per_epoch = steps_per_epoch(len(train), experiment.data.batch, experiment.train.devices)
    with torch.random.fork_rng(devices=[]):
        net = build_model(experiment, test)
        example = example_of(experiment, train)
        screen.result(
            f"{experiment.data.name} {len(train):,} train / {len(test):,} test, batch {experiment.data.batch}"
        )
        for index, stage in enumerate(experiment.stage):
            recipe = recipe_of_stage(experiment, index)
            steps = stage.epochs * per_epoch
            screen.result(
                f"\nstage {index}: {stage.epochs} epoch{'s' if stage.epochs != 1 else ''} x {per_epoch} steps = {steps:,} steps, {stage.optimizer.name} "
                f"lr {stage.optimizer.lr:g}, {stage.schedule.name}, loss {stage.loss}"
                + (f", teacher {getattr(stage.teacher, 'source', stage.teacher)}" if stage.teacher else "")
            )
            if recipe.rules:
                table = plan(net, recipe, example)
                show_table(screen, table, LIMIT, f"stage {index}")
                apply_stage(net, experiment, index, example)
            else:
                done = stage.procedure
                screen.result(f"procedure {done.name}" if done else "no recipe: the net stays as it is")
    size = 4 * sum(value.numel() for value in net.state_dict().values())
    copies = max(_COPIES[stage.optimizer.name] + (stage.optimizer.momentum > 0) for stage in experiment.stage)
    disk = size * (2 * copies + len(experiment.stage) + 2)  # two checkpoints while one is written, stages, model, best
    total = sum(stage.epochs for stage in experiment.stage) * per_epoch
    screen.result(f"\ntotal {total:,} steps; disk at most about {kb(disk)} kB and TensorBoard's logs, in {folder}")
    screen.data["dry_run"] = {"steps": total, "disk_bytes": disk, "run": str(folder)}
