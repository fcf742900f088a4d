"""Second-order statistics of what each layer reads, one layer at a time, in one pass over the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitwright.analysis.scatter import Scatter
from bitwright.errors import BitwrightWarning, InputError
from bitwright.nn.layers import SlotLayer
from bitwright.procedures.layerwise.forwards import Forward, stops
from bitwright.procedures.layerwise.geometry import (
    CHUNK_BYTES,
    columns_of,
    from_rows,
    groups_of,
    places,
    rows_of,
    weight_rows,
)
from bitwright.procedures.layerwise.progress import Meter
from bitwright.procedures.layerwise.select import Unit
from bitwright.transforms.call import Call
from bitwright.transforms.copying import copy_model
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.geometry import from_rows as in_order

ROWS = 50_000
WIDEST = 10_240


@dataclass(frozen=True)
class Limits:
    """What one layer may cost.

    rows   the most rows (samples times positions) that are read, chosen by `seed`. None: 50,000 or 8 per input, whichever
           is more. A sample always gives at least one row, and a linear layer on [N, C] all of them
    dim    widest matrix; a layer with more inputs is split into blocks of inputs that are treated as uncorrelated
    """

    rows: int | None = None
    dim: int = WIDEST
    seed: int = 0

    def rows_for(self, columns: int) -> int:
        return max(ROWS, 8 * columns) if self.rows is None else self.rows

    def check(self, who: str) -> None:
        for name, value in (("max_rows", self.rows), ("max_dim", self.dim)):
            if value is not None and value < 1:
                raise InputError(f"{who}: {name}={value}; possible: 1 and more", code="option", given=str(value))


@dataclass
class LayerStats:
    """One weight and what its layer reads.

    h      [G, d, d] per block of inputs, float64: mean over rows of x x^T. G groups of a grouped convolution, else 1; one
           block unless the layer is wider than `Limits.dim`
    w      [G, O/G, d] per block, float64: the weight as it was, pruned entries 0. With `bias` the last column of the last
           block is the bias, and x there is 1
    rows   samples times positions that were read;   positions   outputs per channel and sample, all calls together
    """

    name: str
    unit: Unit
    h: list[Tensor]
    w: list[Tensor]
    bias: bool
    rows: int
    samples: int
    positions: float
    energy: float = field(init=False)

    def __post_init__(self) -> None:
        self.aim(self.w)

    @property
    def layer(self) -> Any:
        return self.unit.layer

    @property
    def columns(self) -> int:
        """D of the weight, without the bias."""
        return columns_of(self.layer)

    def error(self, new: list[Tensor] | None = None) -> float:
        """E = mean over rows of |x (W' - W)^T|^2, summed over outputs: tr((W' - W) H (W' - W)^T).

        new   W' as blocks; None: the weight as it is now, after every rounding
        """
        new = self.current() if new is None else new
        total = 0.0
        for h, old, fresh in zip(self.h, self.w, new, strict=True):
            change = fresh - old
            total += float(((change @ h) * change).sum())
        return max(0.0, total)

    def relative(self, error: float) -> float:
        """E over what the layer puts out: tr(W H W^T)."""
        return error / self.energy if self.energy > 0 else 0.0

    def aim(self, w: list[Tensor]) -> None:
        """Takes other weights, as blocks, as those to come close to."""
        self.w = w
        self.energy = self.error([torch.zeros_like(one) for one in w])

    def current(self) -> list[Tensor]:
        """The weight as it is now, as blocks."""
        return _blocks(self.unit, self.h, self.bias)

    def dead(self) -> list[Tensor]:
        """Inputs that are 0 in every row, bool [G, d] per block."""
        return [h.diagonal(dim1=-2, dim2=-1) <= 0 for h in self.h]

    def split(self, t: Tensor, bias: float | bool = 0) -> list[Tensor]:
        """A tensor of the shape of the filters as blocks like `w`; where they have a bias column it holds `bias`."""
        groups = groups_of(self.layer)
        flat = t.reshape(groups, t.shape[0] // groups, -1)
        if self.bias:
            flat = torch.cat([flat, torch.full_like(flat[..., :1], bias)], -1)
        return list(flat.split([h.shape[-1] for h in self.h], -1))

    @torch.no_grad()
    def write(self, new: list[Tensor]) -> None:
        """Puts a weight (and bias), given as blocks, into the layer: its number type, its memory format."""
        flat = torch.cat(new, -1)
        weight: Tensor = self.layer.weight
        if self.bias and self.unit.bias is not None:
            self.unit.bias.copy_(flat[..., -1].reshape(self.unit.bias.shape))
            flat = flat[..., :-1]
        weight.copy_(from_rows(self.layer, flat))


def visit_layers(
    model: nn.Module,
    batches: Iterable[Any],
    units: list[Unit],
    visit: Callable[[LayerStats], None],
    *,
    who: str,
    inputs: Literal["compressed", "original"] = "compressed",
    bias: bool = True,
    limits: Limits | None = None,
    tokens: str | None = None,
    cost: Callable[[Unit], float] | None = None,
    fresh: bool = False,
) -> int:
    """Calls `visit` with the statistics of each unit, in the order in which the layers run; returns the samples seen.

    how       the forward of every batch stops in front of a layer, waits while `visit` changes it, and goes on with the
              changed weight: one pass over the images for all layers, and only one layer's matrices in memory. Where a
              model keeps state between its modules, so that two forwards cannot wait for each other, each layer's
              inputs come from a forward of its own; with `fresh` always, for a `visit` that changes more than its layer
    inputs    "compressed": what the layer reads after the layers changed so far; "original": as the net was
    batches   inputs, or (input, target) pairs
    bias      fold the bias in as a constant input
    tokens    name of the model's keyword argument, bool [N, T], that says which tokens are no padding; linear layers
              read only those
    several calls   all are counted; the layer is visited before its last one
    errors    no images; NaN or infinite inputs; a layer that is never called
    """
    limits = limits or Limits()
    limits.check(who)
    feed = inputs_of(model, batches, who)
    runner = copy_model(model) if inputs == "original" else model
    names = {id(m): n for n, m in model.named_modules()}
    twins = dict(runner.named_modules())
    walk = _Walk(who, units, limits, bias, tokens, feed)
    for unit in units:
        for module in unit.modules:
            walk.enter(twins[names[id(module)]], unit)
    meter = Meter(who, {u.name: 1.0 if cost is None else cost(u) for u in units})
    with evaluating(runner):
        walk.run(runner, visit, meter, fresh)
    if walk.few:
        name, rows, columns = walk.few[0]
        more = f", and {len(walk.few) - 1} more layers too" if len(walk.few) > 1 else ""
        warnings.warn(
            f"{who}: {name} read {rows:,} rows for {columns:,} inputs{more}; damping decides what they leave open. Give more "
            "images",
            BitwrightWarning,
            stacklevel=3,
        )
    return walk.samples


def inputs_of(model: nn.Module, batches: Iterable[Any], who: str) -> list[Any]:
    """The inputs of batches that are not empty; (input, target) pairs too. Errors: no images; another device."""
    every = (batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches)
    if not (feed := [one for one in every if Call.of(one).images]):
        raise InputError(f"{who}: no images. Give at least one batch of inputs", code="batches-none")
    _check_devices(model, feed, who)
    return feed


class _Walk:
    """The state of one `visit_layers`."""

    def __init__(
        self, who: str, units: list[Unit], limits: Limits, bias: bool, tokens: str | None, feed: list[Any]
    ) -> None:
        self.who, self.units, self.limits, self.bias, self.tokens, self.feed = who, units, limits, bias, tokens, feed
        self.samples = sum(Call.of(one).images for one in feed)
        self.unit_of: dict[nn.Module, Unit] = {}
        self.grams: dict[str, _Gram] = {}
        self.expected: dict[str, int] = {}
        self.finished: set[str] = set()
        self.current: Unit | None = None  # where every layer has forwards of its own
        self.few: list[tuple[str, int, int]] = []

    def enter(self, module: nn.Module, unit: Unit) -> None:
        self.unit_of[module] = unit

    def wanted(self, module: nn.Module) -> bool:
        unit = self.unit_of[module]
        return unit.name not in self.finished and (self.current is None or unit is self.current)

    def run(self, model: nn.Module, visit: Callable[[LayerStats], None], meter: Meter, fresh: bool) -> None:
        order = self.order(model)
        with stops(self.unit_of.keys(), self.wanted):
            apart = fresh or not self.can_wait(model)
            self.finished.clear()
            forwards = [Forward(model, one) for one in self.feed]
            counts: list[dict[str, int]] = [{} for _ in forwards]
            try:
                for unit in order:
                    meter.begin(unit.name)
                    if apart:
                        self.current = unit
                        forwards = [Forward(model, one) for one in self.feed]
                    for index, forward in enumerate(forwards):
                        self.gather(unit, forward, counts[index], index)
                        if apart:
                            forward.close()
                    visit(self.stats(unit))
                    self.finished.add(unit.name)
                    meter.end(unit.name)
            finally:
                for forward in forwards:
                    forward.close()
        meter.finish()

    def order(self, model: nn.Module) -> list[Unit]:
        """Units by their last call, from plain forwards: of one batch, and of more while a layer has not been called."""
        last: dict[str, int] = {}
        for one in self.feed:
            calls: list[str] = []

            def note(module: nn.Module, args: Any, calls: list[str] = calls) -> None:
                calls.append(self.unit_of[module].name)

            handles = [module.register_forward_pre_hook(note) for module in self.unit_of]
            try:
                run_model(model, one)
            finally:
                for handle in handles:
                    handle.remove()
            for name in set(calls):
                self.expected[name] = max(self.expected.get(name, 0), calls.count(name))
                last[name] = max(last.get(name, -1), len(calls) - 1 - calls[::-1].index(name))
            if len(last) == len(self.units):
                break
        for unit in self.units:
            if unit.name not in last:
                raise InputError(
                    f"{self.who}: {unit.name} is never called by the model's forward, so nothing is known of its inputs; leave "
                    "it out",
                    code="layer-unreached",
                    layer=unit.name,
                )
        return sorted(self.units, key=lambda unit: last[unit.name])

    def can_wait(self, model: nn.Module) -> bool:
        """Whether two forwards that take turns, layer by layer, give the same as when run one after the other."""
        if len(self.feed) < 2:
            return True
        pair = [Call.of(one).map(lambda t: t[:2] if t.dim() else t) for one in self.feed[:2]]
        examples = [call.kwargs or call.args for call in pair]
        try:
            plain = [run_model(model, one) for one in examples]
        except Exception:  # a model may require its batch size
            examples = self.feed[:2]
            plain = [run_model(model, one) for one in examples]
        forwards = [Forward(model, one) for one in examples]
        try:
            while not all(forward.done for forward in forwards):
                for forward in forwards:
                    forward.advance()
        finally:
            for forward in forwards:
                forward.close()
        return all(_same(a, forward.output) for a, forward in zip(plain, forwards, strict=True))

    def gather(self, unit: Unit, forward: Forward, counts: dict[str, int], index: int) -> None:
        """Lets one forward run until `unit` is about to be called for the last time."""
        while not forward.done:
            if forward.at is not None and self.wanted(forward.at[0]):
                at = self.unit_of[forward.at[0]].name
                if counts[at] >= self.expected[at]:
                    return
            reading = forward.advance()
            if reading is None:
                return
            module, x = reading
            name = self.unit_of[module].name
            counts[name] = counts.get(name, 0) + 1
            self.read(self.unit_of[module], module, x, index)

    def read(self, unit: Unit, module: nn.Module, x: Tensor, index: int) -> None:
        if isinstance(module, SlotLayer) and module.x is not None:
            x = module.x(x)
        if not torch.isfinite(x).all():
            word = "NaN" if torch.isnan(x).any() else "infinite"
            raise InputError(
                f"{self.who}: {unit.name} reads {word} numbers in batch {index}; check the images and the weights before it",
                code="batches-nan",
                layer=unit.name,
            )
        if isinstance(module, nn.Linear) and self.tokens is not None:
            x = _only_tokens(x, self.feed[index], self.tokens)
        gram = self.grams.get(unit.name)
        if gram is None:
            gram = self.grams[unit.name] = _Gram(module, x, self.limits, self.bias and unit.bias is not None)
        seed = hash((self.limits.seed, index, gram.calls)) & 0x7FFFFFFF
        most = max(1, self.limits.rows_for(columns_of(module)) // (self.samples * self.expected[unit.name]))
        gram.calls += 1
        gram.places += places(module, x)
        for rows in rows_of(module, x, most, seed):
            gram.add(rows)

    def stats(self, unit: Unit) -> LayerStats:
        gram = self.grams.pop(unit.name, None)
        if gram is None or not gram.rows:
            raise InputError(
                f"{self.who}: {unit.name} read no rows; give larger images, or leave it out",
                code="layer-unreached",
                layer=unit.name,
            )
        rows, bias = gram.rows, gram.bias
        h = gram.finish()
        if rows < columns_of(unit.layer):
            self.few.append((unit.name, rows, columns_of(unit.layer)))
        weights = _blocks(unit, h, bias)
        return LayerStats(unit.name, unit, h, weights, bias, rows, self.samples, gram.places / self.samples)


class _Gram:
    """Rows become matrices; small pieces are gathered until their product is worth a pass over the matrix."""

    def __init__(self, layer: nn.Module, x: Tensor, limits: Limits, bias: bool) -> None:
        groups, columns = groups_of(layer), columns_of(layer)
        parts = -(-(columns + bias) // limits.dim)
        self.widths = [columns // parts + (i < columns % parts) for i in range(parts)]
        device = x.device if x.device.type in ("cpu", "cuda") else torch.device("cpu")  # where there are doubles
        self.device, self.bias, self.calls, self.places = device, bias, 0, 0
        self.blocks = [Scatter(width, device, groups, product=None) for width in self.widths]
        self.waiting: list[Tensor] = []
        self.size = 0

    @property
    def rows(self) -> int:
        self.flush()
        return self.blocks[0].count

    def add(self, rows: Tensor) -> None:
        self.waiting.append(rows)
        self.size += rows.numel() * rows.element_size()
        if self.size >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        rows = self.waiting[0] if len(self.waiting) == 1 else torch.cat(self.waiting, 1)
        self.waiting, self.size = [], 0
        for block, piece in zip(self.blocks, rows.split(self.widths, -1), strict=True):
            block.add(piece.to(self.device))

    def finish(self) -> list[Tensor]:
        """H per block; the memory of the sums becomes that of the first result where it can."""
        self.flush()
        out = []
        while self.blocks:
            block = self.blocks.pop(0)
            h, mean = block.scatter.div_(block.count), block.mean
            h.addcmul_(mean.unsqueeze(-1), mean.unsqueeze(-2))
            _mirror(h)
            if self.bias and not self.blocks:
                wide = h.new_ones(*h.shape[:-2], h.shape[-1] + 1, h.shape[-1] + 1)
                wide[..., :-1, :-1] = h
                wide[..., -1, :-1] = wide[..., :-1, -1] = mean
                h = wide
            out.append(h)
        return out


def _mirror(h: Tensor, strip: int = 1024) -> None:
    """The lower triangle becomes the upper one, in place: products of floats are not quite symmetric."""
    for at in range(0, h.shape[-1], strip):
        end = at + strip
        corner = h[..., at:end, at:end]
        corner.copy_(corner.tril() + corner.tril(-1).mT)
        h[..., at:end, end:] = h[..., end:, at:end].mT


def _blocks(unit: Unit, h: list[Tensor], bias: bool) -> list[Tensor]:
    weight: Tensor = unit.layer.weight
    if unit.mask is not None:
        weight = torch.where(in_order(unit.layer, unit.mask).bool(), weight, torch.zeros_like(weight))
    rows = weight_rows(unit.layer, weight).to(h[0].device)
    if bias and unit.bias is not None:
        extra = unit.bias.detach().double().reshape(*rows.shape[:2], 1).to(rows.device)
        rows = torch.cat([rows, extra], -1)
    return list(rows.split([one.shape[-1] for one in h], -1))


def _only_tokens(x: Tensor, inputs: Any, name: str) -> Tensor:
    mask = inputs.get(name) if isinstance(inputs, dict) else None
    if not isinstance(mask, Tensor) or x.dim() < 3 or x.shape[: mask.dim()] != mask.shape:
        return x
    return x[mask.bool()]


def _same(a: Any, b: Any) -> bool:
    pairs = [([t for t in tree_leaves(one) if isinstance(t, Tensor)]) for one in (a, b)]
    return len(pairs[0]) == len(pairs[1]) and all(
        s.shape == t.shape and torch.allclose(s.float(), t.float(), rtol=1e-4, atol=1e-6, equal_nan=True)
        for s, t in zip(*pairs, strict=True)
    )


def _check_devices(model: nn.Module, feed: list[Any], who: str) -> None:
    devices = {str(p.device) for p in model.parameters()}
    given = {str(t.device) for one in feed for t in Call.of(one).tensors}
    if "meta" in devices:
        raise InputError(f"{who}: the net has no weights yet (device meta); load them first", code="device")
    if devices and not given <= devices:
        here, there = ", ".join(sorted(given)), ", ".join(sorted(devices))
        text = f"{who}: the images are on {here}, the net is on {there}; move one of them"
        raise InputError(text, code="device", given=here, possible=there)
