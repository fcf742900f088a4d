"""The training loop of the demo: an ordinary one, with bitwright's three lines in it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.cli.demo_net import DemoNet
from bitwright.cli.output import Output
from bitwright.data import Batches
from bitwright.errors import Negative


@dataclass
class Trained:
    """A net, how well it does, and later what became of it."""

    name: str
    model: nn.Module
    accuracy: float
    converted: Any = None


class Run:
    """Data and settings of one demo."""

    def __init__(self, out: Output, seed: int, quick: bool) -> None:
        self.out, self.seed, self.quick = out, seed, quick
        self.train, self.test = bw.data.load("digits", split="train"), bw.data.load("digits", split="test")
        self.example = self.batch(1)
        self.loader = bw.data.loader_rate(self.train, 64, augment=True, seconds=0.2)
        torch.manual_seed(seed)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The test images."""
        return list(self.test.batches(120, normalize=False))

    def batch(self, size: int) -> Tensor:
        """The first test images as one batch."""
        return next(iter(self.test.batches(size, normalize=False)))[0]

    def fit(
        self,
        title: str,
        step: int,
        epochs: int,
        recipe: list[dict[str, Any]] | None = None,
        teacher: Trained | None = None,
    ) -> Trained:
        """Trains a float net, or a low-bit student that starts from the teacher and also imitates it."""
        model: nn.Module = DemoNet() if teacher is None else copy.deepcopy(teacher.model)
        if recipe is not None:
            bw.apply(model, recipe, self.example)
        epochs = 1 if self.quick else epochs
        optimizer = torch.optim.Adam(bw.param_groups(model, lr=2e-3, weight_decay=1e-4))
        bw.attach(model, optimizer)
        steps = epochs * len(self.train.batches(64))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        start, loss = time.perf_counter(), torch.zeros(())
        head = f"[{step}/5] train  {title:<14}"
        with progress(self.out, head, epochs) as advance:
            for epoch in range(epochs):
                model.train()
                for x, y in self._shuffled(epoch):
                    answer = model(x)
                    loss = F.cross_entropy(answer, y) + bw.penalty(model)
                    if teacher is not None:
                        with torch.no_grad():
                            goal = teacher.model(x).softmax(1)
                        loss = loss + F.cross_entropy(answer, goal)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                if not loss.isfinite():
                    raise Negative(f"demo: {title}: loss became {loss.item()} in epoch {epoch}", code="train-nan")
                advance()
        accuracy = self.accuracy(model.eval())
        seconds = time.perf_counter() - start
        rate = epochs * len(self.train) / seconds
        self.out.result(
            f"{head} {epochs} epochs   {seconds:5.1f} s   test {accuracy * 100:.1f} %   {rate:,.0f} img/s"
            f" (loader alone {self.loader:,.0f})"
        )
        return Trained(title.partition(" ")[0], model, accuracy)

    def _shuffled(self, epoch: int) -> Batches:
        """k/255, not normalized: the first layer of the students takes pixels as bytes."""
        return self.train.batches(64, shuffle=True, augment=True, normalize=False, seed=self.seed, epoch=epoch)

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of test images with the right answer."""
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in self.batches())
        return right / len(self.test)


@contextmanager
def progress(out: Output, head: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar that is gone when the work is done; nothing where nobody is looking."""
    if not out.live:
        yield lambda: None
        return
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr, highlight=False, no_color=not out.colored(sys.stderr))
    parts = (
        TextColumn(head, markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeRemainingColumn(),
    )
    with Progress(*parts, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
