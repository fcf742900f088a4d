"""Counting the work that gated nets really do, sample by sample, to the last multiply-accumulate."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitwright.analysis.active import ActiveChannels, Mask
from bitwright.analysis.tally import Tally
from bitwright.errors import InputError
from bitwright.nn.layers import KINDS, SlotLayer
from bitwright.parts.moments import moment
from bitwright.parts.split_gate import spent_of
from bitwright.transforms.facts import bit_facts
from bitwright.transforms.layers import Candidate, candidates
from bitwright.transforms.walk import call_macs
from bitwright.types import Site, Spent


class MacCount:
    """What was counted so far, over all processes; every number is exact. Reading changes nothing.

    total, dense       multiply-accumulates done, and with every gate open; overhead (predictors, scaling) is in total
    bops, dense_bops   times the bits of weight and input; a float counts 32
    samples            forward passes by sample
    per_layer          layer -> multiply-accumulates; also per_layer_dense, per_layer_bops, fired (outputs, or channels, that
                       a gate let through) and decided (that it judged)
    per_sample         int64 [samples], in the order they came (on several processes: process by process)
    overhead, comparisons   of which predictors and scaling; what the decisions cost besides, no multiplies
    upper              total as papers count it: a sum of maps taken for as sparse as the sparsest of them
    """

    def __init__(self, layers: list[str]) -> None:
        self._tally = Tally(layers)
        self.limit: int | None = None  # samples that count in each forward pass (see `valid`)

    def _sum(self, key: str) -> list[int]:
        return self._tally.sums(key)

    def _dict(self, key: str) -> dict[str, int]:
        return dict(zip(self._tally.layers, self._sum(key), strict=True))

    @property
    def total(self) -> int:
        return sum(self._sum("macs"))

    @property
    def dense(self) -> int:
        return sum(self._sum("dense"))

    @property
    def bops(self) -> int:
        return sum(self._sum("bops"))

    @property
    def dense_bops(self) -> int:
        return sum(self._sum("dense_bops"))

    @property
    def overhead(self) -> int:
        return sum(self._sum("overhead"))

    @property
    def comparisons(self) -> int:
        return sum(self._sum("comparisons"))

    @property
    def upper(self) -> int:
        return sum(self._sum("upper"))

    @property
    def samples(self) -> int:
        return self._tally.samples()

    @property
    def per_layer(self) -> dict[str, int]:
        return self._dict("macs")

    @property
    def per_layer_dense(self) -> dict[str, int]:
        return self._dict("dense")

    @property
    def per_layer_bops(self) -> dict[str, int]:
        return self._dict("bops")

    @property
    def fired(self) -> dict[str, int]:
        return self._dict("fired")

    @property
    def decided(self) -> dict[str, int]:
        return self._dict("decided")

    @property
    def per_sample(self) -> Tensor:
        return self._tally.per_sample("macs")

    @property
    def per_sample_bops(self) -> Tensor:
        return self._tally.per_sample("bops")

    @property
    def fired_per_sample(self) -> Tensor:
        """int64 [samples, layers], columns in the order of `per_layer`."""
        return self._tally.rows("fired")

    @property
    def reduction(self) -> float:
        """Dense work by work done: a ratio of sums, not a mean of ratios.

        >>> import torch
        >>> with count_macs(net := nn.Sequential(nn.Linear(4, 2))) as macs:
        ...     _ = net(torch.zeros(3, 4))
        >>> macs.total, macs.dense, macs.samples, macs.reduction
        (24, 24, 3, 1.0)
        """
        return self.dense / self.total if self.total else 1.0

    @property
    def rates(self) -> dict[str, float]:
        """Gated layers: the share of decisions that were on."""
        decided = self.decided
        return {name: fired / decided[name] for name, fired in self.fired.items() if decided[name]}

    def spread(self, key: str = "macs") -> dict[str, int]:
        """Work per sample at the 5th, 50th and 95th percentile, the least and the most: no interpolation."""
        values = (self.per_sample if key == "macs" else self.per_sample_bops).sort().values
        if not len(values):
            return {}
        at = {"min": 0.0, "p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
        return {name: int(values[round(share * (len(values) - 1))]) for name, share in at.items()}

    @contextmanager
    def here(self) -> Iterator[None]:
        """Reading inside gives the numbers of this process alone, without asking the others."""
        self._tally.alone = True
        try:
            yield
        finally:
            self._tally.alone = False

    @contextmanager
    def valid(self, samples: int) -> Iterator[None]:
        """Only the first `samples` of each forward pass inside count: the last shard of a distributed evaluation is
        padded with samples that were there already."""
        before, self.limit = self.limit, samples
        try:
            yield
        finally:
            self.limit = before


@contextmanager
def count_macs(model: nn.Module) -> Iterator[MacCount]:
    """Counts what the forward passes of `model` compute while the block runs; parts inside called alone do not count.

    Each layer is priced by its gate (`spent`), or as dense; a channel that a gate upstream switched off counts for nothing
    in the layers that read it, as long as only operators lie between that leave zeros where they are (a sum of maps is
    non-zero where any of them is; a norm or bias ends the knowledge). Padding counts, as everywhere. Works in training too,
    and on several processes; counting itself needs no communication, reading sums over processes.
    Errors   `InputError` for a model without layers

    >>> import bitwright as bw
    >>> net = nn.Sequential(bw.nn.Conv2d(8, 8, 1, bias=False, gate={"part": "channel_gate", "init": 9.0}))
    >>> with count_macs(net.eval()) as macs:
    ...     _ = net(torch.zeros(2, 8, 4, 4))
    >>> macs.dense, macs.total, macs.rates
    (2048, 512, {'0': 0.0})
    """
    found = [c for c in candidates(model) if isinstance(c.module, tuple(KINDS))]
    if not found:
        raise InputError("count_macs: the model has no layer to count", code="count-none")
    count = MacCount([c.name for c in found])
    watch = _Watch(count, found)
    with ExitStack() as stack:
        watch.install(model, stack)
        yield count


class _Pass(threading.local):
    """The forward pass that this thread is in."""

    batch: Any = None
    mode: ActiveChannels | None = None
    on: dict[int, list[Tensor]] | None = None


class _Watch:
    """The hooks of a block. They are copied with the net; on a copy they sleep, for the block counts one net."""

    asleep = False

    def __init__(self, count: MacCount, found: list[Candidate]) -> None:
        self.count, self.found, self.at = count, found, _Pass()
        gates = [m.gate for c in found if isinstance(m := c.module, SlotLayer)]
        self.follow = any(moment(gate, "spent") is not None and hasattr(gate, "predictor") for gate in gates)
        self.zero_kept: dict[int, bool] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Watch:
        copied = _Watch.__new__(_Watch)
        copied.asleep, copied.at = True, _Pass()
        return copied

    def install(self, model: nn.Module, stack: ExitStack) -> None:
        def hook(module: nn.Module, kind: str, call: Any, **kw: Any) -> None:
            handle = getattr(module, f"register_forward_{kind}")(call, **kw)
            stack.callback(handle.remove)

        for index, c in enumerate(self.found):
            gate = c.module.gate if isinstance(c.module, SlotLayer) else None
            if moment(gate, "spent") is not None:
                self._watch_gate(gate, stack)
            hook(c.module, "hook", self._layer(index), with_kwargs=True, prepend=True)
        hook(model, "pre_hook", self._begin, with_kwargs=True)
        hook(model, "hook", self._end, always_call=True)

    def _watch_gate(self, gate: Any, stack: ExitStack) -> None:
        gate.watchers = (*gate.watchers, self._decision)
        stack.callback(lambda: setattr(gate, "watchers", tuple(w for w in gate.watchers if w != self._decision)))

    # -- one forward pass -----------------------------------------------------------------------------------------------
    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.asleep:
            return
        first = next((a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)), None)
        samples = 1 if first is None or first.dim() == 0 else first.shape[0]
        self.at.batch, self.at.on = self.count._tally.begin(samples, self.count.limit), {}
        if self.follow:
            self.at.mode = ActiveChannels()
            self.at.mode.__enter__()

    def _end(self, model: nn.Module, args: Any, y: Any) -> None:
        if self.at.mode is not None:
            self.at.mode.__exit__(None, None, None)
        batch, self.at.batch, self.at.mode, self.at.on = self.at.batch, None, None, None
        if batch is not None and y is not None:  # None: the pass broke off
            self.count._tally.close(batch)

    def _decision(self, gate: nn.Module, on: Tensor) -> None:
        if self.at.on is not None:
            self.at.on.setdefault(id(gate), []).append(on)

    def _layer(self, index: int) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            if self.at.batch is not None:
                x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
                with torch.no_grad():
                    self._count(index, layer, x, y)

        return hook

    def _count(self, index: int, layer: Any, x: Tensor, y: Tensor) -> None:
        site, rows = site_of(layer, x, y)
        mask = self._reads(layer, x)
        gate: Any = layer.gate if isinstance(layer, SlotLayer) else None
        decisions = [] if self.at.on is None else self.at.on.pop(id(gate), [])
        batch = self.at.batch
        if decisions:
            on = decisions[-1]
            fires = gate.fires(on)
            spent: Spent = gate.spent(site, fires, None if mask is None else mask.channels)
            judged = torch.full_like(fires[:, 0], fires.shape[1] * (1 if hasattr(gate, "predictor") else site.places))
            batch.add(index, "fired", fires.sum(1))
            batch.add(index, "decided", judged)
            upper = spent.macs
            if mask is not None:
                upper = (spent.macs - spent.overhead) * mask.least // mask.channels.sum(1).clamp_min(1) + spent.overhead
            if hasattr(gate, "predictor") and self.at.mode is not None and y.dim() == layer.weight.dim():
                self.at.mode.put(y, Mask(fires > 0))
        else:
            spent, least = _dense(site, rows, mask, x.device)
            upper = least
            if self.at.mode is not None and mask is not None and isinstance(layer, nn.modules.conv._ConvNd):
                self._pass_through(layer, mask, y)
        for key, value in (
            ("macs", spent.macs), ("bops", spent.bops), ("overhead", spent.overhead),
            ("comparisons", spent.comparisons), ("upper", upper),
        ):  # fmt: skip
            batch.add(index, key, value)
        dense = torch.full_like(spent.macs, site.dense)
        batch.add(index, "dense", dense)
        batch.add(index, "dense_bops", dense * site.w_bits * site.x_bits)

    def _reads(self, layer: Any, x: Tensor) -> Mask | None:
        """The mask of the layer's input, as long as its x part leaves a zero a zero."""
        # a mask is of axis 1: not what a Linear reads of tokens
        mask = None if self.at.mode is None or x.dim() != layer.weight.dim() else self.at.mode.of(x)
        if mask is None or not isinstance(layer, SlotLayer) or layer.x is None:
            return mask
        if id(layer) not in self.zero_kept:
            part, training = layer.x, layer.x.training
            part.eval()  # an observer must not see this probe
            kept = bool((part(x.new_zeros(1, *x.shape[1:])) == 0).all())
            part.train(training)
            self.zero_kept[id(layer)] = kept
        return mask if self.zero_kept[id(layer)] else None

    def _pass_through(self, layer: Any, mask: Mask, y: Tensor) -> None:
        """Without a bias an output channel all of whose inputs are off is off: depthwise layers pass a mask on."""
        if layer.bias is None and layer.groups > 1 and self.at.mode is not None and y.dim() > 2:
            alive = mask.channels.unflatten(1, (layer.groups, layer.in_channels // layer.groups)).any(2)
            self.at.mode.put(y, Mask(alive.repeat_interleave(layer.out_channels // layer.groups, 1)))


def site_of(module: Any, x: Tensor, y: Tensor) -> tuple[Site, int]:
    """(facts of one call, rows of x): positions times taps times channels is what `walk` counts."""
    layer: Any = module
    slots: Any = layer if isinstance(module, SlotLayer) else None
    w_bits = x_bits = 32
    if slots is not None:
        (wb, wp), (xb, xp) = bit_facts(slots.w), bit_facts(slots.x)
        w_bits, x_bits = wp or wb or 32, getattr(slots.gate, "code_bits", None) or xp or xb or 32
    rows = x.shape[0] if x.dim() > 1 else 1
    if isinstance(module, nn.Linear):
        inputs, outputs, groups, taps = layer.in_features, layer.out_features, 1, 1
    else:
        inputs, outputs, groups = layer.in_channels, layer.out_channels, layer.groups
        taps = layer.weight[0, 0].numel()
        if x.dim() == layer.weight.dim() - 1:
            rows = 1  # one sample without a batch dimension
    work = call_macs(layer, x, y)
    per_position = taps * (inputs // groups) * outputs * max(1, rows)
    positions, places = work // per_position if per_position else 0, y.numel() // (max(1, rows) * outputs)
    return Site(positions, taps, groups, inputs, outputs, w_bits, x_bits, places), rows


def _dense(site: Site, rows: int, mask: Mask | None, device: torch.device) -> tuple[Spent, Tensor]:
    """A layer without a gate: all its outputs, from the inputs that can be non-zero; and the papers' count."""
    if mask is None:
        macs = torch.full((rows,), float(site.dense), dtype=torch.float64, device=device)
        return spent_of(macs, macs * site.w_bits * site.x_bits, None, 0), macs.long()
    per_input = float(site.positions * site.taps * (site.outputs // site.groups))
    macs = mask.channels.sum(1).double() * per_input
    return spent_of(macs, macs * site.w_bits * site.x_bits, None, 0), (mask.least.double() * per_input).long()
