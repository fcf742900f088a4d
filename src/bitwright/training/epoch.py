"""The end of an epoch: evaluation, the rows of all tables, lessons, files; then the state stands at the start of the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from bitwright.numbers import percent
from bitwright.parts.traits import traits_of
from bitwright.runs.tables import Epoch
from bitwright.training.lessons import lessons
from bitwright.training.losses import make_loss
from bitwright.training.probe import coded_layers, mean_of, means
from bitwright.training.schedules import factor
from bitwright.training.watch import WATCHERS
from bitwright.training.watch.watcher import Ended
from bitwright.training.work_words import work_text
from bitwright.transforms import recipe_of
from bitwright.transforms.facts import quantizer_of

if TYPE_CHECKING:
    from bitwright.runs import Run
    from bitwright.training.evaluate import Evaluation
    from bitwright.training.job import Job
    from bitwright.training.state import State
    from bitwright.training.watch.watcher import Rows, Watcher


def end_epoch(
    job: Job, sums: Callable[[], list[float]], writer: Any = None, device: Any = "cpu", shared: bool = False
) -> None:
    """Everything between the last step of an epoch and its checkpoint; done again, with the same outcome, if the process dies
    before that is written.

    sums     loss, top1, top5, images of the epoch over all processes, asked for once
    writer   TensorBoard's;   shared: all processes are here
    Errors   `StopRequest` while it evaluates; then the state is as before
    """
    state, stage, before = job.state, job.experiment.stage[job.state.stage], time.perf_counter()

    job.check(device, shared)
    loss = make_loss(stage, state.stage, smoothing=False, home=job.experiment.home)
    test = job.evaluate(job.test, loss, device, shared)
    val = None if job.val is None else job.evaluate(job.val, loss, device, shared)
    ended = Ended(job, test, lambda: job.check(device, shared))
    found = {watcher: watcher.rows(ended) for watcher in WATCHERS}
    elapsed = time.perf_counter() - before
    state.sums.seconds += elapsed
    state.seconds += elapsed
    _finish(job, sums(), test, val, found, writer)


def _finish(
    job: Job, sums: list[float], test: Evaluation, val: Evaluation | None, found: dict[Watcher, Rows], writer: Any
) -> None:
    """Rows, lessons, best and stage files, one printed line."""
    from bitwright.engine.files import save

    state, stage = job.state, job.experiment.stage[job.state.stage]
    rule = stage.schedule
    rate = factor(rule, max(0, state.step - 1), job.per_epoch, stage.epochs) * state.plateau.factor
    row = epoch_row(state, sums, test, val, stage.optimizer.lr * rate)
    state.rows(Epoch).append(row)
    for watcher, rows in found.items():
        state.rows(watcher.table).extend(rows)
    state.plateau.update(rule, row["loss"] if val is None else val.loss)
    last = state.epoch + 1 == stage.epochs
    if last and not recipe_of(job.net).rules:
        state.float_top1, state.float_stage = test.top1, state.stage
    signed = signed_inputs(job)
    new = lessons(job.experiment, state, lambda name: name in signed, len(job.test.classes), len(job.test))
    better = val is not None and (state.best is None or val.top1 > state.best)
    if better and val is not None:
        state.best = val.top1
    if job.main:
        if writer is not None:
            of_tables = (scalar for watcher, rows in found.items() for r in rows for scalar in watcher.scalars(r))
            for name, value in chain(_scalars(row), of_tables):
                if value is not None:
                    writer.add_scalar(name, value, job.total_step)
            writer.flush()
        job.screen.epoch(row, epoch_line(row) + "".join(watcher.words(rows) for watcher, rows in found.items()))
        for text in new:
            job.screen.warn(text)
        write_tables(job.run, state)
        if better:
            save(job.net, job.run.file("best.safetensors"))
        if last:
            job.run.file("stages").mkdir(exist_ok=True)
            save(job.net, job.run.file(f"stages/{state.stage}.safetensors"))
    state.epoch += 1
    state.begin_epoch()


def write_tables(run: Run, state: State) -> None:
    """Writes whole files: after a resume, rows later than the checkpoint are dropped and written again."""
    for table in (Epoch, *(watcher.table for watcher in WATCHERS)):
        if table.always or state.rows(table):
            run.write(table, state.rows(table))
        else:
            run.file(table.file).unlink(missing_ok=True)


def epoch_row(state: State, sums: list[float], test: Evaluation, val: Evaluation | None, lr: float) -> dict[str, Any]:
    """The row of metrics.csv; sums: loss, top1, top5, images over all processes."""
    loss, top1, top5, images = sums
    s, health = state.sums, means(state.health)
    busy = s.data_seconds + s.step_seconds
    return {
        **dict.fromkeys(Epoch.columns()),
        "stage": state.stage, "epoch": state.epoch, "step": state.step,
        "loss": loss / images, "top1": top1 / images, "top5": top5 / images,
        "test_loss": test.loss, "test_top1": test.top1, "test_top5": test.top5,
        **({} if val is None else {"val_loss": val.loss, "val_top1": val.top1}),
        "lr": lr, "data_ms": s.data_seconds / s.steps * 1e3, "step_ms": s.step_seconds / s.steps * 1e3,
        "images_per_s": images / busy if busy else None, "seconds": s.seconds,
        "flips": mean_of(health, "flips"), "dead": mean_of(health, "dead"),
        **({} if test.work is None else test.work.means()),
    }  # fmt: skip


def _scalars(row: dict[str, Any]) -> Iterable[tuple[str, float | None]]:
    place = {"loss": "train/loss", "top1": "train/top1", "top5": "train/top5"}
    for key, value in row.items():
        head, _, tail = key.partition("_")
        if key not in ("stage", "epoch", "step"):
            yield place.get(key) or (f"{head}/{tail}" if head in ("test", "val") else f"run/{key}"), value


def stage_name(job: Job) -> str:
    """The stage's recipe; `float` before any."""
    stage = job.experiment.stage[job.state.stage]
    if stage.recipe:
        return stage.recipe.rpartition("/")[2].removesuffix(".toml")
    if stage.rule:
        return "rules"
    return "same" if recipe_of(job.net).rules else "float"


def signed_inputs(job: Job) -> set[str]:
    """Coded layers whose inputs become -1 or +1."""
    found = ((name, quantizer_of(layer.x)) for name, layer in coded_layers(job.net).items())
    return {n for n, part in found if traits_of(part).bits == 1 and traits_of(part).signed}


def epoch_line(row: dict[str, Any]) -> str:
    text = (
        f"stage {row['stage']}  epoch {row['epoch']:>3}  loss {row['loss']:.3f}  train {percent(row['top1'])} %  "
        f"test {percent(row['test_top1'])} %"
    )
    if row["val_top1"] is not None:
        text += f"  val {percent(row['val_top1'])} %"
    text += f"  lr {row['lr']:.3g}  {row['seconds']:.1f} s"
    for key in ("flips", "dead"):
        if row[key] is not None:
            text += f"  {key} {row[key] * 100:.2g} %"
    if row["macs"] is not None:
        text += "  " + work_text(*(row[key] for key in ("macs", "dense_macs", "bops", "dense_bops")))
    return text
