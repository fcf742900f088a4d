"""All that a page lacks, by name: what its head and its sections say is missing, with commands for this run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections import SECTIONS
from bitwright.reporting.sections.section import REPORT, Gap
from bitwright.reporting.sections.training import RESUME
from bitwright.runs.tables import Status


def gaps(run: RunData) -> dict[str, Gap]:
    found = dict(chain(_head(run), *(section.gaps(run) for section in SECTIONS)))
    if run.origin.path is None:
        return {key: replace(gap, command=gap.python) for key, gap in found.items()}
    folder, file = shlex.quote(run.origin.path), shlex.quote(f"{run.origin.path}/experiment.toml")
    watched = shlex.quote(f"{run.origin.path}-watched")
    return {
        key: replace(gap, command=gap.command.format(run=folder, experiment=file, watched=watched))
        for key, gap in found.items()
    }


def _head(run: RunData) -> Iterator[tuple[str, Gap]]:
    if run.conversion is None:
        why = "This net has not been packed, so size and equality are unknown."
        yield "convert", Gap(why, "bitwright convert {run}", REPORT)
    status = run.one(Status)
    if status is not None and status.status in ("training", "stopped"):
        yield "unfinished", Gap("Training has not finished; the figures are of the last epoch so far.", RESUME)
