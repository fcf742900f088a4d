"""Accuracy of a 0/1 net over the value of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.analysis.sweep_result import NORMS, SweepPoint, WeightSweep
from bitwright.analysis.zero_one_nets import Head, find_head, need_zero_one, weight_value_kept, zero_one_parts
from bitwright.errors import InputError, unknown
from bitwright.nn.layers import SlotLayer
from bitwright.transforms.batch_norms import batch_norms, norms_training
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.norm_statistics import estimate
from bitwright.transforms.unwrap import unwrap

ON = tuple(i / 10 for i in range(41))  # divided, not summed up: 0.3 is the key 0.3
LARGE = (5.0, 10.0, 100.0)
LIMIT = 100.0


def weight_sweep(
    model: nn.Module,
    batches: Iterable[Any],
    on: Iterable[float] | str | None = None,
    norm: str = "running",
    train: Iterable[Any] | None = None,
    *,
    limit: float = LIMIT,
    progress: Callable[[str, int, int], None] | None = None,
) -> WeightSweep:
    """Accuracy of a net with 0/1 weights while all its `on` weights take one value after another.

    value     for each value v: share of images whose largest output is the true class (`accuracy`); the same with classes
              ranked by the last layer's pre-activation (`preactivation`): where outputs are saturated they tie, and ties go
              to class 0; share of images with the class that the net gives at `limit` (`agreement`), where tanh is 0 or 1
              exactly and hidden neurons are gates: how far the net is from a circuit
    batches   (input, target) pairs, read once. Shares are of all images, whatever the batches
    on        weight values. [default: 0.0, 0.1, ... 4.0]; "large": and 5, 10, 100. Keys of the result are rounded to nine
              digits, so that 0.3 is found
    norm      what batch norms use at each value. "running": the statistics of training, as the net is. "recalibrate":
              statistics estimated again from `train` at each value, as a net with such weights would be deployed.
              "batch": those of the test batch itself, as the published code does: then a prediction depends on which images
              are in the batch, and a new weight value is absorbed. The running statistics are never touched
    train     batches of "recalibrate", inputs or pairs, read once per value (a one-shot iterator is kept in memory)
    limit     weight value of the circuit. 10 is enough behind 0/1 inputs and inverters, where sums are whole numbers
    progress  called with (what, done, of how many; 0: unknown); may raise to end it
    changes   nothing: weight value, statistics, modes and random state are put back, after an exception too
    errors    a model without 0/1 weights; no batches; no targets; recalibrate without `train`; values that are not finite;
              outputs that are not [images, classes]; with "batch", a batch of one image
    source    Agrawal, Karlupia 2019, arXiv 1909.00052, and its notebook
    differs   the notebook evaluates in training mode, so that test images of every value enter the statistics, and takes
              the mean over batches, the last one smaller or not

    >>> import bitwright as bw
    >>> net = nn.Sequential(bw.nn.Linear(2, 2, bias=False, w="zero_one"), nn.Tanh())
    >>> net[0].weight.data.copy_(torch.eye(2)).shape
    torch.Size([2, 2])
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 1, 1])
    >>> sweep = weight_sweep(net, [(x, y)], on=(0, 1, 50))
    >>> sweep.accuracy[1.0], sweep.preactivation[50.0], round(sweep.accuracy[50.0], 3), net[0].w.on
    (1.0, 1.0, 0.667, 1.0)
    """
    who = "weight_sweep"
    model = unwrap(model)
    need_zero_one(model, who)
    values, (top,) = _values(on), _values([limit])
    if norm not in NORMS:
        raise unknown(f"{who}: norm={norm!r}", norm, NORMS, code="option", word="Possible")  # fmt: skip
    if norm == "recalibrate" and train is None:
        raise InputError(
            f'{who}: norm="recalibrate" estimates statistics from training images: give them as train=',
            code="sweep-train",
            given="no train",
            possible="train=batches of training images",
        )
    told = progress or (lambda what, done, total: None)
    own = {part.on for part in zero_one_parts(model)}
    tallies = {v: _Tally() for v in values}
    statistics, digital = _Statistics(model), _TwoValued()
    head, images = None, 0
    # one region around everything: `evaluating` puts buffers and random state back, also what a shuffling loader drew
    with weight_value_kept(model) as put, evaluating(model):
        if norm == "recalibrate" and train is not None:
            statistics.estimate([*values, top], put, train, told)
        for done, batch in enumerate(batches):
            x, y = _pair(batch, who)
            if not len(y):
                continue
            if head is None:
                head = find_head(model, x, who)
            with norms_training(model) if norm == "batch" else nullcontext():
                put(top)
                statistics.use(top)
                circuit = _answers(model, x, head, digital)[2]
                for i, (v, tally) in enumerate(tallies.items(), 1):
                    put(v)
                    statistics.use(v)
                    tally.add(_answers(model, x, head), y, circuit)
                    told(
                        "sweep",
                        done * len(values) + i,
                        len(values) * (len(batches) if isinstance(batches, Sized) else 0),
                    )
            images += len(y)
    if head is None:
        raise InputError(f"{who}: no batches. Give at least one batch of (input, target)", code="batches-none")
    points = tuple(t.point(v, head.sign is not None) for v, t in tallies.items())
    return WeightSweep(
        norm, images, points, own.pop() if len(own) == 1 else None, head.name, head.ranking, top, digital.share,
        statistics.samples, len(batch_norms(model)),
    )  # fmt: skip


Answers = tuple[Tensor, Tensor | None, Tensor, Tensor]


def _answers(model: nn.Module, x: Any, head: Head, digital: _TwoValued | None = None) -> Answers:
    """(class by output, by pre-activation, by output with ties broken by pre-activation; whether there was a tie)."""
    seen: list[Tensor] = []
    handles = [head.layer.register_forward_hook(_keep(seen), prepend=True)]
    if digital is not None:
        handles += [layer.register_forward_pre_hook(digital.hook(layer)) for layer in head.hidden]
    try:
        out = run_model(model, x)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            'weight_sweep: norm="batch" needs two images in every batch, and one has a single one. Give another batch size',
            code="norms-values",
        ) from None
    finally:
        for handle in handles:
            handle.remove()
    best = out == out.amax(1, keepdim=True)
    tied = best.sum(1) > 1
    if head.sign is None:
        return out.argmax(1), None, out.argmax(1), tied
    rank = seen[-1] * head.sign
    return out.argmax(1), rank.argmax(1), torch.where(best, rank, -math.inf).argmax(1), tied


def _keep(seen: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output)

    return hook


class _Tally:
    """Counts of images at one weight value: classified right, or as the circuit does."""

    def __init__(self) -> None:
        self.right = self.ranked = self.agree = self.tied = 0

    def add(self, said: Answers, true: Tensor, circuit: Tensor) -> None:
        by_output, by_rank, whole, tied = said
        self.tied += int(tied.sum())
        self.right += int((by_output == true).sum())
        self.agree += int((whole == circuit).sum())
        if by_rank is not None:
            self.ranked += int((by_rank == true).sum())

    def point(self, on: float, ranked: bool) -> SweepPoint:
        return SweepPoint(on, self.right, self.ranked if ranked else None, self.agree, self.tied)


class _Statistics:
    """Running statistics of the norms, estimated again for each weight value."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.buffers = [b for norm in batch_norms(model).values() for b in norm.buffers()]
        self.found: dict[float, list[Tensor]] = {}
        self.samples: int | None = None

    def estimate(
        self, values: list[float], put: Callable[[float], None], train: Iterable[Any],
        told: Callable[[str, int, int], None],
    ) -> None:  # fmt: skip
        if not self.buffers:
            return  # nothing depends on them
        again = list(train) if iter(train) is train else train
        for done, value in enumerate(values):
            put(value)
            _, self.samples = estimate(self.model, again, "weight_sweep")
            self.found[value] = [b.clone() for b in self.buffers]
            told("statistics", done + 1, len(values))

    def use(self, value: float) -> None:
        for buffer, value_of in zip(self.buffers, self.found.get(value, ()), strict=False):
            buffer.copy_(value_of)


class _TwoValued:
    """Whether each input of some layers takes at most two values over all images, up to the last digits: a tanh may
    round the same number differently at another place of a batch."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def share(self) -> float | None:
        counts = [(int(good.sum()), good.numel()) for _, _, good in self.seen.values()]
        return sum(a for a, _ in counts) / sum(n for _, n in counts) if counts else None

    def hook(self, layer: nn.Module) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                # what the operator gets: a step in front of the weights makes bits of anything. Called here and not
                # watched, because a watched part keeps the layer from evaluating on whole numbers
                part = module.x if isinstance(module, SlotLayer) else None
                self._add(id(layer), (args[0] if part is None else part(args[0])).flatten(1))

        return look

    def _add(self, key: int, x: Tensor) -> None:
        """x [n, features]; `other` is NaN until a second value was met."""
        if key not in self.seen:
            good = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
            self.seen[key] = x[0].clone(), torch.full_like(x[0], math.nan), good
        one, other, good = self.seen[key]
        differs = _apart(x, one)
        met = x.gather(0, differs.to(torch.uint8).argmax(0)[None])[0]
        other = torch.where(other.isnan() & differs.any(0), met, other)
        self.seen[key] = one, other, good & (~differs | ~_apart(x, other)).all(0)


def _apart(x: Tensor, value: Tensor) -> Tensor:
    """Whether numbers differ by more than the rounding of a few layers; from NaN everything does."""
    return ~((x - value).abs() <= 512 * torch.finfo(x.dtype).eps * value.abs().clamp_min(1))


def _values(on: Iterable[float] | str | None) -> list[float]:
    if isinstance(on, str) and on != "large":
        raise InputError(
            f'weight_sweep: on={on!r}; possible: numbers, or "large" for 0.0 to 4.0 and 5, 10, 100',
            code="option",
            given=on,
            possible='numbers, or "large"',
        )
    given = [*ON, *LARGE] if isinstance(on, str) else ON if on is None else on
    values = list(dict.fromkeys(round(float(v), 9) for v in given))
    wrong = next((v for v in values if not math.isfinite(v)), None)
    if wrong is not None or not values:
        raise InputError(
            "weight_sweep: "
            + ("no weight values were given" if wrong is None else f"on={wrong:g} is not a finite number"),
            code="option",
            given="" if wrong is None else str(wrong),
            possible="finite numbers",
        )
    return values


def _pair(batch: Any, who: str) -> tuple[Any, Tensor]:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        raise InputError(f"{who}: batches are not (input, target) pairs; accuracy needs targets", code="batches-pairs")
    return batch[0], batch[1]
