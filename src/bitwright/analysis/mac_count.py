"""What `count_macs` found: exact sums, and the figures that papers make of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from bitwright.analysis.tally import Tally

FLOAT_BITS = 32


class _Total:
    """A counter, summed over all layers."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __get__(self, count: MacCount, owner: object = None) -> int:
        return sum(count._tally.sums(self.key))


class _PerLayer:
    """A counter, layer by layer."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __get__(self, count: MacCount, owner: object = None) -> dict[str, int]:
        return dict(zip(count._tally.layers, count._tally.sums(self.key), strict=True))


class MacCount:
    """What was counted so far, over all processes; every number is exact. Reading changes nothing.

    On several processes every read is a sum over them, so all of them must make it, in the same order. What only one prints
    is read `with macs.here()` (its own numbers), or by all beforehand. A process that reads alone hangs.

    total, dense       multiply-accumulates done, and with every gate open; overhead (predictors, scaling) is in total
    bops, dense_bops   times the bits of weight and input; a float counts 32
    samples            forward passes by sample
    per_layer          layer -> multiply-accumulates; also per_layer_dense, per_layer_bops, fired (outputs, or channels, that
                       a gate let through) and decided (those it decided on)
    per_sample         int64 [samples], in the order they came (on several processes: process by process)
    overhead, comparisons   predictors and scaling, part of total (also per_layer_overhead); what the decisions cost
                       besides, without a multiply
    quadratic          all-quadratic total, as papers of `fbs` count it: a sum of maps counts as sparse as the sparsest of
                       them, so never more than total. dense / quadratic is the reduction they publish, an upper bound
    mean_bits, net_bits   bits of the inputs by which a layer multiplied: layer -> mean over its products, and the mean over
                       all products of the net; a float counts 32. `precision_gate`: top + rate (bits - top)
    unweighted_sparsity   what the public codes print: decisions that were off / decisions (an output; `fbs`: a channel), each
                       counting the same whatever it saves. No reduction of work: bases and other layers are not in it
    """

    total, dense, bops, dense_bops = _Total("macs"), _Total("dense"), _Total("bops"), _Total("dense_bops")
    overhead, comparisons, quadratic = _Total("overhead"), _Total("comparisons"), _Total("quadratic")
    per_layer, per_layer_dense, per_layer_bops = _PerLayer("macs"), _PerLayer("dense"), _PerLayer("bops")
    per_layer_overhead, fired, decided = _PerLayer("overhead"), _PerLayer("fired"), _PerLayer("decided")

    def __init__(self, layers: list[str]) -> None:
        self._tally = Tally(layers)
        self.limit: int | None = None  # samples that count in each forward pass (see `valid`)

    @property
    def samples(self) -> int:
        return self._tally.samples()

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
        >>> from bitwright import count_macs
        >>> with count_macs(net := torch.nn.Sequential(torch.nn.Linear(4, 2))) as macs:
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

    @property
    def mean_bits(self) -> dict[str, float]:
        bits, done = self._bits()
        return {n: b / d for n, b, d in zip(self._tally.layers, bits, done, strict=True) if d}

    @property
    def net_bits(self) -> float:
        """0 where nothing was counted.

        >>> import torch
        >>> from bitwright import count_macs
        >>> with count_macs(net := torch.nn.Sequential(torch.nn.Linear(4, 2))) as macs:
        ...     _ = net(torch.zeros(3, 4))
        >>> macs.net_bits, macs.mean_bits, macs.unweighted_sparsity
        (32.0, {'0': 32.0}, 0.0)
        """
        bits, done = self._bits()
        return sum(bits) / max(1, sum(done))

    def _bits(self) -> tuple[list[int], list[int]]:
        """Per layer: the bits of the inputs summed over its products, and these products; overhead is none of them."""
        bits, macs, overhead = (self._tally.sums(key) for key in ("x_bits", "macs", "overhead"))
        return bits, [m - o for m, o in zip(macs, overhead, strict=True)]

    @property
    def unweighted_sparsity(self) -> float:
        """0 where nothing was decided."""
        fired, decided = sum(self._tally.sums("fired")), sum(self._tally.sums("decided"))
        return 1 - fired / decided if decided else 0.0

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
