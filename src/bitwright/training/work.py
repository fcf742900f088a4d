"""How much of its work a gated net did on a set of images, and what that says of each gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.nn import is_slot_layer
from bitwright.parts.moments import moment
from bitwright.parts.traits import traits_of
from bitwright.runs.tables import GateClass, GateWork, ImageWork
from bitwright.training.work_words import work_text

if TYPE_CHECKING:
    from bitwright.analysis import MacCount
    from bitwright.data import Images
    from bitwright.runs import Run

CHUNK = 32  # images of a forward pass that is counted, always
PICTURES = 8  # of the cheapest images, and of the costliest


@dataclass(frozen=True)
class Work:
    """Sums over `images`, over all processes; exact whole numbers.

    rates       gated layer -> share of the decisions that were on
    saliency    fbs layer -> mean of a channel's saliency, winners and losers
    per_macs, per_bops   int64 [images] of this process alone, in the order of the images
    fired       int64 [images, layers] of this process alone: outputs (fbs: channels) let through; columns as in `rates`
    judged      layer -> decisions per image
    spread      p5, p50, p95, min, max of the MACs per image; spread_bops: of the bit operations
    overhead, comparisons, quadratic, unweighted_sparsity, net_bits   those of `bw.MacCount`
    mean_bits   layer gated by precision -> mean bits of its inputs; gated_bits: over the products of all these, None without
    """

    images: int
    macs: int
    dense_macs: int
    bops: int
    dense_bops: int
    rates: dict[str, float]
    saliency: dict[str, float]
    per_macs: Tensor
    per_bops: Tensor
    fired: Tensor
    judged: dict[str, int]
    spread: dict[str, int]
    spread_bops: dict[str, int]
    overhead: int
    comparisons: int
    quadratic: int
    unweighted_sparsity: float
    net_bits: float
    mean_bits: dict[str, float]
    gated_bits: float | None

    def means(self) -> dict[str, float]:
        """Per image."""
        n = max(1, self.images)
        return {key: getattr(self, key) / n for key in ("macs", "dense_macs", "bops", "dense_bops")}

    def to_dict(self) -> dict[str, Any]:
        """Raw values; per image where the name says nothing else."""
        n = max(1, self.images)
        return {
            **self.means(),
            "total_macs": self.macs,
            "total_bops": self.bops,
            "reduction": self.dense_macs / self.macs if self.macs else None,
            "bops_reduction": self.dense_bops / self.bops if self.bops else None,
            "macs_spread": self.spread,
            "bops_spread": self.spread_bops,
            "rates": self.rates,
            "overhead_macs": self.overhead / n,
            "comparisons": self.comparisons / n,
            "quadratic_macs": self.quadratic / n,
            "quadratic_reduction": self.dense_macs / self.quadratic if self.quadratic else None,
            "unweighted_sparsity": self.unweighted_sparsity,
            "mean_bits": self.mean_bits,
            "gated_bits": self.gated_bits,
            "net_bits": self.net_bits,
        }

    def text(self) -> str:
        return work_text(self.macs, self.dense_macs, self.bops, self.dense_bops)


def gates_of(net: nn.Module) -> dict[str, Any]:
    """Layer -> its gate, where that gate can save work."""
    found = ((name, m.gate) for name, m in net.named_modules() if is_slot_layer(m))
    return {name: gate for name, gate in found if moment(gate, "spent") is not None}


class Ledger:
    """What `counting` watches; `work` reads it."""

    def __init__(self, count: MacCount, gates: dict[str, Any]) -> None:
        self.count, self.gates = count, gates
        self.sums = {name: torch.zeros(2, dtype=torch.float64) for name, g in gates.items() if moment(g, "saliencies")}

    def hook(self, name: str) -> Callable[..., None]:
        def look(gate: Any, args: tuple[Any, ...]) -> None:
            with torch.no_grad():
                g = gate.saliencies(args[0].raw)[: self.count.limit or None].double()
                self.sums[name] += torch.tensor([float(g.sum()), float(g.numel())], dtype=torch.float64)

        return look

    def answers(self, net: nn.Module, x: Tensor) -> Tensor:
        """net(x) in passes of `CHUNK` images, the last one filled up with an image that then does not count.

        torch sums in another order for another number of images, and one last bit can change a gate's decision. So the number
        is always the same. Gates that read the batch itself (`batch_max`) get it whole.
        """
        if any(traits_of(g).reads_batch for g in self.gates.values()):
            return net(x)
        like = torch.channels_last if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else None
        found = []
        for part in x.split(CHUNK):
            n = len(part)
            if n < CHUNK:
                part = torch.cat([part, part[:1].expand(CHUNK - n, *part.shape[1:])])
                part = part.contiguous(memory_format=like or torch.contiguous_format)
            with self.count.valid(n):
                found.append(net(part)[:n])
        return torch.cat(found)

    def work(self, alone: bool) -> Work:
        """alone: this process saw all images; else the sums are over all processes."""
        if alone:
            with self.count.here():
                return self._work(alone)
        return self._work(alone)

    def _work(self, alone: bool) -> Work:
        count = self.count
        rates, decided, samples = count.rates, count.decided, count.samples
        sums = torch.stack(list(self.sums.values())) if self.sums else torch.zeros(0, 2, dtype=torch.float64)
        if not alone:
            device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
            sums = sums.to(device)
            torch.distributed.all_reduce(sums)
        saliency = {name: float(s / n) for name, (s, n) in zip(self.sums, sums.tolist(), strict=True) if n}
        totals = count.total, count.dense, count.bops, count.dense_bops
        spread, spread_bops = count.spread(), count.spread("bops")
        extra = count.overhead, count.comparisons, count.quadratic, count.unweighted_sparsity, count.net_bits
        per_layer, bits = count.per_layer, count.mean_bits
        mean_bits = {name: bits[name] for name in rates if traits_of(self.gates[name]).code_bits and name in bits}
        products = sum(per_layer[name] for name in mean_bits)
        gated = sum(value * per_layer[name] for name, value in mean_bits.items()) / products if products else None
        columns = {name: i for i, name in enumerate(per_layer)}
        with count.here():
            own = count.per_sample, count.per_sample_bops, count.fired_per_sample[:, [columns[n] for n in rates]]
        judged = {name: decided[name] // max(1, samples) for name in rates}
        return Work(samples, *totals, rates, saliency, *own, judged, spread, spread_bops, *extra, mean_bits, gated)


@contextmanager
def counting(net: nn.Module) -> Iterator[Ledger]:
    """Counts while the block runs, also how salient the channels of `fbs` layers are."""
    from bitwright.analysis import count_macs

    gates = gates_of(net)
    with count_macs(net) as count:
        ledger = Ledger(count, gates)
        handles = [gates[name].register_forward_pre_hook(ledger.hook(name)) for name in ledger.sums]
        try:
            yield ledger
        finally:
            for handle in handles:
                handle.remove()


# -- files ----------------------------------------------------------------------------------------------------------------
def write_work(run: Run, test: Images, said: Tensor, work: Work) -> None:
    """work.json, compute.csv, gate_classes.csv, and pictures of the images that cost least and most."""
    from bitwright.tensors import write_tensors

    run.write(GateWork, [{"images": work.images, **work.to_dict()}])
    true = test.labels.tolist()
    columns = zip(true, said.tolist(), work.per_macs.tolist(), work.per_bops.tolist(), strict=True)
    rows = ({"index": i, "true": t, "said": s, "macs": m, "bops": b} for i, (t, s, m, b) in enumerate(columns))
    run.write(ImageWork, rows)
    rows = []
    for k in range(len(test.classes)):
        chosen = work.fired[test.labels == k].double()
        for (name, judged), on in zip(
            work.judged.items(), chosen.mean(0).tolist() if len(chosen) else [], strict=False
        ):
            rows.append({"layer": name, "class": k, "rate": on / judged})
    run.write(GateClass, rows)
    key = work.per_macs if bool((work.per_macs != work.per_macs[:1]).any()) else work.per_bops
    order = key.argsort(stable=True)
    few = min(PICTURES, len(order) // 2)
    index = torch.cat([order[:few], order[len(order) - few :].flip(0)])
    write_tensors(run.file("compute.safetensors"), {"images": test.pictures(index), "index": index}, {})
