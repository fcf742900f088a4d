"""What `convert` says: a row per layer, the verification, the verdict."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from bitwright import numbers
from bitwright.engine import report_text
from bitwright.timing import NOISY, quality

PASS, WARN, REFUSE = "PASS", "WARN", "REFUSE"
STAYS = ("float", "your code")  # a layer that is not packed


@dataclass
class ReportRow:
    """One layer. Bytes: as float32 and as stored. ms: median of the float operator and of ours, example's batch."""

    layer: str
    kind: str
    runs_as: str  # bits | int8 | bits on disk, float run | float | your code
    bits: str
    bytes_before: int
    bytes_after: int
    max_abs_diff: float | None = None
    ms_before: float | None = None
    ms_after: float | None = None
    why: str = ""


@dataclass
class Disagreement:
    """One image whose class differs between the trained and the packed net."""

    index: int
    trained: int
    packed: int
    margin: float  # between the trained net's two best outputs
    first_layer: str  # whose input codes differ first; "" where no code differs
    output: str = ""  # which one of several: `[0]`, `['logits']`


@dataclass
class Beyond:
    """A value that rounding cannot explain: the first image it was seen on, its largest difference and the bound."""

    where: str  # `input of LAYER` or `output`, `output[0]`, ...
    difference: float
    bound: float
    image: int


@dataclass
class OutputProof:
    """What was seen of one output. `classes`: a float [N, C], judged by its largest entry; else `values`."""

    name: str
    kind: str
    images: int = 0
    same: int = 0
    largest: float = 0.0  # difference in two ordinary runs
    bound: float = 0.0  # of the difference where both nets get the same codes
    answers: dict[int, int] = field(default_factory=dict)  # class of the trained net -> images
    labels: dict[int, int] = field(default_factory=dict)
    right: int = 0  # of the trained net, where the batches have labels

    def count(self, classes: Tensor, target: Any) -> None:
        """Adds the trained net's classes of a batch, and how many of them its labels call right."""
        _add(self.answers, classes)
        if isinstance(target, Tensor) and target.shape == classes.shape and not target.is_floating_point():
            _add(self.labels, target)
            self.right += int((target.cpu() == classes).sum())

    @property
    def blind(self) -> str:
        """Why equal answers prove little here, or "": the trained net gives one class, or guesses."""
        if self.kind != "classes" or self.images < FEW:
            return ""
        if len(self.answers) == 1:
            return f"the trained net gives one class for all {self.images:,} images, so that equal classes prove little"
        labeled = sum(self.labels.values())
        if labeled >= FEW:
            guess = max(self.labels.values()) / labeled
            if self.right / labeled <= guess + 2 * (guess * (1 - guess) / labeled) ** 0.5:
                return (
                    f"the trained net is right on {self.right / labeled:.1%} of the images, no better than always "
                    f"answering the most frequent class ({guess:.1%})"
                )
        return ""


FEW = 16  # images below which the number of classes says nothing


def _add(count: dict[int, int], values: Tensor) -> None:
    for value, n in zip(*(t.tolist() for t in values.unique(return_counts=True)), strict=True):
        count[int(value)] = count.get(int(value), 0) + n


@dataclass
class ConvertReport:
    """`.status` is PASS, WARN or REFUSE; `str()` is the table.

    form   "graph", or "layers": the user's module with packed layers in place, and why, and how many fusions that
           loses at most
    """

    rows: list[ReportRow]
    status: str = REFUSE
    verdict: str = ""
    backend: str = ""
    isa: str = ""
    images: int = 0
    same: int = 0  # class as the trained net gives it in float32
    form: str = "graph"
    form_why: str = ""
    lost: int = 0
    layers_exact: bool = True
    codes_checked: int = 0
    largest_difference: float | None = None
    disagreements: list[Disagreement] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    beyond: list[Beyond] = field(default_factory=list)
    outputs: list[OutputProof] = field(default_factory=list)
    file_bytes: int | None = None  # of the packed net's file; None where none is to be written
    float_bytes: int | None = None  # of a file with the float net of the same topology
    ms_before: float | None = None
    ms_after: float | None = None
    level: bool = False  # the two times differ by less than their noise
    spread: float | None = None  # the larger quartile spread of the two times, as a share of its median
    untimed: str = ""  # why there are no times, where there are none

    @property
    def refused(self) -> list[ReportRow]:
        """Layers that stay float although their slots ask for bits."""
        return [r for r in self.rows if r.why and r.runs_as in STAYS]

    @property
    def classes(self) -> int:
        """Different classes that the trained net gave: the fewest of any output with classes; 0 without one."""
        return min((len(o.answers) for o in self.outputs if o.kind == "classes"), default=0)

    @property
    def blind(self) -> str:
        """Why equal answers prove little, or ""."""
        return next((o.blind for o in self.outputs if o.blind), "")

    @property
    def gated(self) -> list[ReportRow]:
        """Layers whose gate a packed net cannot run."""
        return [r for r in self.rows if r.why.startswith("gate ")]

    @property
    def bytes_before(self) -> int:
        return sum(r.bytes_before for r in self.rows)

    @property
    def bytes_after(self) -> int:
        return sum(r.bytes_after for r in self.rows)

    def to_dict(self) -> dict[str, Any]:
        d = asdict(self)
        d["bytes_before"], d["bytes_after"] = self.bytes_before, self.bytes_after
        d["classes"], d["blind"] = self.classes, self.blind
        return d

    def to_csv(self) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(ReportRow.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in self.rows)
        return out.getvalue()

    @property
    def near_ties(self) -> int:
        """Images with another class although no code differs: only float layers round otherwise."""
        return sum(1 for d in self.disagreements if not d.first_layer)

    @property
    def smaller(self) -> str:
        """`33.1x smaller`: the packed file against the float net's file; "" where there is none."""
        return numbers.smaller(self.float_bytes, self.file_bytes) if self.float_bytes and self.file_bytes else ""

    def gain(self) -> str:
        """`33.1x smaller, 4.5x faster than float in torch`, as far as it was measured."""
        words = [self.smaller] if self.smaller else []
        if self.ms_before and self.ms_after:
            factor, _, slower = numbers.ratio(self.ms_before / self.ms_after).partition(" ")
            speed = f"{factor} float in torch {slower}" if slower else f"{factor} faster than float in torch"
            words.append("as fast as float in torch within noise" if self.level else speed)
            words += ["noisy times"] if self.noisy and not self.level else []
        return ", ".join(words)

    @property
    def noisy(self) -> str:
        """What is wrong with the two times, by the rule of `bench`; "" where nothing is."""
        return quality(self.spread or 0.0) if (self.spread or 0.0) > NOISY else ""

    @property
    def share(self) -> tuple[float, str]:
        """(share of images with the same answer, `class` or `values`: what was compared)."""
        values = bool(self.outputs) and not self.classes
        return self.same / self.images if self.images else 1.0, "values" if values else "class"

    def to_markdown(self) -> str:
        return report_text.markdown(self)

    def table(self, width: int | None = None, limit: int | None = None) -> list[str]:
        """Lines of the table, and what is gained; with `limit` a run of more than that many like layers is cut short."""
        return report_text.table(self, width, limit)

    def proof(self, width: int | None = None, what: str = "images", limit: int | None = 10) -> list[str]:
        """Lines on the verification and, at most `limit` of them, on images whose class differs."""
        return report_text.proof(self, width, what, limit)

    def __str__(self) -> str:
        return "\n".join([*self.table(), *self.proof(), f"{self.status}  {self.verdict}"])

    def form_line(self) -> str:
        """`runs with your code, 3 fusions lost: reason`; "" in graph form."""
        if self.form == "graph":
            return ""
        lost = f", {self.lost} fusion{'s' if self.lost != 1 else ''} lost" if self.lost else ""
        return f"runs with your code{lost}" + (f": {self.form_why}" if self.form_why else "")
