"""What a report is made of: frozen data, one class per section. None always means unknown, never zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bitwright.measure.numbers import at_chance

if TYPE_CHECKING:
    from bitwright.reporting.gates import Gates
    from bitwright.reporting.selfprune import SelfPrune


@dataclass(frozen=True)
class Layer:
    """A compute layer, in execution order. Bits 32 is float, None unknown (counted as float)."""

    name: str
    kind: str = ""
    w: str = ""
    x: str = ""
    w_bits: int | None = None
    x_bits: int | None = None
    macs: int | None = None
    runs_as: str = ""
    bytes_before: float | None = None
    bytes_after: float | None = None
    ms_before: float | None = None
    ms_after: float | None = None
    max_abs_diff: float | None = None
    why: str = ""

    @property
    def gain(self) -> float | None:
        """Float time / packed time of this layer."""
        return self.ms_before / self.ms_after if self.ms_before is not None and self.ms_after else None


@dataclass(frozen=True)
class Disagreement:
    """An image whose class the packed net changed."""

    index: int
    trained: int
    packed: int
    margin: float | None
    first_layer: str


@dataclass(frozen=True)
class Conversion:
    """What `convert` said. Times are those of its short check, in ms."""

    status: str
    verdict: str = ""
    images: int = 0
    same: int = 0
    layers_exact: bool = True
    codes_checked: int = 0
    largest_difference: float | None = None
    file_bytes: float | None = None
    float_bytes: float | None = None
    ms_before: float | None = None
    ms_after: float | None = None
    accuracy: float | None = None
    trained_accuracy: float | None = None
    disagreements: tuple[Disagreement, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A row of the speed table. `ratio` is its time / ours: larger is better for us."""

    name: str
    precision: str
    ms: float | None = None
    q1: float | None = None
    q3: float | None = None
    runs: int | None = None
    per_second: float | None = None
    ratio: float | None = None
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Speed:
    """What `bench` measured; ours is the first row."""

    rows: tuple[Candidate, ...]
    machine: dict[str, Any]
    batch: int = 1
    input: tuple[int, ...] = ()
    rounds: int | None = None
    clock: str = ""
    quality: str = ""
    why: tuple[str, ...] = ()

    @property
    def ours(self) -> Candidate | None:
        """None where our net was not measured."""
        return self.rows[0] if self.rows and self.rows[0].ms is not None else None

    @property
    def fastest(self) -> Candidate | None:
        """The fastest measured peer of any precision."""
        measured = [r for r in self.rows[1:] if r.ms is not None]
        return min(measured, key=lambda r: r.ms or 0.0, default=None)

    def best(self, precision: str) -> Candidate | None:
        """The fastest measured peer of a precision."""
        return next((r for r in self.rows[1:] if r.precision == precision and r.best and r.ms is not None), None)


@dataclass(frozen=True)
class Net:
    """A row of results.csv."""

    name: str
    precision: str = ""
    accuracy: float | None = None
    images: int | None = None
    bytes: float | None = None
    ms: float | None = None


@dataclass(frozen=True)
class Epoch:
    """A row of metrics.csv; shares and losses."""

    stage: int
    epoch: int
    loss: float | None = None
    top1: float | None = None
    test_top1: float | None = None
    val_top1: float | None = None
    lr: float | None = None
    seconds: float | None = None
    macs: float | None = None  # per test image, of a net with gates
    dense_macs: float | None = None
    bops: float | None = None
    dense_bops: float | None = None


@dataclass(frozen=True)
class Health:
    """A row of health.csv."""

    stage: int
    epoch: int
    layer: str
    flips: float | None = None
    dead: float | None = None
    scale: float | None = None
    saturation: float | None = None
    positive: float | None = None


@dataclass(frozen=True)
class Training:
    """metrics.csv, health.csv and state.json."""

    epochs: tuple[Epoch, ...] = ()
    health: tuple[Health, ...] = ()
    status: str = ""
    test_top1: float | None = None
    test_images: int | None = None
    float_top1: float | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Latent weights of a layer divided by the largest of their sizes, in 20 equal bins from -1 to 1; latents of 0/1
    weights less their threshold."""

    layer: str
    counts: tuple[int, ...]
    largest: float

    @property
    def weights(self) -> int:
        return sum(self.counts)

    @property
    def undecided(self) -> float:
        """Share in the two middle bins: below a tenth of the layer's largest weight."""
        middle = len(self.counts) // 2
        return sum(self.counts[middle - 1 : middle + 1]) / self.weights


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


@dataclass(frozen=True)
class Dimension:
    """A layer of pca.json: its components, those of the layer it is compared with, and its cumulative variance."""

    layer: str
    channels: int
    components: int
    chosen: bool
    before: str = ""
    before_components: int | None = None
    shares: tuple[float, ...] = ()

    @property
    def rise(self) -> int | None:
        return None if self.before_components is None else self.components - self.before_components


@dataclass(frozen=True)
class Choice:
    """Layers of k bits that stand beside the PCA choice; everything in it is computed."""

    name: str
    layers: tuple[str, ...] = ()
    share: float | None = None
    storage_bytes: float | None = None
    compression: float | None = None
    energy_efficiency: float | None = None


@dataclass(frozen=True)
class Bits:
    """What `bitwright analyze` found. delta None: chosen by another rule than a least rise."""

    layers: tuple[Dimension, ...]
    threshold: float
    delta: float | None = None
    images: int | None = None
    bits: str = ""
    stable: bool | None = None
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where the figures are from and how to get them again.

    files   (name, bytes, sha256) of the model files
    """

    name: str
    path: str | None = None
    command: str = ""
    experiment: str = ""
    recipe: str = ""
    seed: int | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    files: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True)
class RunData:
    """Everything a page shows. A section that is None or empty has no data."""

    origin: Origin
    layers: tuple[Layer, ...] = ()
    conversion: Conversion | None = None
    speed: Speed | None = None
    nets: tuple[Net, ...] = ()
    training: Training | None = None
    histograms: tuple[Histogram, ...] = ()
    errors: Errors | None = None
    bits: Bits | None = None
    gates: Gates | None = None
    selfprune: SelfPrune | None = None

    def net(self, name: str) -> Net | None:
        return next((n for n in self.nets if n.name == name), None)

    def total(self, column: str) -> float | None:
        """Sum of a column over the layers; None where no layer has a value."""
        values = [v for layer in self.layers if (v := getattr(layer, column)) is not None]
        return sum(values) if values else None

    @property
    def layer_total_complete(self) -> bool:
        return all(layer.ms_after is not None for layer in self.layers)

    @property
    def work(self) -> Epoch | None:
        """The last epoch, if a net with gates was counted in it."""
        epochs = self.training.epochs if self.training else ()
        return epochs[-1] if epochs and epochs[-1].macs else None

    # The four figures of the page's head. Tiles, table, charts and JSON all read these.
    @property
    def accuracy(self) -> float | None:
        """Of the packed net on the test images."""
        if self.conversion is not None and self.conversion.accuracy is not None:
            return self.conversion.accuracy
        net = self.net("bitwright")
        return net.accuracy if net else None

    @property
    def trained_accuracy(self) -> float | None:
        if self.conversion is not None and self.conversion.trained_accuracy is not None:
            return self.conversion.trained_accuracy
        net = self.net("trained")
        if net is not None and net.accuracy is not None:
            return net.accuracy
        return self.training.test_top1 if self.training else None

    @property
    def float_accuracy(self) -> float | None:
        net = self.net("float")
        if net is not None and net.accuracy is not None:
            return net.accuracy
        return self.training.float_top1 if self.training else None

    @property
    def float_guesses(self) -> bool:
        """Whether the float net is no better than guessing: no accuracy is worth comparing with that."""
        if self.float_accuracy is None or self.errors is None:
            return False
        return at_chance(self.float_accuracy, len(self.errors.classes), self.errors.images)

    @property
    def test_images(self) -> int | None:
        for name in ("bitwright", "trained"):
            if (net := self.net(name)) is not None and net.images:
                return net.images
        return self.training.test_images if self.training else None

    @property
    def file_bytes(self) -> float | None:
        """The packed file; None where none was written."""
        if self.conversion is not None and self.conversion.file_bytes is not None:
            return self.conversion.file_bytes
        net = self.net("bitwright")
        return net.bytes if net else None

    @property
    def float_bytes(self) -> float | None:
        """A file with the float net, as convert or training measured it; without one, its layers' weights."""
        if self.conversion is not None and self.conversion.float_bytes is not None:
            return self.conversion.float_bytes
        net = self.net("float")
        return net.bytes if net is not None and net.bytes is not None else self.total("bytes_before")

    @property
    def smaller(self) -> float | None:
        return self.float_bytes / self.file_bytes if self.float_bytes and self.file_bytes else None

    @property
    def ms(self) -> float | None:
        """Of the packed net: bench's median, else that of convert's short check."""
        if self.speed is not None and self.speed.ours is not None:
            return self.speed.ours.ms
        return self.conversion.ms_after if self.conversion else None

    @property
    def float_ms(self) -> float | None:
        """The best fp32 program; without bench, convert's short check of the float net."""
        if self.speed is not None:
            best = self.speed.best("fp32")
            return best.ms if best else None
        return self.conversion.ms_before if self.conversion else None
