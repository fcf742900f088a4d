"""predictions.csv, classes.json and worst.safetensors -> the Errors section."""

from __future__ import annotations

import numpy as np

from bitwright.errors import InputError
from bitwright.reporting.images import data_uri
from bitwright.reporting.sections import Errors, Mistake
from bitwright.reporting.tables import Cells, rows
from bitwright.reporting.weights import opened
from bitwright.runs.folder import Run

MOST = 24  # pictures on a page
CLASSES = 65_536  # where no file names them


def errors_of(run: Run, most: int = MOST) -> Errors | None:
    """None where the run has no predictions; `most` pictures."""
    table = rows(run.read_csv("predictions.csv"), "predictions.csv")
    if not table:
        return None
    names = Cells(run.read_json("classes.json"), "classes.json").texts("classes")
    counts: dict[tuple[int, int], int] = {}
    by_index: dict[int, tuple[int, int, float | None, int | None]] = {}
    only_ours, compared = 0, False
    for row in table:
        index, true, said = (_needed(row, key) for key in ("index", "true", "said"))
        before = row.integer("float_said")
        counts[true, said] = counts.get((true, said), 0) + 1
        by_index[index] = (true, said, row.number("confidence"), before)
        compared |= before is not None
        only_ours += said != true and before == true
    classes = max(len(names), 1 + max(max(pair) for pair in counts))
    if classes > max(len(names), CLASSES):  # a page has a line for each
        raise InputError(
            f"report: predictions.csv names class {classes - 1:,}; possible: below {CLASSES:,}", code="run-damaged"
        )
    names = tuple(names[i] if i < len(names) else str(i) for i in range(classes))
    return Errors(names, counts, _mistakes(run, names, by_index)[:most], only_ours if compared else None)


def _needed(row: Cells, key: str) -> int:
    value = row.integer(key)
    if value is None or value < 0:
        raise InputError(f"report: {row.where}: {key} is missing or negative", code="run-damaged")
    return value


def _mistakes(
    run: Run, names: tuple[str, ...], by_index: dict[int, tuple[int, int, float | None, int | None]]
) -> tuple[Mistake, ...]:
    path = run.file("worst.safetensors")
    if not path.is_file():
        return ()
    with opened(path) as f:
        if not {"images", "index"} <= set(f.keys()):
            raise InputError(f"report: {path} has no images and index", code="run-damaged", given=str(path))
        images, index = f.get_tensor("images"), f.get_tensor("index")
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(index):
        raise InputError(f"report: {path}: images are not uint8 [n, C, H, W]", code="run-damaged", given=str(path))
    found = []
    for image, i in zip(images[:MOST], index.tolist(), strict=False):
        if i not in by_index:
            continue  # of an earlier evaluation: nothing is known about it now
        true, said, confidence, before = by_index[i]
        right = None if before is None else before == true
        found.append(Mistake(i, names[true], names[said], confidence, right, data_uri(image)))
    return tuple(found)
