"""How much time the zeros of self-pruned layers and nets save: dense float, the connections alone, and packed, side by side.

    python bench/sparsity.py [--rounds 25] [--only layers --batches 1]

"--batches" measures the layers at these batches anew and keeps the other rows.

784 -> 4000 and 4000 -> 4000, the layers of the self-pruning nets, 0/1 weights with a share of them on, inputs of 0 and 1.
"float": torch's dense float32 layer. "csr": the connections alone, torch's sparse CSR times dense. "bits": packed, inputs cut
to bits: the layer runs at one bit, or on lists where hardly a weight is on. "weights": packed, inputs real: floats are computed.
All give the same numbers; that is checked. They take turns, one call each, on one thread in CPU time. Which weights are on is
random: time does not depend on it, but on how many are on.

Into a second file, sparsity_nets.csv (the name of --out with "_nets"), whole nets 784-4000x3-10, with steps (every layer at one bit) and with tanh (hidden values are
floats). As many units are live and as many weights on as in the net trained on MNIST (selfprune.csv), shared out evenly; which, is
random. "float" is the net in torch, "csr" the same on its connections; "dense" packed with BITWRIGHT_ZEROS=0: no zero is skipped;
"packed" as nets are loaded. "dense" and "packed" give the same bits where all layers are coded, else the same numbers up to rounding.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.measure.machine import machine
from methods import read, write
from training import ROOT, quartiles

LAYERS = {"784 -> 4000": (784, 4000), "4000 -> 4000": (4000, 4000)}
SHARES = (0.001, 0.003, 0.02, 0.05, 0.1, 0.2)
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
            if not torch.equal(call(), wanted):  # whole numbers: the same in any order
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


class Csr(nn.Module):
    """A linear layer of its connections alone."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.weight = weight.to_sparse_csr()

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.t()).t()


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x >= 0).float()


def trained() -> tuple[int, int]:
    """(weights on, live units) of the net of bench/selfprune.py on MNIST."""
    with open(ROOT / "docs" / "results" / "selfprune.csv", newline="", encoding="utf-8") as f:
        row = next(r for r in csv.DictReader(f) if r["row"] == "mnist")
    return round(int(row["weights"]) * float(row["on_share"])), int(row["live_units"])


def net_of(kind: str) -> tuple[nn.Module, list[Any]]:
    """A net to be packed, and its layers as they are in float: linear layer, what stands behind it, norm."""
    on, live = trained()
    g = torch.Generator().manual_seed(0)
    inputs, units = 784, live // 3
    slots, plain = [], []
    for i, (had, outputs) in enumerate([(784, 4000), (4000, 4000), (4000, 4000), (4000, 10)]):
        rows = min(units, outputs)
        x: dict[str, Any] = {"x": {"part": "heaviside", "threshold": 0.5}} if i == 0 or kind == "step" else {}
        x = {"x": "heaviside"} if i and kind == "step" else x
        layer = bw.nn.Linear(had, outputs, bias=False, w={"part": "zero_one", "init": "keep"}, **x)
        with torch.no_grad():
            weight = torch.zeros(outputs, had)
            weight[:rows, :inputs] = (torch.rand(rows, inputs, generator=g) < on / (3 * units + 10) / inputs).float()
            layer.weight.copy_(weight)
        norm = nn.BatchNorm1d(outputs)
        counts = weight.sum(1)
        norm.get_buffer("running_mean").copy_(counts / 2)
        norm.get_buffer("running_var").copy_(counts / 4 + 1e-4)
        slots += [layer, *([nn.Tanh()] if kind == "tanh" else []), norm]
        plain += [
            layer,
            *([nn.Tanh()] if kind == "tanh" else []),
            norm,
            *([Step()] if kind == "step" and i < 3 else []),
        ]
        inputs = rows
    return nn.Sequential(*slots).eval(), plain


def packed_net(net: nn.Module, zeros: bool) -> nn.Module:
    os.environ["BITWRIGHT_ZEROS"] = "1" if zeros else "0"
    done = bw.convert(net, torch.zeros(2, 784), threads=1, verify=False)
    model: Any = done.model
    if model is None:
        raise SystemExit(str(done.report))
    model(torch.zeros(1, 784))  # laid out now, while the environment says how
    return model


def measure_net(kind: str, batches: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    net, plain = net_of(kind)
    linear = [m for m in plain if isinstance(m, nn.Linear)]
    floats, sparse = ([cls(m.weight.detach()) if m in linear else m for m in plain] for cls in (_dense, Csr))
    models: dict[str, Any] = {
        "float": nn.Sequential(*floats).eval(), "csr": nn.Sequential(*sparse).eval(), "dense": packed_net(net, zeros=False),
        "packed": packed_net(net, zeros=True),
    }  # fmt: skip
    found = []
    for batch in batches:
        x = (torch.rand(batch, 784, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        times: dict[str, list[float]] = {name: [] for name in models}
        with torch.inference_mode():
            wanted = models["dense"](x)
            if not (
                torch.equal(models["packed"](x), wanted)
                if kind == "step"
                else torch.allclose(models["packed"](x), wanted, atol=1e-3)
            ):
                raise SystemExit(f"{kind}: the packed net computes something else")
            for i in range(rounds + 2):
                for name in models if i % 2 else reversed(models):
                    models[name](x)  # not timed: weights come back into the caches
                    start, calls = time.process_time(), CALLS * (30 if batch == 1 and name == "packed" else 1)
                    for _ in range(calls):
                        models[name](x)
                    if i >= 2:
                        times[name].append((time.process_time() - start) / calls)
        record: dict[str, Any] = {"net": kind, "batch": batch}
        for name, t in times.items():
            q1, middle, q3 = quartiles(t)
            record |= {f"{name}_{k}ms": round(v * 1e3, 4) for k, v in (("", middle), ("q1_", q1), ("q3_", q3))}
        found.append({**record, "rounds": rounds, "clock": "CPU time", **machine(1)})
        print(
            f"{kind}, batch {batch}: " + ", ".join(f"{name} {record[f'{name}_ms']} ms" for name in models), flush=True
        )
    return found


def _dense(weight: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "sparsity.csv"))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", choices=("layers", "nets"))
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    args = parser.parse_args()
    if args.only != "layers":
        rows = [r for kind in ("step", "tanh") for r in measure_net(kind, (1, 256), args.rounds)]
        write(Path(args.out).with_stem(f"{Path(args.out).stem}_nets"), rows)
    if args.only == "nets":
        return
    out, records = Path(args.out), [r for r in read(Path(args.out)) if int(r["batch"]) not in args.batches]
    for batch in args.batches:
        for name in LAYERS:
            for share in SHARES:
                r = measure(name, share, batch, args.rounds)
                records.append(r)
                print(f"batch {batch}, {name}, {share:.1%} on: float {r['float_ms']}, CSR {r['csr_ms']}, bits {r['bits_ms']}, "
                      f"1-bit weights {r['weights_ms']} ms", flush=True)  # fmt: skip
    write(out, sorted(records, key=lambda r: int(r["batch"])))


if __name__ == "__main__":
    main()
