"""What a watcher is, and what its lessons may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bitwright.runs.cells import Table
from bitwright.runs.tables import Epoch

if TYPE_CHECKING:
    from bitwright.experiment import Experiment
    from bitwright.experiment.schema import Stage
    from bitwright.training.evaluate import Evaluation
    from bitwright.training.job import Job
    from bitwright.training.state import State

Lesson = tuple[str, str]  # key, text: told once per stage
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Ended:
    """An epoch whose steps are done: the training, what it says of the test images, and what may stop a long watcher.

    check   called between long steps; may raise to end them
    """

    job: Job
    test: Evaluation
    check: Callable[[], None]

    @property
    def at(self) -> dict[str, int]:
        """The first two cells of each row."""
        return {"stage": self.job.state.stage, "epoch": self.job.state.epoch}


@dataclass(frozen=True)
class Past:
    """The training so far, at the end of an epoch whose rows are in `state`.

    signed            whether a layer's inputs become {-1, +1}
    classes, images   of the test set
    """

    experiment: Experiment
    state: State
    signed: Callable[[str], bool]
    classes: int
    images: int

    @property
    def stage(self) -> Stage:
        return self.experiment.stage[self.state.stage]

    @property
    def epoch(self) -> int:
        return self.state.rows(Epoch)[-1]["epoch"]

    def now(self, table: type[Table]) -> Rows:
        """The rows of the epoch just ended."""
        return [r for r in self.state.rows(table) if (r["stage"], r["epoch"]) == (self.state.stage, self.epoch)]

    def fresh(self, key: str, layers: Iterable[str]) -> list[str]:
        """The layers that this lesson was not told of yet. All but the first are marked as told here: one line names them all."""
        found = [layer for layer in layers if f"{self.state.stage} {key} {layer}" not in self.state.told]
        self.state.told += [f"{self.state.stage} {key} {layer}" for layer in found[1:]]
        return found

    def rate(self, factor: float) -> str:
        """What to type for another learning rate."""
        return f"stage.{self.state.stage}.optimizer.lr={self.stage.optimizer.lr * factor:.1g}"


class Watcher:
    """Fills one table of the run: the rows of each epoch, what TensorBoard gets of them, and what they teach."""

    table: ClassVar[type[Table]]

    def rows(self, ended: Ended) -> Rows:
        raise NotImplementedError

    def scalars(self, row: dict[str, Any]) -> Iterable[tuple[str, float | None]]:
        return ()

    def lessons(self, past: Past) -> Iterable[Lesson]:
        return ()

    def words(self, rows: Rows) -> str:
        """What it adds to the line of the epoch."""
        return ""


def more(layers: list[str]) -> str:
    """ "conv1 and 2 more"."""
    return layers[0] + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")
