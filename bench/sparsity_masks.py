"""What the zeros of masks save: layers pruned by `magnitude` to 80, 90, 95 and 98 % zeros and to 2:4, against the same layer run densely.

    python bench/sparsity_masks.py [--rounds 15] [--only "4096 -> 4096"] [--out ../docs/results/sparsity_masks.csv]

"dense": the packed layer with BITWRIGHT_ZEROS=0, as if no weight were zero. "packed": as it is loaded; "way" says what it runs on.
"list": the weights that are left as a list, in float32, whether it pays or not: `WeightList` of engine/sparse_linear.py, which
a convolution gets its windows for nothing. Without codes of its own a list of a coded layer costs about that too. One call each
in turn, one thread, CPU time; medians. Answers are compared: the packed layer's must equal the dense one's, to 1e-4 in floats.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.sparse_linear import WeightList
from bitwright.measure.machine import machine
from bitwright.parts.mask import Mask
from methods import ROOT, read, write
from training import quartiles

LAYERS = {  # inputs, outputs, side of the image (0: linear)
    "1024 -> 1024": (1024, 1024, 0),
    "4096 -> 4096": (4096, 4096, 0),
    "conv 128 > 128, 3x3, 28x28": (128, 128, 28),
    "conv 256 > 256, 3x3, 14x14": (256, 256, 14),
}
KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "w8a8": {"w": {"part": "uniform", "bits": 8, "granularity": "channel"}, "x": {"part": "pact", "bits": 8, "alpha": 6.0}},
    "ternary, a2": {"w": "twn", "x": {"part": "pact", "bits": 2, "alpha": 6.0}},
    "1-bit, a1": {"w": "bwn", "x": {"part": "heaviside", "threshold": 0.5}},
}  # fmt: skip
SHARES = ("2:4", "0.8", "0.9", "0.95", "0.98")
BATCHES = (1, 4, 64)  # of linear layers; images one at a time
SLICE = 0.004  # seconds of one turn
Call = Callable[[], Tensor]


def layer_of(layer: str, kind: str, zeros: str) -> tuple[dict[str, Any], Tensor, str]:
    """The packed layer with and without its zeros, its weight [O, K], and the way that it takes."""
    inputs, outputs, side = LAYERS[layer]
    torch.manual_seed(0)
    made = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False) if side else nn.Linear(inputs, outputs, bias=False)
    x, net = torch.rand(1, inputs, *((side, side) if side else ())), nn.Sequential(made).eval()
    share: dict[str, Any] = {"pattern": "2:4"} if zeros == "2:4" else {"sparsity": float(zeros)}
    bw.procedures.magnitude(net, **share)
    if KINDS[kind]:
        mask: Any = next(m for m in net.modules() if isinstance(m, Mask))
        bw.apply(net, [{"match": "*", **KINDS[kind], "w": [KINDS[kind]["w"], "mask"]}], x)
        behind: Any = next(m for m in net.modules() if isinstance(m, Mask))
        behind.mask = mask.mask
    models: dict[str, Any] = {}
    way = ""
    for name, on in (("dense", "0"), ("packed", "1")):
        os.environ["BITWRIGHT_ZEROS"] = on
        done = bw.convert(net, x, threads=1, verify=False, force=True)
        if (model := done.model) is None:
            raise SystemExit(str(done.report))
        models[name] = model
        for batch in BATCHES[: 1 if side else None]:  # laid out now, while the environment says how
            model(x.repeat(batch, *[1] * (x.dim() - 1)))
        row = done.report.rows[0]
        way = f"{row.runs_as}: {row.why}".rstrip(": ")
    only: Any = net[0]
    with torch.no_grad():
        weight = only.quantized_weight() if hasattr(only, "quantized_weight") else only.weight
    return models, weight.detach().flatten(1), way


def measure(layer: str, kind: str, zeros: str, rounds: int) -> list[dict[str, Any]]:
    """One row for each batch."""
    models, weight, way = layer_of(layer, kind, zeros)
    few, share = WeightList(weight, None), 1 - float((weight != 0).float().mean())
    inputs, _, side = LAYERS[layer]
    found = []
    for batch in BATCHES[: 1 if side else None]:
        torch.manual_seed(1)
        x = torch.rand(batch, inputs, *((side, side) if side else ()))
        rows = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1).contiguous() if side else x
        calls: dict[str, Call] = {
            "dense": partial(models["dense"], x),
            "packed": partial(models["packed"], x),
            "list": partial(few.run, rows),
        }
        record = {
            "layer": layer,
            "kind": kind,
            "zeros": zeros,
            "zero_share": round(share, 4),
            "batch": batch,
            "way": way,
        }
        found.append(record | timed(calls, bool(KINDS[kind]), rounds))
    return found


def timed(calls: dict[str, Call], exact: bool, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    counts = {}
    with torch.inference_mode():
        dense, packed = calls["dense"](), calls["packed"]()
        if not (torch.equal(dense, packed) if exact else torch.allclose(dense, packed, atol=1e-4)):
            raise SystemExit("the packed layer computes something else")
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            counts[name] = max(1, round(SLICE / max(1e-6, time.perf_counter() - start)))
        for i in range(rounds):
            for name in calls if i % 2 else reversed(calls):
                start = time.process_time()
                for _ in range(counts[name]):
                    calls[name]()
                times[name].append((time.process_time() - start) / counts[name])
    record: dict[str, Any] = {}
    for name, found in times.items():
        q1, middle, q3 = quartiles(found)
        record |= {f"{name}_{k}ms": round(v * 1e3, 4) for k, v in (("", middle), ("q1_", q1), ("q3_", q3))}
    for name in ("packed", "list"):
        record[f"dense_over_{name}"] = round(record["dense_ms"] / record[f"{name}_ms"], 2)
    return {**record, "rounds": rounds, "clock": "CPU time", **machine(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="layers whose name begins so. [default: all]")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "sparsity_masks.csv"))
    args = parser.parse_args()
    if not any(name.startswith(args.only) for name in LAYERS):
        raise SystemExit(f'--only "{args.only}": no layer begins so; there are {", ".join(LAYERS)}')
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", bw.errors.BitwrightWarning)
    path, fresh = Path(args.out), []
    for layer in LAYERS:
        for kind in args.kinds if layer.startswith(args.only) else ():
            for zeros in SHARES:
                for r in measure(layer, kind, zeros, args.rounds):
                    fresh.append(r)
                    print(f"{layer}, {kind}, {zeros}, batch {r['batch']}: dense {r['dense_ms']}, packed {r['packed_ms']}, "
                          f"list {r['list_ms']} ms; {r['way']}", flush=True)  # fmt: skip
                keep(path, fresh)


def keep(path: Path, fresh: list[dict[str, Any]]) -> None:
    """Writes the rows beside those that the file has."""
    done = {_key(r) for r in fresh}
    kept = {_key(r): r for r in [*(r for r in read(path) if _key(r) not in done), *fresh]}
    order = [
        (layer, kind, zeros, batch)
        for layer in LAYERS
        for batch in ("1", "4", "64")
        for kind in KINDS
        for zeros in SHARES
    ]
    write(path, [kept[k] for k in order if k in kept])


def _key(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(record[k]) for k in ("layer", "kind", "zeros", "batch"))


if __name__ == "__main__":
    main()
