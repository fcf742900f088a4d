"""One stage: recipe, calibration, teacher, one `Trainer.fit`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bitwright.errors import InputError, Negative, nearest
from bitwright.parts.moments import moment
from bitwright.runs import apply_stage
from bitwright.runs.tables import Epoch
from bitwright.training.job import Job, accelerator, precision_of, reseed
from bitwright.training.losses import make_loss
from bitwright.training.probe import coded_layers, latent_size
from bitwright.training.procedures import run_procedure
from bitwright.training.quiet_lightning import lightning_quiet
from bitwright.training.signals import StopRequest
from bitwright.training.teacher import make_teacher
from bitwright.transforms import calibrate
from bitwright.transforms.project import parts_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def run_stage(job: Job, checkpoint: Path | None) -> None:
    """Trains stage `job.state.stage` to its end; from `checkpoint` where a stage was left in the middle.

    Errors   `StopRequest` after a signal, with everything saved; `Negative` where the loss is not finite
    """
    state, experiment = job.state, job.experiment
    index = state.stage
    stage = experiment.stage[index]
    teacher, rule = make_teacher(job)
    frozen = freeze(job.net, stage.freeze, index)
    if checkpoint is None:
        _calibrate(job, stage.calibrate)
        state.scale = {name: latent_size(layer) for name, layer in coded_layers(job.net).items()}
    reseed(experiment.seed, index, job.rank)
    loss = make_loss(stage, index, home=experiment.home)
    job.net.train()
    try:
        with lightning_quiet():
            from bitwright.training.callback import TrainingCallback
            from bitwright.training.last_checkpoint import damaged
            from bitwright.training.module import NotFinite, TrainingModule

            module = TrainingModule(job, loss, teacher, rule)
            callback = TrainingCallback(job, module)
            trainer = make_trainer(job, callback)
            try:
                trainer.fit(module, ckpt_path=None if checkpoint is None else str(checkpoint))
            except NotFinite as error:
                raise not_finite(job, error.what, error.images) from None
            except Exception as error:
                if checkpoint is None or callback.started or isinstance(error, (InputError, OSError, StopRequest)):
                    raise
                raise damaged(checkpoint, error) from error
    except SystemExit:  # what Lightning makes of a KeyboardInterrupt
        raise KeyboardInterrupt from None
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        job.screen.pause()
    job.net.cpu()


def make_trainer(job: Job, callback: Any) -> Trainer:
    """Lightning's Trainer, with its own output, downloads and files switched off."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.strategies import DDPStrategy

    from bitwright.training.last_checkpoint import AtomicCheckpointIO

    train, stage = job.experiment.train, job.experiment.stage[job.state.stage]
    kind = accelerator(job.experiment)
    log: Any = False
    if job.experiment.log.tensorboard:
        # rows later than where we stand come again: TensorBoard drops what an interrupted run wrote of them
        log = TensorBoardLogger(str(job.run.path), name="tensorboard", version="", purge_step=job.total_step + 1)
    backend = "gloo" if kind == "cpu" else None
    precision: Any = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision_of(job.experiment)]
    return pl.Trainer(
        accelerator=kind,
        devices=train.devices,
        strategy=DDPStrategy(process_group_backend=backend) if train.devices > 1 else "auto",
        precision=precision,
        max_epochs=stage.epochs - job.state.epoch,
        gradient_clip_val=stage.clip,
        logger=log,
        callbacks=[callback],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(job.run.path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )


def begin_stage(job: Job, index: int, again: bool = False) -> None:
    """The recipe or procedure of a stage on the weights as they are; what earlier stages learned of their parts stays.

    again   a checkpoint is read next: a procedure does not run a second time
    """
    reseed(job.experiment.seed, index)
    before = [part for _, _, _, part in parts_of(job.net)]  # kept alive, so that ids stay theirs
    old = {id(part) for part in before}
    apply_stage(job.net, job.experiment, index, job.example())
    run_procedure(job, index, again)
    job.fresh = [part for _, _, _, part in parts_of(job.net) if id(part) not in old]
    if job.channels_last:
        job.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def freeze(net: nn.Module, globs: list[str], index: int) -> list[nn.Parameter]:
    """Parameters that do not learn in this stage; returned, to be thawed after it."""
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    chosen: dict[str, nn.Parameter] = {}
    for glob in globs:
        hits = {name: p for name, p in named.items() if fnmatchcase(name, glob)}
        if not hits:
            raise InputError(
                f"stage {index}: freeze {glob!r} matches no parameter.{nearest(glob, named)} "
                f"First names: {', '.join(list(named)[:6])}",
                code="freeze",
                given=glob,
            )
        chosen |= hits
    for parameter in chosen.values():
        parameter.requires_grad_(False)
    return list(chosen.values())


def _calibrate(job: Job, batches: int) -> None:
    """If any part that the stage made observes: the first training batches, not augmented."""
    if not batches or not any(moment(part, "observe") for part in job.fresh):
        return
    calibrate(job.net, job.first_batches(batches), norms="batch", parts=job.fresh)


def not_finite(job: Job, what: str, images: torch.Tensor | None) -> Negative:
    """The error of a NaN loss: where, the first layer with a bad number, what is left, what to try."""
    state, stage = job.state, job.experiment.stage[job.state.stage]
    layer, why = first_bad(job.net, images)
    kept = "none, nothing was written yet"
    if job.run.has("last.ckpt"):
        done = rows[-1] if (rows := state.rows(Epoch)) else None
        kept = "last.ckpt" + (f" (stage {done['stage']}, epoch {done['epoch']})" if done else "")
    remedy = f"stage.{state.stage}.optimizer.lr={min(stage.optimizer.lr * 0.1, 0.1):.1g}"
    if stage.clip is None:
        remedy += f", or stage.{state.stage}.clip=1.0"
    return Negative(
        f"train: {what} at stage {state.stage}, epoch {state.epoch}, step {state.batch}; "
        f"first bad layer {layer} ({why}). Last good state: {kept}. try: {remedy}",
        code="train-nan",
        layer=layer,
        remedy=remedy,
    )


@torch.no_grad()
def first_bad(net: nn.Module, images: torch.Tensor | None) -> tuple[str, str]:
    """(name, what is wrong): a parameter that is not finite, else the first module in execution order whose output is not."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            owner, _, key = name.rpartition(".")
            return owner or key, f"its {key} is {_word(tensor)}"
    found: list[tuple[str, str]] = []
    if images is None:
        return "none", "every weight is finite"

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append((name, f"its output is {_word(output)}"))

        return hook

    leaves = [(n, m) for n, m in net.named_modules() if n and not any(True for _ in m.children())]
    handles = [m.register_forward_hook(look(n)) for n, m in leaves]
    try:
        if not torch.isfinite(images).all():
            return "none", f"the images hold {_word(images)}"
        net(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ("none", "every output is finite, so the loss or a penalty is not")


def _word(tensor: torch.Tensor) -> str:
    return "nan" if torch.isnan(tensor).any() else "inf"


__all__ = ["StopRequest", "begin_stage", "run_stage"]
