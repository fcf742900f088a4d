"""Nets of 0/1 weights while they train: which connections are on after each epoch, and sweeps of the weight value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bitwright.analysis.sweep_result import WeightSweep, percent
from bitwright.analysis.sweep_words import SPAN, spread
from bitwright.analysis.zero_one_nets import zero_one_layers

if TYPE_CHECKING:
    from bitwright.training.job import Job

CONNECTIONS = (
    "stage", "epoch", "layer", "share", "weights", "units", "on", "fan_in_mean", "fan_in_max", "no_input", "live",
)  # fmt: skip
FACTS = ("images", "train_images", "digital", "limit", "trained_on", "output", "ranking", "norms")
SWEEP = ("stage", "epoch", "norm", "on", "accuracy", "preactivation", "agreement", "tied", *FACTS)
Rows = list[dict[str, Any]]


def connection_rows(job: Job) -> Rows:
    """Of connections.csv: a row per 0/1 layer as it is after the epoch."""
    if not zero_one_layers(job.net):
        return []
    from bitwright.analysis.connections import connections

    device = next(job.net.parameters()).device
    found = connections(job.net, job.example().to(device))
    return [{"stage": job.state.stage, "epoch": job.state.epoch, **row.to_dict()} for row in found.rows]


def sweep_rows(job: Job, check: Callable[[], None]) -> Rows:
    """Of sweep.csv, if a sweep is due after this epoch: every `log.sweep_every` epochs of a stage, and after its last one.

    check   called between two evaluations; may raise to end the sweep
    """
    log, state = job.experiment.log, job.state
    last = state.epoch + 1 == job.experiment.stage[state.stage].epochs
    if not log.sweep_every or not ((state.epoch + 1) % log.sweep_every == 0 or last) or not zero_one_layers(job.net):
        return []
    from bitwright.analysis.weight_sweep import weight_sweep
    from bitwright.transforms.batch_norms import batch_norms

    device = next(job.net.parameters()).device
    feed = {"normalize": job.normalize, "channels_last": job.channels_last, "device": device}
    size = job.experiment.data.eval_batch
    test, train = (images.limit(min(len(images), log.sweep_images)) for images in (job.test, job.train))
    rows: Rows = []
    for norm in log.sweep_norms if batch_norms(job.net) else log.sweep_norms[:1]:  # without norms all modes are one
        sweep = weight_sweep(
            job.net, test.batches(size, **feed), "large", norm, train.batches(size, **feed),
            progress=lambda what, done, total: check(),
        )  # fmt: skip
        facts = {key: getattr(sweep, key) for key in FACTS}
        rows += [{"stage": state.stage, "epoch": state.epoch, "norm": norm, **row, **facts} for row in sweep.rows]
        if job.main:
            job.screen.note(line(sweep))
    return rows


def line(sweep: WeightSweep) -> str:
    """
    >>> from bitwright.analysis.sweep_result import SweepPoint
    >>> line(WeightSweep("batch", 10, (SweepPoint(0.5, 9, 9, 8), SweepPoint(1, 8, 8, 9)), trained_on=1.0))
    'sweep, batch statistics: 80.0 to 90.0 % over weights 0.5 to 4, as the circuit 90.0 % at 1'
    """
    low, high = spread(sweep) or (None, None)
    text = (
        f"sweep, {sweep.norm} statistics: {percent(low)} to {percent(high)} % over weights {SPAN[0]:g} to {SPAN[1]:g}"
    )
    own = sweep.trained_on
    return (
        text if own not in sweep.agreement else f"{text}, as the circuit {percent(sweep.agreement[own])} % at {own:g}"
    )


def on_text(rows: Rows) -> str:
    """For the epoch's line: share of the weights that are on, over all 0/1 layers."""
    from bitwright.analysis.connections import share_text

    weights = sum(row["weights"] for row in rows)
    return f"  on {share_text(sum(row['on'] for row in rows) / weights)} %" if weights else ""
