"""Counting the work that gated nets really do, sample by sample, to the last multiply-accumulate."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bitwright.analysis.active import Active, ActiveChannels
from bitwright.analysis.mac_count import FLOAT_BITS, MacCount
from bitwright.errors import InputError
from bitwright.nn.layers import KINDS, SlotLayer
from bitwright.parts.moments import moment
from bitwright.parts.split_gate import spent_of
from bitwright.parts.traits import traits_of
from bitwright.transforms.facts import bit_facts
from bitwright.transforms.forward import eagerly
from bitwright.transforms.layers import ComputeLayer, candidates
from bitwright.transforms.tracer import Tracer
from bitwright.transforms.unwrap import unwrap
from bitwright.transforms.walk import call_macs
from bitwright.types import Site, Spent

MEASURED = ("macs", "bops", "overhead", "comparisons", "quadratic", "x_bits")


@contextmanager
def count_macs(model: nn.Module) -> Iterator[MacCount]:
    """Counts what the forward passes of `model` compute while the block runs; calls of a part on its own do not count.

    Each layer is priced by its gate (`spent`), or as dense; a channel that a gate upstream switched off counts for nothing
    in the layers that read it, as long as only operators lie between that leave zeros where they are (a sum of maps is
    non-zero where any of them is; a norm or bias ends the knowledge). Padding counts, as everywhere. Works in training too,
    and on several processes; counting itself needs no communication, reading sums over processes, so all of them read (see
    `MacCount`). A net that several threads run at once is counted whole, samples in the order in which passes end.
    Errors   `InputError` for a model without layers, and for one that calls its layers from other threads than its own
             (`nn.DataParallel` on several devices): count what it wraps

    >>> import bitwright as bw
    >>> net = nn.Sequential(bw.nn.Conv2d(8, 8, 1, bias=False, gate={"part": "channel_gate", "init": 9.0}))
    >>> with count_macs(net.eval()) as macs:
    ...     _ = net(torch.zeros(2, 8, 4, 4))
    >>> macs.dense, macs.total, macs.rates
    (2048, 512, {'0': 0.0})
    """
    _check_threads(model)
    model = unwrap(model)
    found = [c for c in candidates(model) if isinstance(c.module, tuple(KINDS))]
    if not found:
        raise InputError("count_macs: the model has no layer to count", code="count-none")
    count = MacCount([c.name for c in found])
    watch = _Watch(count, found)
    with ExitStack() as stack:
        watch.install(model, stack)
        stack.enter_context(eagerly())
        yield count


def _check_threads(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise _threads_error(name or None, "DataParallel")


def _threads_error(layer: str | None, given: str) -> InputError:
    return InputError(
        f"count_macs: {given} runs layers in other threads than the model, so no sample is known to them; count what it "
        "wraps (count_macs(wrapper.module)), or use DistributedDataParallel",
        code="count-threads", layer=layer, given=given, possible="wrapper.module, or DistributedDataParallel",
    )  # fmt: skip


class _Pass(threading.local):
    """The forward pass that this thread is in."""

    batch: Any = None
    active: ActiveChannels | None = None
    tracer: Tracer | None = None
    on: dict[int, list[Tensor]] | None = None


class _Watch:
    """The hooks of a block. They are copied with the net, but do nothing on a copy: the block counts one net."""

    asleep = False

    def __init__(self, count: MacCount, found: list[ComputeLayer]) -> None:
        self.count, self.found, self.at = count, found, _Pass()
        self.running, self.lock = 0, threading.Lock()  # passes, in all threads
        gates = [m.gate for c in found if isinstance(m := c.module, SlotLayer)]
        self.follow = any(moment(gate, "spent") is not None and traits_of(gate).switches_channels for gate in gates)
        self.zero_kept: dict[int, bool] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Watch:
        copied = _Watch.__new__(_Watch)
        copied.asleep, copied.at = True, _Pass()
        return copied

    def install(self, model: nn.Module, stack: ExitStack) -> None:
        self.wraps = type(model).__name__

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
        with self.lock:
            self.running += 1
        if self.follow:
            self.at.active = ActiveChannels()
            self.at.tracer = Tracer(self.at.active)
            self.at.tracer.__enter__()

    def _end(self, model: nn.Module, args: Any, y: Any) -> None:
        if self.at.tracer is not None:
            self.at.tracer.__exit__(None, None, None)
        batch, self.at.batch, self.at.active, self.at.tracer, self.at.on = self.at.batch, None, None, None, None
        if batch is not None:
            with self.lock:
                self.running -= 1
        if batch is not None and y is not None:  # None: the pass broke off
            self.count._tally.close(batch)

    def _decision(self, gate: nn.Module, on: Tensor) -> None:
        if self.at.on is not None:
            self.at.on.setdefault(id(gate), []).append(on)

    def _layer(self, index: int) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            if self.at.batch is None and not self.asleep and self.running:
                raise _threads_error(self.found[index].name, self.wraps)
            if self.at.batch is not None:
                x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
                with torch.no_grad():
                    self._count(index, layer, x, y)

        return hook

    def _count(self, index: int, layer: Any, x: Tensor, y: Tensor) -> None:
        site, rows = site_of(layer, x, y)
        mask = self._reads(index, layer, x)
        gate: Any = layer.gate if isinstance(layer, SlotLayer) else None
        decisions = [] if self.at.on is None else self.at.on.pop(id(gate), [])
        batch = self.at.batch
        if decisions:
            on = decisions[-1]
            fires = gate.fires(on)
            spent: Spent = gate.spent(site, fires, None if mask is None else mask.channels)
            channels = traits_of(gate).switches_channels
            judged = torch.full_like(fires[:, 0], fires.shape[1] * (1 if channels else site.places))
            batch.add(index, "fired", fires.sum(1))
            batch.add(index, "decided", judged)
            quadratic = spent.macs
            if mask is not None:
                own, active = spent.macs - spent.overhead, mask.channels.sum(1).clamp_min(1)
                quadratic = own * mask.least // active + spent.overhead
            if channels and self.at.active is not None and y.dim() == layer.weight.dim():
                self.at.active.put(y, Active(fires > 0))
        else:
            spent, quadratic = _dense(site, rows, mask, x.device)
            if self.at.active is not None and mask is not None and isinstance(layer, nn.modules.conv._ConvNd):
                self._pass_through(layer, mask, y)
        x_bits = (spent.bops - spent.overhead * FLOAT_BITS**2) // site.w_bits
        values = spent.macs, spent.bops, spent.overhead, spent.comparisons, quadratic, x_bits
        for key, value in zip(MEASURED, values, strict=True):
            batch.add(index, key, value)
        dense = torch.full_like(spent.macs, site.dense)
        batch.add(index, "dense", dense)
        batch.add(index, "dense_bops", dense * site.w_bits * site.x_bits)

    def _reads(self, index: int, layer: Any, x: Tensor) -> Active | None:
        """The mask of the layer's input, as long as its x part maps 0 to 0."""
        # the mask is for axis 1, which for a Linear on tokens is not the features
        mask = None if self.at.active is None or x.dim() != layer.weight.dim() else self.at.active.of(x)
        if mask is None or not isinstance(layer, SlotLayer) or layer.x is None:
            return mask
        if index not in self.zero_kept:  # by index, not by id: replicas are temporary
            part, training = layer.x, layer.x.training
            part.eval()  # an observer must not see this probe
            kept = bool((part(x.new_zeros(1, *x.shape[1:])) == 0).all())
            part.train(training)
            self.zero_kept[index] = kept
        return mask if self.zero_kept[index] else None

    def _pass_through(self, layer: Any, mask: Active, y: Tensor) -> None:
        """Without a bias, an output channel is off if all its inputs are: so depthwise layers pass a mask on."""
        if layer.bias is None and layer.groups > 1 and self.at.active is not None and y.dim() > 2:
            alive = mask.channels.unflatten(1, (layer.groups, layer.in_channels // layer.groups)).any(2)
            self.at.active.put(y, Active(alive.repeat_interleave(layer.out_channels // layer.groups, 1)))


def site_of(module: Any, x: Tensor, y: Tensor) -> tuple[Site, int]:
    """(facts of one call, rows of x): positions times taps times channels is what `walk` counts."""
    layer: Any = module
    slots: Any = layer if isinstance(module, SlotLayer) else None
    w_bits = x_bits = FLOAT_BITS
    if slots is not None:
        (wb, wp), (xb, xp) = bit_facts(slots.w), bit_facts(slots.x)
        w_bits, x_bits = wp or wb or FLOAT_BITS, traits_of(slots.gate).code_bits or xp or xb or FLOAT_BITS
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


def _dense(site: Site, rows: int, mask: Active | None, device: torch.device) -> tuple[Spent, Tensor]:
    """A layer without a gate: all its outputs, from the inputs that can be non-zero; and the all-quadratic count."""
    if mask is None:
        macs = torch.full((rows,), float(site.dense), dtype=torch.float64, device=device)
        return spent_of(macs, macs * site.w_bits * site.x_bits, None, 0), macs.long()
    per_input = float(site.positions * site.taps * (site.outputs // site.groups))
    macs = mask.channels.sum(1).double() * per_input
    return spent_of(macs, macs * site.w_bits * site.x_bits, None, 0), (mask.least.double() * per_input).long()
