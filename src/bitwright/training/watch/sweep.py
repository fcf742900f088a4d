"""sweep.csv: accuracy of a net with 0/1 weights over the weight value, where `log.sweep_every` asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitwright.analysis.sweep_result import WeightSweep
from bitwright.analysis.sweep_words import SPAN, spread
from bitwright.analysis.zero_one_nets import zero_one_layers
from bitwright.numbers import percent
from bitwright.runs.tables import Swept
from bitwright.training.watch.watcher import Ended, Rows, Watcher

FACTS = ("images", "train_images", "digital", "limit", "trained_on", "output", "ranking", "norms")


class SweepWatcher(Watcher):
    table = Swept

    def rows(self, ended: Ended) -> Rows:
        """Every `log.sweep_every` epochs of a stage, and after its last one."""
        job, log, state = ended.job, ended.job.experiment.log, ended.job.state
        last = state.epoch + 1 == job.experiment.stage[state.stage].epochs
        if (
            not log.sweep_every
            or not ((state.epoch + 1) % log.sweep_every == 0 or last)
            or not zero_one_layers(job.net)
        ):
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
                progress=lambda what, done, total: ended.check(),
            )  # fmt: skip
            facts = {key: getattr(sweep, key) for key in FACTS}
            rows += [{**ended.at, "norm": norm, **row, **facts} for row in sweep.rows]
            if job.main:
                job.screen.note(line(sweep))
        return rows

    def scalars(self, row: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
        for key in ("accuracy", "preactivation", "agreement"):
            yield f"sweep_{row['norm']}_{key}/{row['on']:.1f}", row[key]


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
