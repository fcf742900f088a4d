"""What the tables of a run hold: one class per CSV or JSON file; those of training here, the others in `result_tables.py`.

Here a file is declared, and nowhere else: `Run.write(Table, rows)` and `Run.read(Table)` go by the class, the list of files in
`file_list.py` and the documentation by the first paragraph of its docstring. Accuracies are shares from 0 to 1; None is unknown.
"""

from __future__ import annotations

from pydantic import Field

from bitwright.runs.cells import Count, Known, Number, PerEpoch, PerLayer, Table, Text, Texts, Whole


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
