"""Weights that are still float make up for the quantized ones: they learn the old net's answers, without labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitwright.nn.layers import SlotLayer
from bitwright.parts.mask import Mask
from bitwright.transforms.call import Call
from bitwright.transforms.facts import links_of
from bitwright.transforms.forward import evaluating, run_model

SIZE = 128  # samples of a step
GAIN = 1e-3  # an epoch that lowers the loss by a smaller share is no progress
PATIENCE = 2


@dataclass
class Cascade:
    """Steps of SGD with momentum on the mean squared distance of the answers, over their variance, in evaluation mode.

    pieces    what the net is given, at most 128 samples at once;   answers   of the net as it was
    epochs    the most passes over the pieces for one layer; ends earlier where two of them bring less than a
              thousandth of the loss
    """

    pieces: list[Any]
    answers: list[list[Tensor]]
    epochs: int
    rate: float
    seed: int

    @classmethod
    def of(cls, model: nn.Module, feed: list[Any], epochs: int, rate: float, seed: int) -> Cascade:
        pieces = [piece for one in feed for piece in _pieces(one)]
        with evaluating(model):
            answers = [_floats(run_model(model, piece)) for piece in pieces]
        return cls(pieces, answers, epochs, rate, seed)

    def fit(self, model: nn.Module, done: set[int], turn: int) -> tuple[float, float]:
        """Loss before and after. Changes the parameters that learn (`requires_grad`), but for weights in `done` (ids) and what
        belongs to a quantizer; never ends with a larger loss. turn: another order of the pieces for each."""
        learners = list(_learners(model, done))
        if not learners or not self.epochs:
            return self.loss(model), self.loss(model)
        before = [p.detach().clone() for p in learners]
        first = self.loss(model)
        if first == 0:
            return 0.0, 0.0
        optimizer = torch.optim.SGD(learners, self.rate, momentum=0.9)
        rng = torch.Generator().manual_seed(self.seed * 100_003 + turn)
        best, waited = first, 0
        with torch.enable_grad(), _only(model, learners):
            for _ in range(self.epochs):
                total = 0.0
                for i in torch.randperm(len(self.pieces), generator=rng).tolist():
                    optimizer.zero_grad()
                    loss = self.distance(model, i)
                    loss.backward()
                    optimizer.step()
                    total += float(loss.detach()) / len(self.pieces)
                waited = 0 if total < best * (1 - GAIN) else waited + 1
                best = min(best, total)
                if waited >= PATIENCE:
                    break
            optimizer.zero_grad()
        last = self.loss(model)
        if not last <= first:  # a rate that is too large, or NaN
            with torch.no_grad():
                for p, value in zip(learners, before, strict=True):
                    p.copy_(value)
            return first, first
        return first, last

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        return sum(float(self.distance(model, i)) for i in range(len(self.pieces))) / len(self.pieces)

    def distance(self, model: nn.Module, i: int) -> Tensor:
        total = torch.zeros(())
        for answer, mine in zip(self.answers[i], _floats(run_model(model, self.pieces[i])), strict=True):
            spread = (answer - answer.mean()).square().mean()
            total = total.to(mine.device) + (mine - answer).square().mean() / torch.where(spread > 0, spread, 1.0)
        return total


def _pieces(one: Any) -> Iterator[Any]:
    """A batch as batches of at most 128 samples; whole where its tensors disagree on how many there are."""
    call = Call.of(one)
    count = call.images
    if count <= SIZE or any(not t.dim() or len(t) != count for t in call.tensors):
        yield one
        return
    for start in range(0, count, SIZE):

        def cut(t: Tensor, start: int = start) -> Tensor:
            return t[start : start + SIZE]

        part = call.map(cut)
        yield part.kwargs or (part.args if isinstance(one, tuple) else part.args[0])


def _floats(output: Any) -> list[Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


def _learners(model: nn.Module, done: set[int]) -> Iterator[nn.Parameter]:
    left = set(done)
    for module in model.modules():
        if isinstance(module, SlotLayer):
            for part in (module.w, module.b, module.x, module.g, module.gate):
                left |= {id(p) for p in part.parameters()} if isinstance(part, nn.Module) else set()
            if any(not isinstance(link, Mask) for link in links_of(module.w)):
                left.add(id(module.weight))
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in left:
            yield parameter


@contextmanager
def _only(model: nn.Module, learners: list[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters only; those of the others do not change."""
    mine = {id(p) for p in learners}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in mine]
    kept = [p.grad for p in learners]
    for p in others:
        p.requires_grad_(False)
    for p in learners:
        p.grad = None
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)
        for p, grad in zip(learners, kept, strict=True):
            p.grad = grad
