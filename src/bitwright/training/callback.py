"""The one callback: attach, clocks, probes, histograms, checkpoints and signals."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from bitwright.numbers import percent, significant
from bitwright.training.epoch import end_epoch, stage_name
from bitwright.training.histograms import Histograms
from bitwright.training.optimizers import set_rate
from bitwright.training.probe import Probe, add, coded_layers
from bitwright.training.schedules import factor
from bitwright.training.signals import StopRequest
from bitwright.transforms import attach

if TYPE_CHECKING:
    from bitwright.training.job import Job
    from bitwright.training.module import TrainingModule

RATE_AFTER = 50  # steps after which loader and training are compared


class TrainingCallback(pl.Callback):
    """The callback of one stage. Position and counters live in `job.state`; Lightning only runs the loop."""

    def __init__(self, job: Job, module: TrainingModule) -> None:
        self.job, self.module = job, module
        self.started = False  # a first step is done, so all of a checkpoint was good
        self.stage = job.experiment.stage[job.state.stage]
        self.layers = coded_layers(job.net)
        self.probe: Probe | None = None
        self.histograms: Histograms | None = None
        self.writer: Any = None
        self._handle: Any = None
        self._tick = self._epoch_start = time.perf_counter()
        self._waited = 0.0
        self._step_made = (0.0, 0, 0.0)

    # -- begin and end ------------------------------------------------------------------------------------------------
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.job.signals.listen()  # after Lightning put its own handler in
        threads = self.job.experiment.train.threads
        if threads is not None:
            torch.set_num_threads(threads)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._handle = attach(self.job.net, trainer.optimizers[0])
        if self.job.main and trainer.loggers:
            self.writer = getattr(trainer.loggers[0], "experiment", None)
        self._tick = self._epoch_start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clean()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._clean()

    def _clean(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        if self.probe is not None:
            self.probe.remove()
        self.probe = None
        if self.module.budget is not None:
            self.module.budget.remove()

    # -- a step -------------------------------------------------------------------------------------------------------
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        job, state, log = self.job, self.job.state, self.job.experiment.log
        set_rate(trainer.optimizers[0], self._rate())
        if job.main:
            every = log.health_every
            if every and self.layers and state.batch % every == min(every, job.per_epoch) // 2:
                self.probe = Probe(self.layers, state.scale)
            due = log.histograms_every and state.step % log.histograms_every == 0
            if self.writer is not None and log.histograms_every and (due or state.batch + 1 == job.per_epoch):
                self.histograms = Histograms(job.net)
        self.module.restore_random()

    def _rate(self) -> float:
        job, state = self.job, self.job.state
        return factor(self.stage.schedule, state.step, job.per_epoch, self.stage.epochs) * state.plateau.factor

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        job, state = self.job, self.job.state
        if self.probe is not None:
            add(state.health, self.probe.read())
            self.probe = None
        if self.module.budget is not None:
            self.module.budget.step()
        self.started = True
        state.step += 1
        state.batch += 1
        if self.histograms is not None:
            self.histograms.write(self.writer, job.total_step)
            self.histograms = None
        self._clock()
        last = state.batch == job.per_epoch
        stopping = job.stopping(pl_module.device)
        if not last and (stopping or state.step % job.experiment.train.checkpoint_every == 0):
            self._save(trainer)
        if stopping and not last:
            raise StopRequest
        if job.main and not last:
            job.screen.step(self._head(), state.batch, job.per_epoch, self._tail)

    def _clock(self) -> None:
        job, sums, loader = self.job, self.job.state.sums, self.module.loader
        now = time.perf_counter()
        seconds, self._tick = now - self._tick, now
        waited = 0.0 if loader is None else loader.waited - self._waited
        self._waited += waited
        sums.steps += 1
        sums.data_seconds += waited
        sums.step_seconds += seconds - waited
        sums.seconds += seconds
        job.state.seconds += seconds
        job.left.step(seconds)
        if job.main and not job.told_rate and loader is not None:
            self._tell_rate(loader, now, loader.made, loader.images)

    def _tell_rate(self, loader: Any, now: float, made: float, images: int) -> None:
        """Both rates from the same steps of this training, the first few left out."""
        steps = self.job.left.steps
        if steps == 1 or self._step_made[1] == 0 or images < self._step_made[1]:
            self._step_made = (now, images, made)
        begin, had, spent = self._step_made
        enough = steps >= RATE_AFTER or self.job.state.batch == self.job.per_epoch
        if not enough or images <= had or made <= spent:
            return
        self.job.told_rate = True
        alone, training = (images - had) / (made - spent), (images - had) / (now - begin)
        verdict = (
            "is not the bottleneck"
            if alone > 2 * training
            else f"slows it down, try: data.workers={loader.workers + 1}"
        )
        self.job.screen.note(
            f"loader alone {significant(alone)} img/s, training {significant(training)} img/s: the loader {verdict}"
        )

    def _save(self, trainer: pl.Trainer) -> None:
        self.module.check_net()
        before = time.perf_counter()
        trainer.save_checkpoint(self.job.run.file("last.ckpt"))
        self._tick = time.perf_counter()  # writing does not count as time of a step
        self.job.save_seconds = self._tick - before

    # -- the end of an epoch --------------------------------------------------------------------------------------------
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the results of the epoch, then the checkpoint that counts the epoch as done."""
        job, device = self.job, pl_module.device
        self.module.check_net()
        self.module.refit()
        try:
            end_epoch(job, self._sums, self.writer, device, shared=True)
        except StopRequest:  # the epoch's steps are done, its evaluation is not: a resumed training begins with it
            self._save(trainer)
            raise
        self._save(trainer)
        if job.main:
            job.write_status("training")
        self._waited, self._tick = 0.0, time.perf_counter()
        job.check(device, shared=True)

    def _sums(self) -> list[float]:
        """The sums of the epoch over all processes; the running ones are set to zero."""
        sums = self.module.sums
        assert sums is not None
        total = sums.clone()
        sums.zero_()
        if self.job.world > 1:
            torch.distributed.all_reduce(total)
        return total.tolist()

    # -- words --------------------------------------------------------------------------------------------------------
    def _head(self) -> str:
        state, last = self.job.state, len(self.job.experiment.stage) - 1
        return f"stage {state.stage}/{last} {stage_name(self.job)}  epoch {state.epoch}/{self.stage.epochs}"

    def _tail(self) -> str:
        job, state = self.job, self.job.state
        assert self.module.sums is not None
        loss, top1, _, images = self.module.sums.tolist()
        rate = images * job.world / max(state.sums.seconds, 1e-9)
        later = sum(stage.epochs for stage in job.experiment.stage[state.stage :]) * job.per_epoch - state.step
        return (
            f"loss {loss / images:.3f}  train {percent(top1 / images)} %  {significant(rate)} img/s  "
            f"{job.left.text(later)}"
        ).rstrip()
