"""What `convert` says: a row per layer, the verification, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, ClassVar

from torch import Tensor

from bitwright import numbers
from bitwright.tabular import Row, Tabular, fit, wrap
from bitwright.timing import NOISY, quality

PASS, WARN, REFUSE = "PASS", "WARN", "REFUSE"
STAYS = ("float", "your code")  # a layer that is not packed


@dataclass
class ReportRow:
    """One layer. Bytes: as float32 and as stored. ms: median of the float operator and of ours, example's batch."""

    layer: str
    kind: str
    runs_as: str  # bits | int8 | gated (in float) | bits on disk, float run | float | your code
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
        self.answers = dict(Counter(self.answers) + Counter(classes.tolist()))
        if isinstance(target, Tensor) and target.shape == classes.shape and not target.is_floating_point():
            self.labels = dict(Counter(self.labels) + Counter(target.tolist()))
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
                always = f"no better than always answering the most frequent class ({guess:.1%})"
                return f"the trained net is right on {self.right / labeled:.1%} of the images, {always}"
        return ""


FEW = 16  # images below which the number of classes says nothing


HEADERS = ("layer", "runs as", "w/x", "kB float", "kB", "ms float", "ms", "max diff", "why")
DROP = ("max diff", "kB float", "ms float")  # left out on a narrow screen, in this order


@dataclass
class ConvertReport(Tabular):
    """`.status` is PASS, WARN or REFUSE; `str()` is the table.

    form   "graph", or "layers": the user's module with packed layers in place, and why, and how many fusions that
           loses at most
    """

    text: ClassVar[Collection[int]] = (0, 1, 2, 8)  # columns of words

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
        """Layers whose gate a packed net cannot run; a gate that it runs is named behind `gated:`."""
        return [r for r in self.rows if r.why.startswith("gate ")]

    @property
    def bytes_before(self) -> int:
        return sum(r.bytes_before for r in self.rows)

    @property
    def bytes_after(self) -> int:
        return sum(r.bytes_after for r in self.rows)

    def to_dict(self) -> dict[str, Any]:
        more = ("bytes_before", "bytes_after", "classes", "blind")
        return asdict(self) | {key: getattr(self, key) for key in more}

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

    def cells(self) -> list[list[str]]:
        """Texts of the head and the rows; the last one is the whole net: bytes of its files, time of a whole run."""
        rows = [
            [
                *(r.layer, r.runs_as, r.bits, numbers.kb(r.bytes_before), numbers.kb(r.bytes_after)),
                *(numbers.ms(r.ms_before), numbers.ms(r.ms_after), _difference(r.max_abs_diff)),
                r.why.replace("its slots are empty", "slots empty"),
            ]
            for r in self.rows
        ]
        count = Counter(r.runs_as for r in self.rows)
        order = sorted(count, key=lambda kind: ("bits", "int8").index(kind) if kind in ("bits", "int8") else 2)
        kinds = ", ".join(f"{count[kind]} {kind}" for kind in order)
        sizes = [numbers.kb(self.float_bytes), numbers.kb(self.file_bytes)]
        times = [numbers.ms(self.ms_before), numbers.ms(self.ms_after)]
        return [list(HEADERS), *rows, ["whole net", kinds, "", *sizes, *times, "", self.gain()]]

    def table(self, width: int | None = None, limit: int | None = None) -> list[str]:
        """Lines of the table, and what is gained; with `limit` a run of more than that many like layers is cut short."""
        _, *rows, total = self.cells()
        body: list[Row] = []
        for _, group in groupby(zip(self.rows, rows, strict=True), key=lambda pair: _alike(pair[0])):
            alike = list(group)
            shown = len(alike) if limit is None or len(alike) <= limit + 1 else limit
            body += [texts for _, texts in alike[:shown]]
            if shown < len(alike):
                body.append(f"...  {len(alike) - shown} more {alike[0][0].runs_as} layers (--all)")
        *total, gain = total
        merged: list[str | None] = [*(None if i == 2 else text for i, text in enumerate(total)), ""]
        lines = fit(HEADERS, [*body, merged], width, right=range(3, 8), drop=DROP)
        return [*lines, *(wrap(f"gain       {gain}", width, 11) if gain else [])]

    def proof(self, width: int | None = None, what: str = "images", limit: int | None = 10) -> list[str]:
        """Lines on the verification and, at most `limit` of them, on images whose class differs."""
        if not self.images:
            return ["verify  not done"]
        distinct = f" ({self.classes} different)" if self.classes else ""
        exact = "equal bit for bit" if self.layers_exact else "DIFFER: " + ", ".join(self.inexact)
        layers = self.codes_checked
        codes = f"codes of {layers} layers {exact}" if layers else "no layer computes with codes"
        lines = [
            f"verify  {self.same:,} of {self.images:,} {what}: same {self.share[1]} as the trained net{distinct}; "
            f"largest output difference {self.largest_difference or 0:.0e}",
            f"        {codes}{'' if self.beyond else '; values up to rounding'}",
        ]
        lines += [
            f"        {b.where}: off by {b.difference:.1e}, rounding explains {b.bound:.1e} (image {b.image})"
            for b in self.beyond[:limit]
        ]
        lines += [
            f"        output{o.name}: {o.same:,} of {o.images:,} same {o.kind}, largest difference {o.largest:.0e}"
            for o in (self.outputs if len(self.outputs) > 1 else [])
        ]
        shown = self.disagreements[:limit]
        lines += [
            f"        image {d.index}{d.output and f', output{d.output}'}: trained {d.trained}, packed {d.packed}, margin "
            f"{d.margin:.1e}, first differing layer {d.first_layer or 'none (float head)'}"
            for d in shown
        ]
        if len(self.disagreements) > len(shown):
            lines.append(f"        ... {len(self.disagreements) - len(shown)} more in .disagreements (--details)")
        return [part for line in lines for part in wrap(line, width, 8)]

    def __str__(self) -> str:
        return "\n".join([*self.table(), *self.proof(), f"{self.status}  {self.verdict}"])

    def form_line(self) -> str:
        """`runs with your code, 3 fusions lost: reason`; "" in graph form."""
        if self.form == "graph":
            return ""
        lost = f", {self.lost} fusion{'s' if self.lost != 1 else ''} lost" if self.lost else ""
        return f"runs with your code{lost}" + (f": {self.form_why}" if self.form_why else "")


def _alike(r: ReportRow) -> tuple[str, ...]:
    return r.kind.split()[0] if r.kind else "", r.runs_as, r.bits, r.why


def _difference(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.0e}"
