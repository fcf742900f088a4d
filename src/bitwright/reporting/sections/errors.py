"""What does it get wrong? The answers to the test images, and the surest mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bitwright.errors import InputError
from bitwright.reporting.images import data_uri
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections.section import Gap, Section
from bitwright.reporting.tensor_files import pictures
from bitwright.runs.tables import Classes, Prediction

MOST = 24  # pictures on a page
CLASSES = 65_536  # where no file names them
MATRIX_CLASSES = 30  # more are a list of the most confused pairs


@dataclass(frozen=True)
class Mistake:
    """One of the surest wrong answers; `picture` is a PNG data URI."""

    index: int
    true: str
    said: str
    confidence: float | None
    float_right: bool | None
    picture: str


@dataclass(frozen=True)
class Errors:
    """Counts of (true, said) over the test images, by class number."""

    classes: tuple[str, ...]
    counts: dict[tuple[int, int], int]
    mistakes: tuple[Mistake, ...] = ()
    only_ours: int | None = None  # wrong here, right in the float net

    @property
    def images(self) -> int:
        return sum(self.counts.values())

    @property
    def right(self) -> int:
        return sum(n for (true, said), n in self.counts.items() if true == said)

    def most_confused(self, n: int = 20) -> list[tuple[int, int, int]]:
        """(true, said, count), most frequent first."""
        pairs = [(true, said, count) for (true, said), count in self.counts.items() if true != said and count]
        return sorted(pairs, key=lambda p: (-p[2], p[0], p[1]))[:n]


class ErrorsSection(Section):
    name, title, place = "errors", "Errors", 70
    key, tables = "errors", (Prediction, Classes)

    def read(self, run: RunData) -> Errors | None:
        answers = run.rows(Prediction)
        if not answers:
            return None
        names = class_names(run, 1 + max(max(row.true, row.said) for row in answers), "predictions.csv")
        compared = [row for row in answers if row.float_said is not None]
        only_ours = sum(row.said != row.true == row.float_said for row in compared)
        by_index = {row.index: row for row in answers}
        most = MOST // 2 if run.path("compute.safetensors") else MOST  # a net with gates has others beside them
        mistakes = tuple(
            _mistake(by_index[index], names, image)
            for index, image in pictures(run.path("worst.safetensors"))[:most]
            if index in by_index  # else of an earlier evaluation: nothing is known about it now
        )
        counts = Counter((row.true, row.said) for row in answers)
        return Errors(names, dict(counts), mistakes, only_ours if compared else None)

    def view(self, run: RunData) -> dict[str, Any]:
        found = run["errors"]
        counts = found.counts if found else {}
        return {
            "matrix": found is not None and len(found.classes) <= MATRIX_CLASSES,
            "most_wrong": max((n for (true, said), n in counts.items() if true != said), default=1),
        }

    def json(self, run: RunData) -> dict[str, Any]:
        found = run["errors"]
        if found is None:
            return {"errors": None}
        counts = [[true, said, n] for (true, said), n in sorted(found.counts.items())]
        return {"errors": {"classes": found.classes, "counts": counts, "right": found.right, "images": found.images}}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        found = run["errors"]
        if found is None:
            yield "errors", Gap("The answers to the test images are not recorded.", "bitwright eval {run}")
        elif not found.mistakes and found.right < found.images:
            yield "mistakes", Gap("The images of the surest mistakes are not recorded.", "bitwright eval {run}")


def class_names(run: RunData, classes: int, file: str) -> tuple[str, ...]:
    """At least `classes` names; the number of a class where its name is not known."""
    named = run.one(Classes)
    names = named.classes if named else ()
    if classes > max(len(names), CLASSES):  # a page has a line for each
        raise InputError(f"report: {file} names class {classes - 1:,}; possible: below {CLASSES:,}", code="run-damaged")
    return names + tuple(str(i) for i in range(len(names), classes))


def _mistake(row: Prediction, names: tuple[str, ...], image: Any) -> Mistake:
    float_right = None if row.float_said is None else row.float_said == row.true
    return Mistake(row.index, names[row.true], names[row.said], row.confidence, float_right, data_uri(image))
