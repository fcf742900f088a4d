"""What gates save on a CPU: a gated layer or net against the same one computed densely, and against torch in float32.

    python bench/gates.py [--rounds 25] [--only resnet] [--out ../docs/results/gates_avx2.csv]

Layers: an `fbs` gate keeps half of the output channels and half of the inputs are zero, as behind another such gate (or all
are there). "dense": the same kernel with nothing left out; "torch": the float convolution alone, channels_last, without a
gate. Layers with other gates, 3x3, behind a ReLU: "dense": the layer's own dense way, both sums of every output, of which the gate takes one;
"torch": the float convolution alone. Nets: every convolution but the first is gated, the gates with random predictors or thresholds for a share of outputs that are
on (`keep`); "dense": the net of the same bits without gates, packed; "torch": in float32, without gates; "way": the gated net in plain
torch. One image, one thread, CPU time, in turn. The median and the quartiles of the ratio,
above 1 where the gate saves time, go to docs/results/gates.csv.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import bitwright as bw
from bitwright.engine import native, plan_splits
from bitwright.engine.native_gates import GatedPlan
from bitwright.measure.machine import machine
from bitwright.parts.split_gate import SplitGate
from methods import ROOT, read, write

# channels in, out, side, kernel, channels that win or lose together, share of the inputs that is not zero
LAYERS = (
    *((128, 128, 28, 3, block, live) for block in (1, 16) for live in (0.5, 1.0)),
    (64, 64, 56, 3, 1, 0.5),
    (256, 256, 14, 3, 1, 0.5),
    (512, 512, 7, 3, 1, 0.5),
    (256, 1024, 14, 1, 1, 0.5),
    (16, 16, 32, 3, 1, 0.5),
)
NETS = (("resnet20", 32, 1), ("resnet20", 32, 16), ("resnet18", 224, 1), ("resnet18", 224, 16))
KEEP = 0.5
CODES: dict[str, Any] = {
    "w": {"part": "uniform", "bits": 8, "granularity": "channel"},
    "x": {"part": "pact", "bits": 8, "alpha": 6.0},
}
TERNARY: dict[str, Any] = {**CODES, "w": "twn"}
CHANNELS: dict[str, Any] = {"part": "channel_gate", "splits": 4}
BITS: dict[str, Any] = {"part": "precision_gate", "bits": 8, "top": 4, "unit": "normalized"}
# (net, side, gate, bits of the layers, gate part, share of outputs that are on)
SPLITS = tuple(
    (net, side, kind, bits, gate, share)
    for net, side in (("resnet20", 32), ("resnet18", 224))
    for kind, bits, gate, share in (
        ("channel gate, float32", {}, CHANNELS, 0.2),
        ("channel gate, w8a8", CODES, CHANNELS, 0.2),
        ("precision gate 8/4, w8", CODES, BITS, 0.3),
        ("precision gate 8/4, w2", TERNARY, BITS, 0.3),
    )
)
SPLIT_LAYERS = ((64, 56), (128, 28), (256, 14))  # channels, side
SLICE = 0.005  # seconds of one turn
Calls = dict[str, Callable[[], object]]


def layer(c: int, o: int, side: int, kernel: int, block: int, live: float) -> tuple[Calls, float]:
    torch.manual_seed(0)
    x = torch.randn(1, c, side, side).relu().contiguous(memory_format=torch.channels_last)
    full = x.clone()
    x[:, torch.randperm(c)[int(c * live) :]] = 0
    weight, add = torch.randn(o, c, kernel, kernel) / (c * kernel), torch.randn(o)
    gate = torch.randn(o, c) * 0.1, torch.rand(o) + 1.0
    one, all_ = (GatedPlan(weight, add, *gate, n, block, 1, kernel // 2) for n in (int(KEEP * o // block), o // block))
    last = weight.contiguous(memory_format=torch.channels_last)
    return {
        "gated": lambda: one.run(x),
        "dense": lambda: all_.run(full),
        "torch": lambda: F.conv2d(full, last, add, 1, kernel // 2),
    }, KEEP


def net(name: str, side: int, block: int) -> tuple[Calls, float]:
    torch.manual_seed(0)
    x = torch.randn(1, 3, side, side)
    model = bw.models.create(name)
    model.train()(torch.randn(4, 3, side, side))
    dense = copy.deepcopy(model).eval()
    rules: list[dict[str, Any]] = [
        {"match": "*", "kind": "Conv2d", "gate": {"part": "fbs", "keep": KEEP, "channel_block": block}}
    ]
    bw.apply(model, [*rules, {"match": "first", "gate": "float"}], x)
    for module in model.modules():
        if (gate := getattr(module, "gate", None)) is not None:
            nn.init.normal_(gate.predictor.weight, 0, 0.05)  # images differ in what they keep
    model.train()(torch.randn(4, 3, side, side))
    return packed_calls(model, dense, dense, x)


def split_net(name: str, side: int, bits: dict[str, Any], gate: dict[str, Any], share: float) -> tuple[Calls, float]:
    torch.manual_seed(0)
    x = torch.randn(1, 3, side, side)
    floats, small = bw.models.create(name), min(side, 64)  # pixels while the norms settle
    for _ in range(10):
        floats.train()(torch.randn(4, 3, small, small))
    floats.eval()
    nets: list[nn.Module] = []
    for slots in (bits, {**bits, "gate": gate}):
        model = copy.deepcopy(floats)
        if slots:
            kept = dict.fromkeys(slots, "float")
            bw.apply(model, [{"match": "*", "kind": "Conv2d", **slots}, {"match": "first", **kept}], x)
        with torch.no_grad():
            for _ in range(20):  # the norms of the gates settle
                model.train()(torch.randn(4, 3, small, small))
        nets.append(model.eval())
    dense, model = nets
    open_to(model, torch.randn(1, 3, side, side), share)  # not x: its values would lie at the thresholds
    return packed_calls(model, dense, floats, x)


def split_layer(c: int, side: int, bits: dict[str, Any], gate: dict[str, Any], share: float) -> tuple[Calls, float]:
    torch.manual_seed(0)
    places, model = (3, c, c), nn.Sequential()
    for had in places:
        model.extend([nn.Conv2d(had, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU()])
    x, slots = torch.randn(1, 3, side, side), {**bits, "gate": gate}
    kept = dict.fromkeys(slots, "float")
    bw.apply(model, [{"match": "*", "kind": "Conv2d", **slots}, {"match": "first", **kept}], x)
    with torch.no_grad():
        for _ in range(10):  # the norms settle
            model.train()(torch.randn(2, 3, side, side))
    open_to(model.eval(), torch.randn(1, 3, side, side), share)
    packed: Any = bw.convert(model, x, threads=1, force=True).model
    node = plan_splits.layers(packed.runtime)[-1]
    found = plan_splits.ways(node, packed.runtime)
    image, weight = (
        torch.randn(*s).contiguous(memory_format=torch.channels_last) for s in ((1, c, side, side), (c, c, 3, 3))
    )
    return {
        "gated": found["gated"],
        "dense": found[plan_splits.dense_way(node)],
        "torch": lambda: F.conv2d(image, weight, None, 1, 1),
    }, plan_splits.share_of(node)


def open_to(model: nn.Module, x: torch.Tensor, share: float) -> None:
    """Moves the thresholds so that about `share` of each channel's outputs is on for this image."""
    gates = [m for m in model.modules() if isinstance(m, SplitGate)]

    def settled(gate: SplitGate, distance: Callable[[torch.Tensor], torch.Tensor], base: torch.Tensor) -> torch.Tensor:
        above = distance(base)
        step = torch.quantile(above.transpose(0, 1).flatten(1), 1 - share, dim=1)
        gate.threshold.add_(step)
        return above - step[:, None, None]

    for gate in gates:
        vars(gate)["distance"] = partial(settled, gate, gate.distance)
    with torch.no_grad():
        model(x)
    for gate in gates:
        del vars(gate)["distance"]


def packed_calls(model: nn.Module, dense: nn.Module, floats: nn.Module, x: torch.Tensor) -> tuple[Calls, float]:
    converted = bw.convert(model.eval(), x, threads=1, force=True)
    if converted.model is None:
        raise SystemExit(f"the gated net was refused, so there is nothing to time: {converted.report.verdict}")
    models: dict[str, nn.Module | None] = {"gated": converted.model}
    models["way"] = bw.convert(model, x, threads=1, backend="reference", verify=False).model
    models["dense"] = bw.convert(dense, x, threads=1, force=True).model
    calls: Calls = {kind: lambda m=m: m(x) for kind, m in models.items() if m is not None}
    fast = floats.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    image = x.contiguous(memory_format=torch.channels_last)
    gated: Any = models["gated"]
    shares = [float(n.attrs["share"]) for n in gated.graph.nodes if "share" in n.attrs]
    return {**calls, "torch": lambda: fast(image)}, statistics.mean(shares) if shares else KEEP


def ratios(calls: Calls, rounds: int) -> dict[str, tuple[float, float, float]]:
    """(first quartile, median, third quartile) of each other call's time over that of "gated", round by round."""
    clock, times = time.process_time, {kind: [0.0] * rounds for kind in calls}
    counts = {}
    for kind, call in calls.items():
        for _ in range(3):
            call()
        start = time.perf_counter()
        call()
        counts[kind] = max(1, round(SLICE / max(1e-6, time.perf_counter() - start)))
    for i in range(rounds):
        for kind in calls if i % 2 else reversed(calls):
            calls[kind]()
            start = clock()
            for _ in range(counts[kind]):
                calls[kind]()
            times[kind][i] = (clock() - start) / counts[kind]
    found = {}
    for kind in [k for k in calls if k != "gated"]:
        q1, middle, q3 = statistics.quantiles([t / g for t, g in zip(times[kind], times["gated"], strict=True)], n=4)
        found[kind] = q1, middle, q3
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", default="", help="rows whose name begins so. [default: all]")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "gates.csv"))
    parser.add_argument("--isa", default="", help="instruction set of the kernels. [default: the best here]")
    args = parser.parse_args()
    native.force_isa(args.isa)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", bw.errors.BitwrightWarning)
    path, facts, fresh = Path(args.out), machine(1), []
    jobs: list[tuple[str, dict[str, Any], Callable[[], tuple[Calls, float]]]] = [
        (f"conv {c}>{o} {k}x{k} {s}x{s}", {"block": b, "live": live}, lambda a=(c, o, s, k, b, live): layer(*a))
        for c, o, s, k, b, live in LAYERS
    ]
    jobs += [
        (
            f"conv {c}>{c} 3x3 {side}x{side}, {kind}",
            {"block": "", "live": ""},
            lambda a=(c, side, bits, gate, share): split_layer(*a),
        )
        for c, side in SPLIT_LAYERS
        for name, _, kind, bits, gate, share in SPLITS
        if name == "resnet20"
    ]
    jobs += [(name, {"block": b, "live": ""}, lambda a=(name, s, b): net(*a)) for name, s, b in NETS]
    jobs += [
        (
            f"{name}, {kind}",
            {"block": "", "live": ""},
            lambda a=(name, side, bits, gate, share): split_net(*a),
        )
        for name, side, kind, bits, gate, share in SPLITS
    ]
    for name, options, make in jobs:
        if not name.startswith(args.only):
            continue
        with torch.inference_mode():
            calls, keep = make()
            found = ratios(calls, args.rounds)
        record: dict[str, Any] = {
            "row": name,
            "block": options["block"],
            "live": options["live"],
            "keep": round(keep, 2),
        }
        for kind in ("dense", "torch", "way"):
            q1, middle, q3 = found.get(kind, ("", "", ""))
            record |= {f"over_{kind}": middle, f"over_{kind}_q1": q1, f"over_{kind}_q3": q3}
        record = {k: round(v, 2) if isinstance(v, float) and k.startswith("over") else v for k, v in record.items()}
        fresh.append({**record, "rounds": args.rounds, "clock": "CPU time", **facts})
        print(name, options, {kind: round(r[1], 2) for kind, r in found.items()}, flush=True)
        old = [r for r in read(path) if (r["cpu"], r["kernels"], r["row"], r["block"], r["live"]) != _key(fresh[-1])]
        write(path, [*old, fresh[-1]])


def _key(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(record[k]) for k in ("cpu", "kernels", "row", "block", "live"))


if __name__ == "__main__":
    main()
