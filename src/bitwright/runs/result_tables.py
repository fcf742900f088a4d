"""The tables that commands write into a run after its training: analyze, compress, convert, bench; see `tables.py`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from bitwright.runs import cells
from bitwright.runs.cells import Count, Items, Known, Number, Row, Table, Text, Texts, Whole


class Dimension(Row):
    """A layer of pca.json: its components, those of the layer it is compared with, and its cumulative variance."""

    layer: Text = Field(default="", alias="name")
    channels: cells.Sum = 0
    components: cells.Sum = 0
    chosen: bool = False
    before: Text = ""
    before_components: Whole = None
    shares: cells.Numbers = ()

    @property
    def rise(self) -> int | None:
        return None if self.before_components is None else self.components - self.before_components


class Choice(Row):
    """Layers of k bits that stand beside the PCA choice; everything in it is computed."""

    name: Text = Field(default="", alias="choice")
    layers: Texts = ()
    share: Number = None
    storage_bytes: Number = None
    compression: Number = None
    energy_efficiency: Number = None


class Components(Table):
    """From `analyze pca`: counts and curves of all layers.

    before   layer -> the one it is compared with;   significant   layers that were chosen
    """

    file = "pca.json"
    layers: Items[Dimension] = ()
    before: cells.Facts = {}
    significant: Texts = ()
    threshold: Known = 0.0
    delta: Number = None
    relative: Number = None
    budget: Number = None
    images: Whole = None
    bits: cells.Slashed = ""
    stable: bool | None = None
    choices: Items[Choice] = Field(default=(), alias="compared")


class WeightValue(Row):
    """One weight value of a sweep: counts of images."""

    on: Known
    right_images: Count
    preactivation_images: Whole = None
    agree_images: Count
    tied_images: Count


class Sweep(Row):
    """A sweep in one norm mode."""

    norm: Text = ""
    images: Count
    train_images: Whole = None
    digital: Number = None
    limit: Number = None
    trained_on: Number = None
    output: Text = ""
    ranking: Text = ""
    norms: Whole = None
    rows: Items[WeightValue] = ()


class Sweeps(Table):
    """From `analyze sweep`: accuracy over the weight value of a net with 0/1 weights, in up to three norm
    modes."""

    file = "sweep.json"
    batch: Whole = None
    sweeps: Items[Sweep] = ()


class Layer(Table):
    """From `convert`: a row per layer.

    In the order they run. Bits 32 is float, None unknown (counted as float).
    """

    file = "layers.csv"
    name: Text = Field(default="", alias="layer")
    kind: Text = ""
    w: Text = ""
    x: Text = ""
    w_bits: Whole = None
    x_bits: Whole = None
    macs: Whole = None
    runs_as: Text = ""
    bytes_before: Number = None
    bytes_after: Number = None
    ms_before: Number = None
    ms_after: Number = None
    max_abs_diff: Number = None
    why: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _bits(cls, values: dict[str, Any]) -> dict[str, Any]:
        """In convert.json both are one text: "1/2", or "float"."""
        if "bits" not in values:
            return values
        w, _, x = str(values["bits"]).partition("/")
        both = w.isdecimal() and x.isdecimal()
        return {**values, "w_bits": w if both else 32, "x_bits": x if both else 32}

    @property
    def gain(self) -> float | None:
        """Float time / packed time of this layer."""
        return self.ms_before / self.ms_after if self.ms_before is not None and self.ms_after else None


class ChangedClass(Row):
    """An image whose class the packed net changed."""

    index: Whole = -1
    trained: Whole = -1
    packed: Whole = -1
    margin: Number = None
    first_layer: Text = ""


class UnexplainedValue(Row):
    """A value that rounding cannot explain: the first image it was seen on, its largest difference and the bound."""

    where: Text = ""
    difference: Number = None
    bound: Number = None
    image: Whole = None


class ComparedOutput(Row):
    """One output of the net, as the trained and the packed net gave it. kind: what was compared, "classes" or "values"."""

    name: Text = ""
    kind: Text = ""
    images: Whole = None
    same: Whole = None
    largest: Number = None
    bound: Number = None
    answers: cells.Facts = {}


class Conversion(Table):
    """From `convert`: the proof.

    form      "graph", or "layers": the model's own code with packed layers in it; form_why: why, lost: fusions lost at most
    classes   different ones that the trained net gave;   blind: why equal answers prove little
    untimed   why there are no times. Times are those of the short check
    """

    file = "convert.json"
    status: Text = ""
    verdict: Text = ""
    images: cells.Sum = 0
    same: cells.Sum = 0
    form: Text = ""
    form_why: Text = ""
    lost: Whole = None
    layers_exact: cells.Flag = False
    codes_checked: cells.Sum = 0
    largest_difference: Number = None
    disagreements: Items[ChangedClass] = ()
    beyond: Items[UnexplainedValue] = ()
    outputs: Items[ComparedOutput] = ()
    classes: Whole = None
    blind: Text = ""
    untimed: Text = ""
    file_bytes: Number = None
    float_bytes: Number = None
    ms_before: Number = None
    ms_after: Number = None
    accuracy: Number = None
    trained_accuracy: Number = None
    rows: Items[Layer] = ()


class ProcedureDone(Row):
    """What one procedure did. stage: None for the command line. rows: of its report, whose columns are its own."""

    stage: Whole = None
    procedure: Text = ""
    samples: Whole = None
    rows: Items[cells.Facts] = ()
    recipe: Text = ""


class Procedures(Table):
    """From stages with a `procedure`, and from `compress`: a row per layer, and the recipe that the net was left with."""

    file = "procedures.json"
    procedures: Items[ProcedureDone] = ()


class Candidate(Row):
    """A program that was measured. `ratio` is its time / ours: larger is better for us."""

    name: Text = ""
    precision: Text = ""
    ms: Number = Field(default=None, alias="latency_ms")
    q1: Number = Field(default=None, alias="latency_q1_ms")
    q3: Number = Field(default=None, alias="latency_q3_ms")
    runs: Whole = None
    per_second: Number = None
    ratio: Number = None
    best: cells.Flag = Field(default=False, alias="best_of_precision")
    note: Text = ""


class Bench(Table):
    """From `bench`: times beside other programs.

    Our net is the first row.
    """

    file = "bench.json"
    rows: Items[Candidate] = ()
    machine: cells.Facts = {}
    batch: Count = 1
    input: cells.Counts = ()
    rounds: Whole = None
    clock: Text = ""
    quality: Text = ""
    why: Texts = ()

    @property
    def ours(self) -> Candidate | None:
        """None where our net was not measured."""
        return self.rows[0] if self.rows and self.rows[0].ms is not None else None

    @property
    def ran_in(self) -> str:
        """The program that ran our net, where the faster of two is quoted: "torch", "onnxruntime"; else nothing."""
        first = self.ours.note.partition(";")[0] if self.ours else ""
        return first if first in ("torch", "onnxruntime") else ""

    @property
    def missing(self) -> dict[str, str]:
        """What was not measured: each reason once, with the names it holds for."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row.ms is None:
                found.setdefault(row.note.removeprefix("unavailable: "), []).append(row.name)
        return {why: ", ".join(names) for why, names in found.items()}

    @property
    def fastest(self) -> Candidate | None:
        """The fastest measured peer of any precision."""
        return min((r for r in self.rows[1:] if r.ms is not None), key=lambda r: r.ms or 0.0, default=None)

    def best(self, precision: str) -> Candidate | None:
        """The fastest measured peer of a precision."""
        return next((r for r in self.rows[1:] if r.precision == precision and r.best and r.ms is not None), None)


class Export(Table):
    """From `export`: a row per file that was written, wherever it lies.

    path     from the run's folder;   bytes   of this file
    source   the file of the run that it was made from, and `digest` the beginning of its sha256 then
    check    how it was compared, and with what result
    """

    file = "exports.csv"
    form: Text = ""
    path: Text = ""
    bytes: Whole = None
    source: Text = ""
    digest: Text = ""
    check: Text = ""


class ImageTime(Table):
    """From `bench --images`: time of each test image alone."""

    file = "latency.csv"
    index: Count
    us: Known


class NetResult(Table):
    """A row per net and peer: accuracy, bytes, time."""

    file, open = "results.csv", True
    name: Text = Field(default="", alias="net")
    precision: Text = ""
    accuracy: Number = None
    images: Whole = None
    bytes: Number = None
    ms: Number = Field(default=None, alias="latency_ms")
