"""A budget of work instead of a hand-tuned threshold: a control loop on the multiply-accumulates really done."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bitwright.analysis.budget_fit import fit_channels, root
from bitwright.analysis.count import count_macs, site_of
from bitwright.analysis.mac_count import FLOAT_BITS, MacCount
from bitwright.analysis.tally import several_processes
from bitwright.errors import BitwrightWarning, InputError
from bitwright.nn.layers import SlotLayer
from bitwright.parts.moments import moment
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.unwrap import unwrap
from bitwright.types import Site

HELD = 0.02  # share of the budget; a larger distance is reported
GAIN = 0.05  # standard deviations of a partial sum that thresholds move per step and unit of error


class Budget:
    """Holds the work of a gated net at a share of its dense work, or at a number of MACs or bit operations per sample.

    penalty()   weight relu(spent / target - 1)^2 of the last forward pass, with the gates' gradient: add it to the loss
    step()      after each optimizer step: thresholds of all gates move together until what the batches spent is the target;
                which layer spends it is left to the loss. `fbs` has no threshold: `refit` alone governs it
    refit(x)    now and then, and at the end: makes evaluation on these inputs spend the budget

    macs, bops   one of them: a share up to 1, or a number of operations per sample
    gradient     of penalty(), to z - threshold of each output: 2 weight (spent / target - 1) / target times the mean price of
                 the layer's outputs that are on, times the gate's own slope s (1 - s) slope
    The gates' own pull to a target is off while a budget governs them. Several processes move as one.
    Errors       `InputError` for a net without gates, a budget that its gates cannot reach or that is above the dense work,
                 infinite thresholds, fbs beside other gates. `BitwrightWarning` where `refit` ends more than 2 % off:
                 no step of the gates is fine enough, or too many channels are dead
    source       the budget term relu(C / C_target - 1)^2 is common; the papers of the three gates have thresholds and shares
                 tuned by hand
    differs      a soft count, the sum of sigmoids, is the usual C: it is above or below what is done whenever sums are not
                 spread evenly about their threshold, so it would change a net that holds its budget. Here C is the count of
                 what was done, with the slope of that soft count. One price per layer: outputs of one layer differ in price
                 only where channels do not divide evenly

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
            raise InputError(
                "budget: give one of macs and bops", code="budget", given="neither" if macs is None else "both",
                possible="macs or bops",
            )  # fmt: skip
        self.key, wanted = ("macs", macs) if bops is None else ("bops", bops)
        if not wanted or not wanted > 0:
            raise InputError(
                f"budget: {self.key}={wanted!r}; a share up to 1, or operations per sample", code="budget",
                given=repr(wanted), possible="a share above 0 and up to 1, or operations per sample",
            )  # fmt: skip
        model = unwrap(model)
        self.weight, self.wanted = weight, float(wanted)
        gates = {n: m.gate for n, m in model.named_modules() if isinstance(m, SlotLayer) and m.gate is not None}
        self.splits: dict[str, Any] = {n: g for n, g in gates.items() if moment(g, "deviation")}
        self.channels: dict[str, Any] = {n: g for n, g in gates.items() if moment(g, "set_keep")}
        self._check_gates(type(model).__name__)
        self.model, self.spent = model, 1.0
        self._sites: dict[str, Site] = {}
        self._prices: dict[str, float] = {}
        self.fixed = self.dense = 0
        self._measure(example)
        self.target = self.wanted * self.dense if self.wanted <= 1 else self.wanted
        self._check_reach()
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
        """Takes the hooks off; the gates work without the budget from then on."""
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

    def _check_gates(self, model: str) -> None:
        if not self.splits and not self.channels:
            raise InputError(
                "budget: the net has no gate that could save work", code="budget", given=model,
                possible="a net with fbs, channel_gate or precision_gate",
            )  # fmt: skip
        if self.splits and self.channels:
            raise InputError(
                "budget: fbs and split gates in one net: set keep yourself, and budget the others", code="budget",
                layer=next(iter(self.channels)), given="fbs and split gates", possible="one kind",
            )  # fmt: skip
        for name, gate in self.splits.items():
            if not bool(gate.threshold.isfinite().all()):
                raise InputError(
                    f"budget: {name}: an infinite threshold cannot move; give the gate a finite init", code="budget",
                    layer=name, given=f"init={gate.init:g}", possible="a finite init",
                )  # fmt: skip

    def _check_reach(self) -> None:
        least = self._least()
        if least <= self.target <= self.dense:
            return
        why = (
            f"with every gate shut the net spends {least:.4g}"
            if self.target < least
            else "more than the net with no gate"
        )
        raise InputError(
            f"budget: {self.key}={self.wanted:g} is {self.target:.4g} per sample, {why}. Possible: "
            f"{self._reach(least, self.dense)}",
            code="budget",
            given=f"{self.wanted:g}",
            possible=self._reach(least, self.dense),
        )

    def _reach(self, least: float, most: float) -> str:
        """As shares, or as operations where those were given."""
        if self.wanted > 1:
            return f"{least:.4g} to {most:.4g}"
        return f"{least / self.dense:.3f} to {most / self.dense:.3f} of {self.dense:.4g}"

    def _price(self, name: str, fires: Tensor) -> float:
        spent = self.splits[name].spent(self._sites[name], fires, None)
        return float((spent.macs if self.key == "macs" else spent.bops).sum())

    # -- the loop -----------------------------------------------------------------------------------------------------
    def _watch(self, name: str) -> Any:
        def look(gate: nn.Module, on: Tensor) -> None:
            if gate.training:
                self._now.append((name, on))

        return look

    def penalty(self) -> Tensor:
        """The penalty of the forward passes since the last call; 0 for fbs."""
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
        if several_processes():
            sums = sums.to(self._device())
            dist.all_reduce(sums)
        self._work, self._samples = 0.0, 0
        if not self.splits or not float(sums[1]):
            return
        work = self.fixed + float(sums[0] / sums[1])
        self.spent = work / self.dense
        for gate, size in zip(self.splits.values(), self._deviations(), strict=True):
            gate.threshold.add_(GAIN * (work / self.target - 1) * size)

    @torch.no_grad()
    def refit(self, example: Any) -> None:
        """Makes evaluation on these inputs spend the budget: the `keep` of each `fbs` layer, raised channel by channel
        until the next step would overshoot; or one shift of all thresholds, since running statistics spend a little more or
        less than those of a batch.

        Errors   `InputError` where one channel a layer is too much already; `BitwrightWarning` where the work ends more than
                 2 % off the budget
        """
        if self.channels:
            fit_channels(self.channels, lambda: self._work_on(example) / self.target - 1, self._price_shares)
            keeps = self._agreed([gate.keep for gate in self.channels.values()])
            for gate, keep in zip(self.channels.values(), keeps, strict=True):
                gate.set_keep(keep)
        else:
            start = {name: gate.threshold.clone() for name, gate in self.splits.items()}
            sizes = self._deviations()

            def shifted(by: float) -> float:
                for (name, gate), size in zip(self.splits.items(), sizes, strict=True):
                    gate.threshold.copy_(start[name] + by * size)
                return self._work_on(example) / self.target - 1

            shifted(*self._agreed([root(shifted)]))
        (work,) = self._agreed([self._work_on(example)])
        self.spent = work / self.dense
        self._judge(work, example)

    def _judge(self, work: float, example: Any) -> None:
        """Whether the work is the budget: channels that do not fit are an error, other distances a warning."""
        off = work / self.target - 1
        if abs(off) <= HELD:
            return
        least, most = self._least(), float(self.dense)
        if self.channels:
            keeps = {name: gate.keep for name, gate in self.channels.items()}
            least, most = (self._with_keep(keep, example) for keep in (1e-6, 1.0))
            self.load_state_dict(keeps)
        if self.channels and off > 0:
            raise InputError(
                f"budget: {self.key} of {self.target:.4g} per sample, but one channel a layer spends {work:.4g} already; "
                f"{self._reach(least, most)}",
                code="budget",
                given=f"{self.wanted:g}",
                possible=self._reach(least, most),
            )
        warnings.warn(
            f"budget: {self.key} of {self.target:.4g} per sample, but the gates come no nearer than {work:.4g} "
            f"({100 * off:+.1f} %); {self._reach(least, most)} is possible, in steps of "
            + ("a channel" if self.channels else "an output"),
            BitwrightWarning,
            stacklevel=3,
        )

    def _with_keep(self, keep: float, example: Any) -> float:
        for gate in self.channels.values():
            gate.set_keep(keep)
        return self._work_on(example)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _agreed(self, values: list[float]) -> list[float]:
        """Running statistics may differ a little between processes: all take the first one's answer."""
        if not several_processes():
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=self._device())
        dist.broadcast(shared, 0)
        return shared.tolist()

    def _deviations(self) -> list[float]:
        """What a step of each layer's thresholds is measured in, the same on all processes."""
        return self._agreed([float(gate.deviation()) for gate in self.splits.values()])

    def _work_on(self, example: Any) -> float:
        """Work per sample in evaluation, of this process alone."""
        with evaluating(self.model), count_macs(self.model) as count, count.here():
            run_model(self.model, example)
            self._prices = self._block_prices(count) if self.channels else {}
            return (count.total if self.key == "macs" else count.bops) / max(1, count.samples)

    def _block_prices(self, count: MacCount) -> dict[str, float]:
        """What one more block of channels costs in its own layer; layers that read it come on top."""
        per, over = (count.per_layer if self.key == "macs" else count.per_layer_bops), count.per_layer_overhead
        each = 1 if self.key == "macs" else FLOAT_BITS**2
        fired = count.fired
        return {
            name: (per[name] - each * over[name]) * gate.block / max(1, fired[name])
            for name, gate in self.channels.items()
        }

    def _price_shares(self) -> dict[str, float]:
        return {name: price / self.target for name, price in self._prices.items()}

    # -- for checkpoints ----------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, float]:
        """Shares of channels found so far; thresholds are parameters of the net."""
        return {name: gate.keep for name, gate in self.channels.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name, keep in state.items():
            self.channels[name].set_keep(keep)
