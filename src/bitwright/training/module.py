"""The LightningModule: one step of training, and what the checkpoint holds."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from bitwright.analysis import Budget
from bitwright.experiment.schema import Teacher
from bitwright.training.job import Job
from bitwright.training.loader import EpochLoader
from bitwright.training.losses import Loss, distilled
from bitwright.training.optimizers import make_optimizer
from bitwright.transforms import penalty

BUDGET_IMAGES = 128  # the thresholds are set on these to meet the budget in evaluation, at the end of each epoch


class NotFinite(Exception):
    """The loss of a step, or the net, is not finite; `what` begins the message, `images` are those of the step."""

    def __init__(self, what: str, images: Tensor | None = None) -> None:
        super().__init__(what)
        self.what, self.images = what, images


class TrainingModule(pl.LightningModule):
    """net, loss, teacher and penalty of one stage.

    The teacher is not a submodule: it is neither trained nor saved, and DDP does not see it.
    """

    def __init__(self, job: Job, loss: Loss, teacher: nn.Module | None, rule: Teacher | None) -> None:
        super().__init__()
        self.net = job.net
        self.job, self.loss = job, loss
        self.teacher = (teacher, rule) if teacher is not None and rule is not None else None  # a tuple hides it
        stage = job.experiment.stage[job.state.stage]
        self.budget: Budget | None = None  # no module either
        if stage.budget is not None:
            spec = stage.budget
            self.budget = Budget(
                job.net, job.example(BUDGET_IMAGES), macs=spec.macs, bops=spec.bops, weight=spec.weight
            )
        self.loader: EpochLoader | None = None
        self.resumed: dict[str, Any] | None = None  # what `on_load_checkpoint` found, until the first batch
        self.sums: Tensor | None = None  # loss, top1, top5, images of the epoch, on the device

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher[0].to(self.device)
        s = self.job.state.sums
        self.sums = torch.tensor([s.loss, s.top1, s.top5, s.images], dtype=torch.float64, device=self.device)
        mine = self._mine()
        if mine is not None:
            self.sums.copy_(torch.tensor(mine["sums"], dtype=torch.float64))

    def _mine(self) -> dict[str, Any] | None:
        """What this process saved."""
        return None if self.resumed is None else self.resumed["ranks"][self.job.rank]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        index = self.job.state.stage
        return make_optimizer(self.net, self.job.experiment.stage[index].optimizer, f"stage {index}: optimizer")

    def train_dataloader(self) -> EpochLoader:
        """Lightning asks for it in each epoch: after a resume it gives the rest of the epoch."""
        job, data = self.job, self.job.experiment.data
        self.loader = EpochLoader(
            job.train,
            data.batch,
            seed=job.experiment.seed,
            epoch=job.epochs_before + job.state.epoch,
            start=job.state.batch,
            workers=data.workers,
            rank=job.rank,
            world=job.world,
            augment=data.augment,
            **job.feed(),
        )
        return self.loader

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        outputs = self.net(x).float()
        loss = self.loss(outputs, y)
        if self.teacher is not None:
            teacher, rule = self.teacher
            with torch.no_grad():
                goal = teacher(x).float()
            loss = distilled(loss, outputs, goal, rule.weight, rule.temperature)
        loss = loss + penalty(self.net)
        if self.budget is not None:
            loss = loss + self.budget.penalty()
        self._check(loss, x)
        self._count(loss.detach(), outputs.detach(), y)
        if self.job.world > 1:  # the mean over processes is to be the mean over images, also of an uneven last batch
            loss = loss * (len(y) * self.job.world / self._whole(index))
        return loss

    def _whole(self, index: int) -> int:
        """Images of the whole batch, over all processes."""
        size, position = self.job.experiment.data.batch, self.job.state.batch
        return min(size, len(self.job.train) - position * size)

    def _check(self, loss: Tensor, x: Tensor) -> None:
        """Before backward, so that weights and checkpoint stay good. All processes stop together."""
        if self._any_process(~torch.isfinite(loss.detach())):
            raise NotFinite(f"loss became {float(loss.detach())}", x)

    def check_net(self) -> None:
        """Before a checkpoint: a step may have left weights that the next loss would show to be bad."""
        values = [*self.net.parameters(), *(b for b in self.net.buffers() if b.is_floating_point())]
        bad = torch.stack([~torch.isfinite(value.detach()).all() for value in values]).any()
        if self._any_process(bad):
            raise NotFinite("weights became infinite or nan")

    def refit(self) -> None:
        """At the end of an epoch: fits the thresholds so that evaluation, with its running statistics, meets the budget too."""
        if self.budget is not None:
            self.budget.refit(self.job.example(BUDGET_IMAGES).to(self.device))

    def _any_process(self, bad: Tensor) -> bool:
        flag = bad.float()
        if self.job.world > 1:
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def _count(self, loss: Tensor, outputs: Tensor, y: Tensor) -> None:
        best = outputs.topk(min(5, outputs.shape[1]), 1).indices == y[:, None]
        row = torch.stack([loss.double() * len(y), best[:, 0].sum(), best.sum(), torch.ones_like(loss) * len(y)])
        if self.sums is not None:
            self.sums += row.detach()

    # -- the checkpoint -----------------------------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Position and counters are ours; Lightning's own loop counters would say the same less exactly."""
        checkpoint.pop("loops", None)
        cuda = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        sums = [0.0] * 4 if self.sums is None else self.sums.tolist()
        mine = {"cpu": torch.random.get_rng_state(), "cuda": cuda, "sums": sums}
        ranks: list[Any] = [mine]
        if self.job.world > 1:
            ranks = [None] * self.job.world
            torch.distributed.all_gather_object(ranks, mine)
        checkpoint["bitwright"] = {
            "state": self.job.state.to_dict(),
            "ranks": ranks,
            "experiment": self.job.run.read_text("experiment.toml"),
            "budget": {} if self.budget is None else self.budget.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed = checkpoint["bitwright"]
        if self.budget is not None:
            self.budget.load_state_dict(checkpoint["bitwright"]["budget"])

    def restore_random(self) -> None:
        """Called right before the first batch, so that nothing that ran before it changes the random numbers."""
        mine = self._mine()
        if mine is not None:
            torch.random.set_rng_state(mine["cpu"])
            if mine["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(mine["cuda"])
        self.resumed = None
