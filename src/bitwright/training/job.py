"""Everything the stages of one training share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.measure.machine import computes_bf16
from bitwright.runs import Run, dataset
from bitwright.runs.build import normalized
from bitwright.runs.tables import Status
from bitwright.training.display import Screen, TimeLeft
from bitwright.training.evaluate import Evaluation, evaluate
from bitwright.training.loader import steps_per_epoch
from bitwright.training.losses import Loss
from bitwright.training.signals import Signals, StopRequest
from bitwright.training.state import State
from bitwright.transforms.layout import takes_channels_last

if TYPE_CHECKING:
    from bitwright.data import Images
    from bitwright.experiment import Experiment


@dataclass
class Job:
    """net is the model being trained; it changes in place from stage to stage."""

    experiment: Experiment
    run: Run
    screen: Screen
    signals: Signals
    train: Images
    test: Images
    val: Images | None
    net: nn.Module
    state: State = field(default_factory=State)
    left: TimeLeft = field(default_factory=TimeLeft)
    fresh: list[nn.Module] = field(default_factory=list)  # parts that the stage at hand made
    told_rate: bool = False
    save_seconds: float = 0.0

    @property
    def rank(self) -> int:
        return rank_of(self.experiment)

    @property
    def world(self) -> int:
        return self.experiment.train.devices

    @property
    def main(self) -> bool:
        """Only this process writes and prints."""
        return self.rank == 0

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.train), self.experiment.data.batch, self.world)

    @property
    def epochs_before(self) -> int:
        """Epochs of the earlier stages."""
        return sum(stage.epochs for stage in self.experiment.stage[: self.state.stage])

    @property
    def total_step(self) -> int:
        """Steps done over all stages."""
        return self.epochs_before * self.per_epoch + self.state.step

    @property
    def normalize(self) -> bool:
        """Whether the stage at hand gets normalized pixels: a float stage does, also where a later one reads codes."""
        return normalized(self.experiment, self.state.stage + 1)

    @cached_property
    def channels_last(self) -> bool:
        """Whether it was asked for and the net runs so; a net with `x.view(...)` on a feature map does not, and is only slower."""
        return self.experiment.train.channels_last and takes_channels_last(self.net, self.example())

    def feed(self) -> dict[str, Any]:
        """How pixels become inputs."""
        return {"normalize": self.normalize, "channels_last": self.channels_last}

    def evaluate(self, images: Images, loss: Loss | None, device: Any = "cpu", shared: bool = False) -> Evaluation:
        """shared: each process takes its slice; only while all of them take part. Gates are counted on the test images."""
        world = self.world if shared else 1
        if world > 1:  # the net that is judged is the one that is saved: running statistics of process 0
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)
        batch = -(-self.experiment.data.eval_batch // world) * world
        return evaluate(
            self.net,
            images,
            loss,
            batch=batch,
            device=device,
            rank=self.rank if shared else 0,
            world=world,
            count=images is self.test,
            check=lambda: self.check(device, shared),
            **self.feed(),
        )

    def write_status(self, status: str) -> None:
        """state.json: "training", "stopped" or "done"."""
        self.run.write(Status, [self.state.to_json(status, len(self.experiment.stage), len(self.test))])

    def stopping(self, device: Any = "cpu", shared: bool = True) -> bool:
        """Whether any process was asked to stop; all of them must ask at the same point."""
        if self.world == 1 or not shared:
            return bool(self.signals.wanted)
        flag = torch.tensor([float(bool(self.signals.wanted))], device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def check(self, device: Any = "cpu", shared: bool = False) -> None:
        """Ends a phase between two batches if that was asked for."""
        if self.stopping(device, shared):
            raise StopRequest

    def first_batches(self, count: int) -> Iterator[Any]:
        """Training batches that are not augmented, (inputs, labels) each; a stop ends them."""
        batch = min(self.experiment.data.batch, len(self.train))
        for pair in islice(self.train.batches(batch, shuffle=True, seed=self.experiment.seed, **self.feed()), count):
            self.signals.check()
            yield pair

    def example(self, images: int = 2) -> Tensor:
        """The first training images, as the net gets them."""
        return next(iter(self.train.limit(images).batches(images, normalize=self.normalize)))[0]


def open_data(experiment: Experiment) -> tuple[Images, Images, Images | None]:
    """Training, test and (with `data.val`) held-out images."""
    train, test = dataset(experiment, "train"), dataset(experiment, "test")
    if not len(train):
        raise InputError(
            f"data {experiment.data.name}: no training images are left (data.val, data.limit)", code="data-empty"
        )
    return train, test, dataset(experiment, "val") if experiment.data.val else None


def rank_of(experiment: Experiment) -> int:
    """0 in a single process; Lightning tells its children theirs in the environment."""
    return int(os.environ.get("LOCAL_RANK", "0")) if experiment.train.devices > 1 else 0


def accelerator(experiment: Experiment) -> str:
    """ "gpu" or "cpu", as asked for and as available."""
    wanted, there = experiment.train.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise InputError("train: device cuda: torch finds no GPU here. try: train.device=cpu", code="device")
    chosen = "cpu" if wanted == "cpu" or not there else "gpu"
    if experiment.train.precision == "fp16" and chosen == "cpu":
        raise InputError("train: precision fp16 needs a GPU. try: train.precision=bf16", code="precision")
    if chosen == "gpu" and experiment.train.devices > torch.cuda.device_count():
        raise InputError(
            f"train: devices {experiment.train.devices}, but {torch.cuda.device_count()} GPU here. "
            "try: train.devices=1, or train.device=cpu",
            code="device",
        )
    cores = max(2, os.cpu_count() or 1)
    if chosen == "cpu" and experiment.train.devices > cores:
        raise InputError(
            f"train: devices {experiment.train.devices}: a process each, but {cores} CPU cores here. try: train.devices=1",
            code="device",
        )
    return chosen


def precision_of(experiment: Experiment) -> str:
    """As asked for, but fp32 in place of bf16 on a CPU that has no instructions for it."""
    wanted = experiment.train.precision
    return "fp32" if wanted == "bf16" and accelerator(experiment) == "cpu" and not computes_bf16() else wanted


def reseed(seed: int, stage: int, rank: int = 0) -> None:
    """torch's generators, for the start (stage -1) and for each stage: no stage depends on what came before it."""
    import numpy as np

    words = np.random.SeedSequence([seed, stage + 1, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
