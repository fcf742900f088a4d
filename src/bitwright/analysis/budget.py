"""A budget of work instead of a hand-tuned threshold: the loop closes on the multiply-accumulates really done."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitwright.analysis.count import count_macs, site_of
from bitwright.analysis.tally import spread
from bitwright.errors import InputError
from bitwright.nn.layers import SlotLayer
from bitwright.parts.fbs import FBS
from bitwright.parts.split_gate import SplitGate
from bitwright.transforms.forward import evaluating, run_model
from bitwright.types import Site

CLOSE = 0.005  # of the budget: near enough
GAIN = 0.05  # standard deviations of a partial sum that thresholds move per step and unit of error


class Budget:
    """Holds the work of a gated net at a share of its dense work, or at a number of MACs or bit operations per sample.

    penalty()   weight relu(spent / target - 1)^2 of the last forward pass, with the gates' gradient: add it to the loss
    step()      after each optimizer step: thresholds of all gates move together until what the batches spent is the target;
                which layer spends it is left to the loss. `fbs` has no threshold: `refit` alone governs it
    refit(x)    now and then, and at the end: makes evaluation on these inputs spend the budget

    macs, bops   one of them: a share up to 1, or a number of operations per sample
    The gates' own pull to a target is off while a budget governs them. Several processes move as one.
    Errors       `InputError` for a net without gates, a budget that its gates cannot reach, both kinds of gates in one net

    >>> import bitwright as bw
    >>> net = nn.Sequential(bw.nn.Conv2d(8, 8, 3, bias=False, gate="channel_gate"), nn.ReLU())
    >>> budget = Budget(net, torch.zeros(1, 8, 6, 6), macs=0.5)
    >>> for _ in range(300):
    ...     _ = net.train()(torch.randn(4, 8, 6, 6)); budget.step()
    >>> abs(budget.spent - 0.5) < 0.02
    True
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        macs: float | None = None,
        bops: float | None = None,
        weight: float = 1.0,
    ) -> None:
        if (macs is None) == (bops is None):
            raise InputError("budget: give one of macs and bops", code="budget")
        self.key, wanted = ("macs", macs) if bops is None else ("bops", bops)
        if not wanted or not wanted > 0:
            raise InputError(f"budget: {self.key}={wanted!r}; a share up to 1, or operations per sample", code="budget")
        self.weight = weight
        gates = {n: m.gate for n, m in model.named_modules() if isinstance(m, SlotLayer) and m.gate is not None}
        self.splits = {n: g for n, g in gates.items() if isinstance(g, SplitGate)}
        self.channels = {n: g for n, g in gates.items() if isinstance(g, FBS)}
        if not self.splits and not self.channels:
            raise InputError("budget: the net has no gate that could save work", code="budget")
        if self.splits and self.channels:
            raise InputError(
                "budget: fbs and split gates in one net: set keep yourself, and budget the others", code="budget"
            )
        self.model, self.spent = model, 1.0
        self._sites: dict[str, Site] = {}
        self.fixed = self.dense = 0
        self._measure(example)
        self.target = wanted * self.dense if wanted <= 1 else float(wanted)
        self._check_reach(wanted)
        self._now: list[tuple[str, Tensor]] = []
        self._work, self._samples = 0.0, 0
        self.handles: list[Any] = []
        for name, gate in self.splits.items():
            gate.governed = True
            watcher = self._watch(name)
            gate.watchers = (*gate.watchers, watcher)
            self.handles.append((gate, watcher))
        if self.channels:
            self.refit(example)

    def remove(self) -> None:
        """The gates go on alone."""
        for gate, watcher in self.handles:
            gate.governed = False
            gate.watchers = tuple(w for w in gate.watchers if w is not watcher)
        self.handles.clear()

    # -- what the net can do ------------------------------------------------------------------------------------------
    def _measure(self, example: Any) -> None:
        """Dense work, and that of layers without a split gate, per sample."""

        def note(name: str) -> Any:
            def hook(layer: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
                self._sites[name] = site_of(layer, args[0], y)[0]

            return hook

        named = dict(self.model.named_modules())
        hooks = [named[name].register_forward_hook(note(name)) for name in self.splits]
        try:
            with evaluating(self.model), count_macs(self.model) as count:
                run_model(self.model, example)
        finally:
            for hook in hooks:
                hook.remove()
        n = max(1, count.samples)
        per = count.per_layer if self.key == "macs" else count.per_layer_bops
        self.dense = (count.dense if self.key == "macs" else count.dense_bops) // n
        self.fixed = sum(work for name, work in per.items() if name not in self.splits) // n

    def _least(self) -> float:
        if not self.splits:
            return 0.0
        return self.fixed + sum(self._price(name, torch.zeros(1, g.outputs)) for name, g in self.splits.items())

    def _check_reach(self, wanted: float) -> None:
        least = self._least()
        if self.target < least:
            raise InputError(
                f"budget: {self.key}={wanted:g} is {self.target:.4g} per sample, but with every gate shut the net "
                f"spends {least:.4g} ({least / self.dense:.3f} of {self.dense:.4g})",
                code="budget",
                given=f"{wanted:g}",
                possible=f"{least / self.dense:.3f} to 1",
            )

    def _price(self, name: str, fires: Tensor) -> float:
        spent = self.splits[name].spent(self._sites[name], fires, None)
        return float((spent.macs if self.key == "macs" else spent.bops).sum())

    # -- the loop -----------------------------------------------------------------------------------------------------
    def _watch(self, name: str) -> Any:
        def look(gate: SplitGate, on: Tensor) -> None:
            if gate.training:
                self._now.append((name, on))

        return look

    def penalty(self) -> Tensor:
        """Of the forward passes since the last call; 0 for fbs."""
        rows: dict[str, int] = {}
        for name, on in self._now:
            rows[name] = rows.get(name, 0) + on.shape[0]
        samples = max(rows.values(), default=0)
        total = torch.zeros((), device=next(self.model.parameters()).device)
        for name, on in self._now:
            fires = self.splits[name].fires(on)
            work, shut = self._price(name, fires), self._price(name, torch.zeros_like(fires))
            share = (on.sum() - on.detach().sum()) / fires.sum().clamp_min(1)  # 0 in value, with the gates' slope
            total = total + (work + (work - shut) * share) / samples
            self._work += work
        self._samples += samples
        self._now.clear()
        if not samples:
            return total
        return self.weight * torch.relu((self.fixed + total) / self.target - 1).square()

    @torch.no_grad()
    def step(self) -> None:
        """Moves the thresholds by what the batches since the last step spent."""
        if self._now:
            self.penalty()
        sums = torch.tensor([self._work, float(self._samples)], dtype=torch.float64)
        if spread():
            device = next(self.model.parameters()).device
            sums = sums.to(device)
            dist.all_reduce(sums)
        self._work, self._samples = 0.0, 0
        if not self.splits or not float(sums[1]):
            return
        work = self.fixed + float(sums[0] / sums[1])
        self.spent = work / self.dense
        for gate in self.splits.values():
            gate.threshold.add_(GAIN * (work / self.target - 1) * gate.deviation())

    @torch.no_grad()
    def refit(self, example: Any) -> None:
        """Makes evaluation on these inputs spend the budget: one `keep` for all `fbs` layers, the largest that fits; or
        one shift of all thresholds, since running statistics spend a little more or less than those of a batch.

        Errors   `InputError` where one channel a layer is too much already
        """
        if self.channels:
            self._set_keep(self._share(example))
            if self._work_on(example) > self.target:
                raise InputError(
                    f"budget: {self.key} of {self.target:.4g} per sample, but one channel a layer spends "
                    f"{self._work_on(example):.4g} already",
                    code="budget",
                )
            return
        start = {name: gate.threshold.clone() for name, gate in self.splits.items()}

        def shifted(by: float) -> float:
            for name, gate in self.splits.items():
                gate.threshold.copy_(start[name] + by * gate.deviation())
            return self._work_on(example) / self.target - 1

        if abs(shifted(0.0)) < CLOSE:
            return
        shifted(self._first_process(_root(shifted, -1.0, 1.0)))

    def _share(self, example: Any) -> float:
        def over(keep: float) -> float:
            self._set_keep(keep)
            return self._work_on(example) - self.target

        if over(1.0) <= 0:
            return 1.0
        low, high = 1e-6, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (low, middle) if over(middle) > 0 else (middle, high)
        return self._first_process(low)

    def _set_keep(self, keep: float) -> None:
        for gate in self.channels.values():
            gate.set_keep(keep)

    def _first_process(self, value: float) -> float:
        """Running statistics may differ a little between processes: all take the first one's answer."""
        if not spread():
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=next(self.model.parameters()).device)
        dist.broadcast(shared, 0)
        return float(shared)

    def _work_on(self, example: Any) -> float:
        """Work per sample in evaluation, of this process alone."""
        with evaluating(self.model), count_macs(self.model) as count, count.here():
            run_model(self.model, example)
            total, dense = (count.total, count.dense) if self.key == "macs" else (count.bops, count.dense_bops)
            self.spent = total / dense
            return total / max(1, count.samples)

    # -- for checkpoints ----------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, float]:
        """Shares of channels found so far; thresholds are parameters of the net."""
        return {name: gate.keep for name, gate in self.channels.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name, keep in state.items():
            self.channels[name].set_keep(keep)


def _root(error: Any, low: float, high: float) -> float:
    """Where a falling function is about zero; the nearer end where it has no zero between them."""
    for _ in range(10):
        middle = (low + high) / 2
        at = error(middle)
        if abs(at) < CLOSE / 2:
            return middle
        low, high = (middle, high) if at > 0 else (low, middle)
    return (low + high) / 2
