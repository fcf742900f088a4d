"""How much time the zeros of a self-pruned layer save: dense float, the connections alone, and packed bits, side by side.

    python bench/sparsity.py [--rounds 25]

784 -> 4000 and 4000 -> 4000, the layers of the self-pruning nets, 0/1 weights with a share of them on, inputs of 0 and 1.
"float": torch's dense float32 layer. "csr": the connections alone, torch's sparse CSR times dense. "bits": packed, inputs cut
to bits: the layer runs at one bit, or on lists where hardly a weight is on. "weights": packed, inputs real: floats are computed.
All give the same numbers; that is checked. They take turns, one call each, on one thread in CPU time. Which weights are on is
random: time does not depend on it, and only for CSR it depends on how many are on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.measure.machine import machine
from methods import write
from training import ROOT, quartiles

LAYERS = {"784 -> 4000": (784, 4000), "4000 -> 4000": (4000, 4000)}
SHARES = (0.001, 0.003, 0.02)  # up to 1/256 the packed layer keeps lists of the inputs that count
BATCHES = (1, 200)
CALLS = 3  # in one turn


def packed(weight: Tensor, example: Tensor, bits: bool) -> Callable[[Tensor], Tensor]:
    """The converted layer; with `bits`, its inputs are cut to 0 and 1 by a step."""
    outputs, inputs = weight.shape
    slots: dict[str, Any] = {"x": {"part": "heaviside", "threshold": 0.5}} if bits else {}
    layer = bw.nn.Linear(inputs, outputs, bias=False, w={"part": "zero_one", "init": "keep"}, **slots)
    with torch.no_grad():
        layer.weight.copy_(weight)
    done = bw.convert(nn.Sequential(layer).eval(), example, threads=1)
    if done.model is None:
        raise SystemExit(str(done.report))
    return done.model


def measure(name: str, share: float, batch: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, outputs = LAYERS[name]
    weight = (torch.rand(outputs, inputs) < share).float()
    x = (torch.rand(batch, inputs) < 0.5).float()
    columns = x.t().contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that CSR is in beta
        sparse = weight.to_sparse_csr()
    calls: dict[str, Callable[[], Tensor]] = {
        "float": lambda: nn.functional.linear(x, weight),
        "csr": lambda: (sparse @ columns).t(),
    }
    for kind, bits in (("bits", True), ("weights", False)):
        model = packed(weight, x[:1], bits)
        calls[kind] = lambda model=model: model(x)
    times: dict[str, list[float]] = {kind: [] for kind in calls}
    with torch.inference_mode():
        wanted = calls["float"]()
        for kind, call in calls.items():
            if not torch.equal(call(), wanted):
                raise SystemExit(f"{name}: {kind} computes something else")
        for i in range(rounds + 2):
            for kind in calls if i % 2 else reversed(calls):
                start = time.process_time()
                for _ in range(CALLS):
                    calls[kind]()
                if i >= 2:  # warm
                    times[kind].append((time.process_time() - start) / CALLS)
    record: dict[str, Any] = {"layer": name, "on_share": round(float(weight.mean()), 5), "batch": batch}
    for kind, found in times.items():
        q1, middle, q3 = quartiles(found)
        record |= {f"{kind}_{k}ms": round(v * 1e3, 4) for k, v in (("", middle), ("q1_", q1), ("q3_", q3))}
    return {**record, "rounds": rounds, "clock": "CPU time", **machine(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "sparsity.csv"))
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    out, records = Path(args.out), []
    for batch in BATCHES:
        for name in LAYERS:
            for share in SHARES:
                r = measure(name, share, batch, args.rounds)
                records.append(r)
                print(f"batch {batch}, {name}, {share:.1%} on: float {r['float_ms']}, CSR {r['csr_ms']}, bits {r['bits_ms']}, "
                      f"1-bit weights {r['weights_ms']} ms", flush=True)  # fmt: skip
    write(out, records)


if __name__ == "__main__":
    main()
