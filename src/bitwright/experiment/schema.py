"""What an experiment file may hold. Data only: nothing here knows torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
)

from bitwright.usercode import Home

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class TomlTable(BaseModel):
    """Unknown keys are errors; values are not changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(TomlTable):
    """Which images, and how they are fed.

    name         a set of `bw.data`, "folder", or "file.py:fn" (fn(split) gives a Dataset, a pair of tensors
                 or a torch map-style data set)
    batch        images per step, over all processes
    augment      shift, and mirror where that makes sense
    normalize    mean and deviation; None: off where the first layer reads pixels as codes (`input8`), else on
    limit        first n training images;   limit_test   first n test images
    workers      above 0: a thread prepares batches ahead; of imagenet or a streamed folder, this many threads
                 decode pictures; the order of images does not depend on it
    val          training images held out to pick `best.safetensors`
    binarize     pixels to 0 and 1, for circuits
    size         side to which the images of a folder in memory are resized
    transform    of imagenet, or of a folder that is read batch by batch: "squash256-crop227", "resize256-crop224",
                 "random-sized224", or these with other sides
    format       "folder", or "lmdb" as `bitwright data pack` or Caffe writes it
    skip_bad     leave out pictures of a folder that cannot be read, instead of ending; the run counts and names them
    """

    name: str = "digits"
    root: str | None = None
    batch: PositiveInt = 128
    eval_batch: PositiveInt = 500
    augment: bool = True
    normalize: bool | None = None
    limit: PositiveInt | None = None
    limit_test: PositiveInt | None = None
    workers: NonNegativeInt = 0
    val: NonNegativeInt = 0
    binarize: bool = False
    size: PositiveInt = 32
    transform: str | None = None
    format: Literal["folder", "lmdb"] = "folder"
    skip_bad: bool = False


class Model(TomlTable):
    """name and arguments of `bw.models.create`, or "file.py:fn" and the arguments of fn.

    init       "default", "kaiming", "xavier", "orthogonal", "xnor" (std 2 / fan_in) or "normal:0.02"
    weights    a file or a run to start from (float or trained): safetensors, or .pth, .pt as torch.save writes them; or
               "zoo:NAME", a float net of the zoo
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    name: str = "lenet5"
    init: str = "default"
    weights: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything else in the table."""
        return dict(self.__pydantic_extra__ or {})


# option: the optimizers that have it
OPTIMIZER_OPTIONS = {
    "momentum": ("sgd", "rmsprop"),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw", "nadam"),
    "eps": ("adam", "adamw", "nadam", "rmsprop"),
    "fused": ("sgd", "adam", "adamw"),
}


class Optimizer(TomlTable):
    """`weight_decay` does not reach latents of binary and ternary weights, scales, norms and biases.

    fused   one pass over memory per step instead of a dozen: worth it for millions of weights. Last digits differ
    """

    name: Literal["sgd", "adam", "adamw", "nadam", "rmsprop"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    momentum: Share = 0.0
    nesterov: bool = False
    betas: tuple[Beta, Beta] | None = None
    eps: PositiveFloat | None = None
    fused: bool = False


class Schedule(TomlTable):
    """The factor on the learning rate.

    step         `gamma` every `every` epochs;   milestones   `gamma` at the epochs of `at`
    cosine       to `final`, over the stage;     linear       to `final`, over the stage
    plateau      `gamma` when the training loss (or that of `data.val`) has not fallen for `patience` epochs
    warmup       epochs, may be a fraction, in which the rate rises from nothing
    """

    name: Literal["constant", "step", "milestones", "cosine", "linear", "plateau"] = "constant"
    warmup: NonNegativeFloat = 0.0
    every: PositiveInt = 10
    at: list[PositiveInt] = []
    gamma: Share = 0.1
    final: Share = 0.0
    patience: PositiveInt = 5


class Teacher(TomlTable):
    """loss = (1 - weight) * loss + weight * T^2 * KL(teacher || student), both softened by T.

    source   "previous" (the net as the stage before left it), "zoo:NAME" (a float net of any topology), or a run or a file
             of weights of the same model

    `teacher = "previous"` in a stage is short for `teacher = { source = "previous" }`.
    """

    source: str = "previous"
    weight: Share = 0.5
    temperature: PositiveFloat = 1.0


def _source(teacher: Any) -> Any:
    return {"source": teacher} if isinstance(teacher, str) else teacher


class WorkBudget(TomlTable):
    """Work of a gated net: a share of its dense work up to 1, or operations per image; see `bw.Budget`.

    macs, bops   one of them: multiply-accumulates, or these times the bits of weight and input
    weight       of the term in the loss
    """

    macs: PositiveFloat | None = None
    bops: PositiveFloat | None = None
    weight: NonNegativeFloat = 1.0


class ProcedureCall(TomlTable):
    """A procedure of `bw.procedures` and its options, e.g. { name = "recalibrate_batchnorm", batches = 20 }.

    batches   number of training batches, not augmented, that it sees
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    batches: PositiveInt = 8

    @property
    def options(self) -> dict[str, Any]:
        """Everything else in the table."""
        return dict(self.__pydantic_extra__ or {})


class Stage(TomlTable):
    """One recipe trained for some epochs. Stages build on each other: recipes add up, weights go on.

    recipe       a shipped name or a path, or rules in [[stage.rule]]; neither: the net stays as it is
    procedure    instead of a recipe: done before the first step. Without `epochs` it is the whole stage
    loss         "cross_entropy", "squared_hinge", "mse", or "file.py:fn" (fn(outputs, labels) -> scalar)
    clip         largest norm of the gradient
    freeze       globs on parameter names that do not learn in this stage
    calibrate    batches that parts with an observer see before the first step
    budget       of work, for nets with gates: { macs = 0.5 }; thresholds follow it in place of their targets
    """

    epochs: PositiveInt = 0  # `parse` refuses a stage without epochs and without a procedure
    recipe: str | None = None
    rule: list[dict[str, Any]] = []
    procedure: ProcedureCall | None = None
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: str = "cross_entropy"
    label_smoothing: Share = 0.0
    clip: PositiveFloat | None = None
    freeze: list[str] = []
    teacher: Annotated[Teacher | None, BeforeValidator(_source)] = None
    calibrate: NonNegativeInt = 4
    budget: WorkBudget | None = None


class Train(TomlTable):
    """How it runs, not what is learned.

    precision          "fp32", "bf16" or "fp16" (autocast; fp16 only on a GPU; bf16 is fp32 on a CPU without instructions for it)
    device             "auto", "cpu", "cuda";   devices   processes (DDP above 1)
    threads            of torch per process; None: torch's own choice. Results repeat to the bit for equal threads
    channels_last      memory format of 4-D tensors
    checkpoint_every   steps between two writings of last.ckpt; each epoch's end is always written
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    threads: Annotated[int | None, Field(ge=1, le=1024)] = None  # OpenMP ends the process when it cannot start them
    channels_last: bool = True
    checkpoint_every: PositiveInt = 200


class Log(TomlTable):
    """histograms_every, health_every: steps; 0 is never. health: sign flips, dead weights, scale, saturation.

    histograms_every   of weights and inputs of all layers, also in the last step of each epoch; for TensorBoard
    sweep_every        epochs between two sweeps of the weight value of a net with 0/1 weights; also after the last one of a
                       stage; 0 is never
    sweep_norms        statistics of norms in these sweeps: "running", "recalibrate", "batch"
    sweep_images       first test images of a sweep, and first training images that "recalibrate" estimates statistics from
    """

    histograms_every: NonNegativeInt = 100
    health_every: NonNegativeInt = 25
    tensorboard: bool = True
    sweep_every: NonNegativeInt = 0
    sweep_norms: Annotated[list[Literal["running", "recalibrate", "batch"]], Field(min_length=1)] = ["running"]
    sweep_images: PositiveInt = 1000


class Expected(TomlTable):
    """Test accuracy, as shares, that this experiment reached, and where that was measured."""

    low: Share
    high: Share
    seeds: PositiveInt = 1
    source: str = ""


class Experiment(TomlTable):
    """A whole experiment.

    >>> Experiment.model_validate({"stage": [{"epochs": 1}]}).data.name
    'digits'
    """

    seed: NonNegativeInt = 0
    data: Data = Data()
    model: Model = Model()
    stage: Annotated[list[Stage], Field(min_length=1)]
    train: Train = Train()
    log: Log = Log()
    expected: Expected | None = None
    _home: Home = PrivateAttr(default_factory=Home)

    def __eq__(self, other: object) -> bool:  # wherever they were read
        return isinstance(other, Experiment) and self.model_dump() == other.model_dump()

    @property
    def home(self) -> Home:
        """Where it was read: what its own code (`file.py:name`) may be."""
        return self._home

    def own_code(self) -> dict[str, str]:
        """Every `file.py:name` in it -> what it is, for messages."""
        named = {self.model.name: "model", self.data.name: "data"}
        named |= {stage.loss: f"stage {i}: loss" for i, stage in enumerate(self.stage)}
        return {spec: what for spec, what in named.items() if ":" in spec}

    def read_from(self, home: Home) -> Experiment:
        """The same, with its home."""
        found = self.model_copy()
        found._home = home
        return found
