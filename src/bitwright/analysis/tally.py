"""Exact per-sample counters: plain tensors, because DDP would overwrite those of other processes if they were buffers."""

from __future__ import annotations

import threading

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    """Whether several processes count."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class TalliedBatch:
    """Counts of one forward pass: key -> int64 [samples, layers]."""

    def __init__(self, samples: int, layers: int, limit: int | None) -> None:
        self.samples, self.layers, self.limit = samples, layers, limit
        self.counts: dict[str, Tensor] = {}

    def add(self, layer: int, key: str, values: Tensor) -> None:
        """`values` per row of the layer; several rows of one sample (tokens) are summed. Where rows are no multiple of the
        samples (something computed once for all of them) each sample gets an equal share, and the first ones what is left over."""
        n = self.samples
        if n and values.numel() and values.numel() % n == 0:
            rows = values.reshape(n, -1).sum(1)
        else:
            total, at = values.sum(), torch.arange(n, device=values.device)
            rows = total // max(1, n) + (at < total % max(1, n)).long()
        table = self.counts.get(key)
        if table is None:
            table = self.counts[key] = rows.new_zeros(self.samples, self.layers)
        table[:, layer] += rows


class Tally:
    """All batches of this process; sums over processes are made when read, on copies."""

    def __init__(self, layers: list[str]) -> None:
        self.layers = layers
        self.tables: dict[str, list[Tensor]] = {}
        self.seen = 0
        self.alone = False
        self.lock = threading.Lock()  # several threads may run the net, each its own passes

    def begin(self, samples: int, limit: int | None) -> TalliedBatch:
        return TalliedBatch(samples, len(self.layers), limit)

    def close(self, batch: TalliedBatch) -> None:
        valid = batch.samples if batch.limit is None else min(batch.samples, batch.limit)
        with self.lock:
            for key, table in batch.counts.items():
                rows = self.tables.setdefault(key, [])
                missing = self.seen - sum(len(t) for t in rows)
                if missing:
                    rows.append(torch.zeros(missing, len(self.layers), dtype=torch.int64))
                rows.append(table[:valid].cpu())
            self.seen += valid

    def _own(self, key: str) -> Tensor:
        with self.lock:
            rows = self.tables.get(key, [])
            empty = torch.zeros(self.seen - sum(len(t) for t in rows), len(self.layers), dtype=torch.int64)
            return torch.cat([*rows, empty])

    def rows(self, key: str) -> Tensor:
        """int64 [samples, layers] of all processes, in their order."""
        own = self._own(key)
        if self.alone or not several_processes():
            return own
        parts: list[Tensor | None] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
        return torch.cat([p for p in parts if p is not None])

    def per_sample(self, key: str) -> Tensor:
        return self.rows(key).sum(1)

    def sums(self, key: str) -> list[int]:
        total = self._own(key).sum(0)
        return self._reduced(total).tolist()

    def samples(self) -> int:
        return int(self._reduced(torch.tensor([self.seen])))

    def _reduced(self, t: Tensor) -> Tensor:
        if self.alone or not several_processes():
            return t
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        copy = t.clone().to(device)
        dist.all_reduce(copy)
        return copy.cpu()
