"""How much of its work a gated net did on a set of images, and what that says of each gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.measure.numbers import macs
from bitwright.nn import is_slot_layer
from bitwright.parts.moments import moment

if TYPE_CHECKING:
    from bitwright.analysis.count import MacCount
    from bitwright.data import Images
    from bitwright.runs import Run

CHUNK = 32  # images of a forward pass that is counted, always
PICTURES = 8  # of the cheapest images, and of the dearest
GATES = (
    "stage", "epoch", "layer", "gate", "rate", "threshold_mean", "threshold_min", "threshold_max", "target", "keep",
    "saliency",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Sums over `images`, over all processes; exact whole numbers.

    rates       gated layer -> share of the decisions that were on
    saliency    fbs layer -> mean of a channel's saliency, winners and losers
    per_macs, per_bops   int64 [images] of this process alone, in the order of the images
    fired       int64 [images, layers] of this process alone: outputs (fbs: channels) let through; columns as in `rates`
    judged      layer -> decisions per image
    spread      p5, p50, p95, min, max of the MACs per image; spread_bops: of the bit operations
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

    def means(self) -> dict[str, float]:
        """Per image."""
        n = max(1, self.images)
        return {key: getattr(self, key) / n for key in ("macs", "dense_macs", "bops", "dense_bops")}

    def to_dict(self) -> dict[str, Any]:
        """Raw values; per image where the name says nothing else."""
        return {
            **self.means(),
            "total_macs": self.macs,
            "total_bops": self.bops,
            "reduction": self.dense_macs / self.macs if self.macs else None,
            "bops_reduction": self.dense_bops / self.bops if self.bops else None,
            "macs_spread": self.spread,
            "bops_spread": self.spread_bops,
            "rates": self.rates,
        }

    def text(self) -> str:
        return work_text(self.macs, self.dense_macs, self.bops, self.dense_bops)


def work_text(macs: float, dense_macs: float, bops: float, dense_bops: float) -> str:
    """MACs as a share of the dense net's; bit operations too where they say something else.

    >>> work_text(51, 100, 5100, 10000)
    'MACs 0.51x, 1.96x fewer'
    >>> work_text(100, 100, 75, 100)
    'BOPs 0.75x, 1.33x fewer'
    >>> work_text(50, 100, 25, 100)
    'MACs 0.50x, 2.00x fewer; BOPs 0.25x, 4.00x fewer'
    """
    m, b = macs / max(dense_macs, 1), bops / max(dense_bops, 1)
    apart = abs(m - b) > 0.01
    words = [_share("MACs", m)] if not apart or m != 1 else []
    return "; ".join(words + ([_share("BOPs", b)] if apart else []))


def _share(what: str, share: float) -> str:
    if share == 1:
        return f"{what} 1.00x"
    return f"{what} {share:.2f}x, " + (f"{1 / share:.2f}x fewer" if share < 1 else f"{(share - 1) * 100:.1f} % more")


def spread_text(work: Work) -> str:
    """Work per image at three percentiles: MACs, or bit operations where every image has the same MACs."""
    for what, at in (("MACs", work.spread), ("BOPs", work.spread_bops)):
        if at and at["min"] != at["max"]:
            return f"{what} per image p5 {macs(at['p5'])}, p50 {macs(at['p50'])}, p95 {macs(at['p95'])}"
    return "the same for every image"


def gates_of(net: nn.Module) -> dict[str, Any]:
    """Layer -> its gate, where that gate can save work."""
    found = ((name, m.gate) for name, m in net.named_modules() if is_slot_layer(m))
    return {name: gate for name, gate in found if moment(gate, "spent") is not None}


class Ledger:
    """What `counting` watches; `work` reads it."""

    def __init__(self, count: MacCount, gates: dict[str, Any]) -> None:
        self.count, self.gates = count, gates
        self.sums = {name: torch.zeros(2, dtype=torch.float64) for name, g in gates.items() if hasattr(g, "predictor")}

    def hook(self, name: str) -> Callable[..., None]:
        def look(gate: Any, args: tuple[Any, ...]) -> None:
            with torch.no_grad():
                g = gate.saliencies(args[4])[: self.count.limit or None].double()
                self.sums[name] += torch.tensor([float(g.sum()), float(g.numel())], dtype=torch.float64)

        return look

    def answers(self, net: nn.Module, x: Tensor) -> Tensor:
        """net(x) in passes of `CHUNK` images, the last one filled up with an image that then does not count.

        torch sums in another order for another number of images, and one last bit turns a decision: so the number is
        always the same. Gates that read the batch itself (`compat="seed"`, `batch_max`) get it whole.
        """
        if any(getattr(g, "seed", False) or getattr(g, "scale", "") == "batch_max" for g in self.gates.values()):
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
        columns = {name: i for i, name in enumerate(count.per_layer)}
        with count.here():
            own = count.per_sample, count.per_sample_bops, count.fired_per_sample[:, [columns[n] for n in rates]]
        judged = {name: decided[name] // max(1, samples) for name in rates}
        return Work(samples, *totals, rates, saliency, *own, judged, spread, spread_bops)


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
def gate_rows(net: nn.Module, work: Work | None, stage: int, epoch: int) -> list[dict[str, Any]]:
    """Of gates.csv: what each gate does after an epoch, and where its thresholds stand."""
    if work is None:
        return []
    gates, rows = gates_of(net), []
    for name, rate in work.rates.items():
        gate = gates[name]
        row: dict[str, Any] = dict.fromkeys(GATES)
        row |= {"stage": stage, "epoch": epoch, "layer": name, "gate": getattr(gate, "part_name", ""), "rate": rate}
        if (threshold := getattr(gate, "threshold", None)) is not None:
            t = threshold.detach().double()
            row |= {"threshold_mean": float(t.mean()), "threshold_min": float(t.min()), "threshold_max": float(t.max())}
            row["target"] = None if gate.governed else gate.target
        if hasattr(gate, "keep"):
            row |= {"keep": gate.keep, "saliency": work.saliency.get(name)}
        rows.append(row)
    return rows


def write_work(run: Run, test: Images, said: Tensor, work: Work) -> None:
    """compute.csv, gate_classes.csv, and pictures of the images that cost least and most."""
    from bitwright.engine.files import write_tensors

    true = test.labels.tolist()
    columns = zip(true, said.tolist(), work.per_macs.tolist(), work.per_bops.tolist(), strict=True)
    run.write_csv(
        "compute.csv",
        ({"index": i, "true": t, "said": s, "macs": m, "bops": b} for i, (t, s, m, b) in enumerate(columns)),
        ("index", "true", "said", "macs", "bops"),
    )
    rows = []
    for k in range(len(test.classes)):
        chosen = work.fired[test.labels == k].double()
        for (name, judged), on in zip(
            work.judged.items(), chosen.mean(0).tolist() if len(chosen) else [], strict=False
        ):
            rows.append({"layer": name, "class": k, "rate": on / judged})
    run.write_csv("gate_classes.csv", rows, ("layer", "class", "rate"))
    key = work.per_macs if bool((work.per_macs != work.per_macs[:1]).any()) else work.per_bops
    order = key.argsort(stable=True)
    few = min(PICTURES, len(order) // 2)
    index = torch.cat([order[:few], order[len(order) - few :].flip(0)])
    write_tensors(run.file("compute.safetensors"), {"images": test.pictures(index), "index": index}, {})
