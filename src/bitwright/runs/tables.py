"""What the tables of a run hold: one class per CSV or JSON file.

Here a file is declared, and nowhere else: `Run.write(Table, rows)` and `Run.read(Table)` go by the class, the list of files in
`file_list.py` and the documentation by the first paragraph of its docstring. Accuracies are shares from 0 to 1; None is unknown.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from bitwright.runs import cells
from bitwright.runs.cells import Count, Items, Known, Number, PerEpoch, PerLayer, Row, Table, Text, Texts, Whole


# -- from training -----------------------------------------------------------------------------------------------------
class Status(Table):
    """Status, stage, epoch, test accuracy, warnings so far, pictures left out."""

    file = "state.json"
    status: Text = ""
    stage: Whole = None
    epoch: Whole = None
    step: Whole = None
    stages: Whole = None
    test_top1: Number = None
    test_images: Whole = None
    warnings: Texts = ()
    seconds: Number = None
    float_top1: Number = None
    skipped_pictures: Whole = None


class Epoch(PerEpoch):
    """A row per epoch: loss, top1, top5, test accuracy, rate, time per step; with gates MACs and bit operations per test
    image.

    seconds       with the evaluation
    flips, dead   means over the layers of `Health`
    """

    file, always = "metrics.csv", True
    step: Whole = None
    loss: Number = None
    top1: Number = None
    top5: Number = None
    test_loss: Number = None
    test_top1: Number = None
    test_top5: Number = None
    val_loss: Number = None
    val_top1: Number = None
    lr: Number = None
    data_ms: Number = None
    step_ms: Number = None
    images_per_s: Number = None
    seconds: Number = None
    flips: Number = None
    dead: Number = None
    macs: Number = None
    dense_macs: Number = None
    bops: Number = None
    dense_bops: Number = None


class Health(PerLayer):
    """A row per epoch and low-bit layer: flips, dead, scale, saturation, positive."""

    file, always = "health.csv", True
    flips: Number = None
    dead: Number = None
    scale: Number = None
    saturation: Number = None
    positive: Number = None


class Connected(PerLayer):
    """Nets with 0/1 weights: a row per epoch and layer: share and number of weights that are on, fan-in, units without
    input, live units."""

    file = "connections.csv"
    share: Number = None
    weights: Count
    units: Count
    on: Count
    fan_in_mean: Number = None
    fan_in_max: Whole = None
    no_input: Whole = None
    live: Whole = None


class Gate(PerLayer):
    """Nets with gates: a row per epoch and gate: share of decisions that were on, thresholds, target, `keep`, saliency."""

    file = "gates.csv"
    gate: Text = ""
    rate: Number = None
    threshold_mean: Number = None
    threshold_min: Number = None
    threshold_max: Number = None
    target: Number = None
    keep: Number = None
    saliency: Number = None
    mean_bits: Number = None


class Swept(PerEpoch):
    """With `log.sweep_every`: a row per sweep, norm mode and weight value: accuracy, accuracy by pre-activation,
    agreement with the circuit, and what the sweep was made with."""

    file = "sweep.csv"
    norm: Text = ""
    on: Known
    accuracy: Known
    preactivation: Number = None
    agreement: Known
    tied: Known
    images: Count
    train_images: Whole = None
    digital: Number = None
    limit: Number = None
    trained_on: Number = None
    output: Text = ""
    ranking: Text = ""
    norms: Whole = None


class ImageWork(Table):
    """Nets with gates: work per test image."""

    file = "compute.csv"
    index: Count
    true: Count
    said: Count
    macs: Count
    bops: Count


class GateClass(Table):
    """Nets with gates: rate per gate and class."""

    file = "gate_classes.csv"
    layer: Text = ""
    number: Count = Field(alias="class")
    rate: Number = None


class GateWork(Table):
    """Nets with gates: what the work is made of.

    quadratic_macs        as papers of fbs count, every map taken for as sparse as the sparsest map in it
    unweighted_sparsity   decisions off / decisions, as the public codes print it
    gated_bits, net_bits  mean bits of inputs, over the products of layers gated by precision and of the net
    """

    file = "work.json"
    overhead_macs: Number = None
    comparisons: Number = None
    quadratic_macs: Number = None
    quadratic_reduction: Number = None
    unweighted_sparsity: Number = None
    gated_bits: Number = None
    net_bits: Number = None


class Prediction(Table):
    """What the net said of each test image."""

    file = "predictions.csv"
    index: Count
    true: Count
    said: Count
    confidence: Number = None
    float_said: Whole = None


class Classes(Table):
    """Names of the classes."""

    file = "classes.json"
    classes: Texts = ()


class Skipped(Table):
    """Pictures that could not be read and were left out, with `--skip-bad`."""

    file = "skipped.csv"
    split: Text = ""
    picture: Text = ""
    why: Text = ""


# -- from analyze, convert and bench -----------------------------------------------------------------------------------
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
    """From `analyze`: counts and curves of all layers.

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


class NetResult(Table):
    """A row per net and peer: accuracy, bytes, time."""

    file, open = "results.csv", True
    name: Text = Field(default="", alias="net")
    precision: Text = ""
    accuracy: Number = None
    images: Whole = None
    bytes: Number = None
    ms: Number = Field(default=None, alias="latency_ms")
