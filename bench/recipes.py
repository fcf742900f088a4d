"""Is every shipped recipe at least as fast as the program its user had before? Each recipe on three nets, beside all peers.

    python bench/recipes.py [--models resnet20 ...] [--recipes bwn-a8 ...] [--rounds 15]

Random weights, one image, one thread, medians of CPU time in turn (`bitwright bench`). The peers are built from the float net of the
same topology. Rows go to docs/results/recipes.csv as they are done, so you can stop and restart it; rows that --models or --recipes
names are measured again. `ratio_int8`, `ratio_fp32`: the time of the best peer of that precision over ours; above 1 ours is faster.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import bitwright as bw
from bitwright.measure.machine import machine
from methods import ROOT, put, read

# (net with ReLU, net without, side): W1A1 recipes with shortcuts need the second
NETS = (("vgg_small", "vgg_small", 32), ("resnet20", "bireal_resnet20", 32), ("resnet18", "bireal_resnet18", 224))
SHORTCUTS = ("bireal", "bireal8")  # for nets without ReLU, with a shortcut around each convolution
WITHOUT_RELU = (*SHORTCUTS, "w1a1", "w1a1-8")
RECIPES = (
    "w1a1-8", "w1a1", "bireal", "bireal8", "dorefa-w1a2", "dorefa-w2a2", "lsq-w2a2", "lsq-w3a3", "lsq-w4a4", "pact-w4a4",
    "bwn-a8", "ttq-a8", "w8a8", "bwn", "ttq", "twn",
)  # fmt: skip


def trained(model: str, recipe: str, side: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A net with ranges and statistics as after a little training; its weights are random."""
    torch.manual_seed(0)
    net, x = bw.models.create(model, size=side), torch.rand(4, 3, side, side)
    bw.apply(net, recipe, x)
    bw.calibrate(net, [x], norms="batch")
    with torch.no_grad():
        net.train()(x)
    return net.eval(), x[:1]


def row(model: str, recipe: str, side: int, rounds: int) -> dict[str, Any]:
    net, x = trained(model, recipe, side)
    converted = bw.convert(net, x, verify=[x])
    table = bw.bench(converted, x, threads=1, rounds=rounds)
    times = {r.name: r for r in table.rows if r.median_ms is not None}
    ours = times.pop("bitwright")
    best: dict[str, Any] = {}
    for precision in ("int8", "bf16", "fp32"):
        found = [r for r in times.values() if r.precision == precision]
        peer = min(found, key=lambda r: r.median_ms or 0.0, default=None)
        best[f"best_{precision}"] = peer.name if peer else ""
        best[f"{precision}_ms"] = round(peer.median_ms or 0.0, 4) if peer else ""
        best[f"ratio_{precision}"] = round((peer.median_ms or 0.0) / (ours.median_ms or 1.0), 3) if peer else ""
    return {
        "model": model, "recipe": recipe, "side": side, "status": converted.report.status,
        "runs_in": ours.note.split(";")[0],
        "ms": round(ours.median_ms or 0.0, 4), "ms_q1": round(ours.q1_ms or 0.0, 4), "ms_q3": round(ours.q3_ms or 0.0, 4),
        **best, "rounds": rounds, **machine(1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--recipes", nargs="*", default=None, choices=RECIPES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "recipes.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(args.out)
    names = [
        (without if recipe in WITHOUT_RELU else plain, recipe, side)
        for plain, without, side in NETS
        for recipe in RECIPES
        if not (recipe in SHORTCUTS and plain == without)
    ]
    kept = {(r["model"], r["recipe"]) for r in read(path)}
    chosen = [
        n for n in names
        if ((not args.models or n[0] in args.models) and (not args.recipes or n[1] in args.recipes)
            if args.models or args.recipes else n[:2] not in kept)
    ]  # fmt: skip
    print(
        f"{len(chosen)} rows to measure, {len(names) - len(chosen)} not; models: {', '.join(sorted({n[0] for n in names}))}"
    )
    for model, recipe, side in chosen:
        record = row(model, recipe, side, args.rounds)
        put(path, record, ["model", "recipe"])
        print(
            f"{model:16} {recipe:12} {record['ms']:8} ms  int8 {record['ratio_int8']}x  fp32 {record['ratio_fp32']}x"
            f"  {record['status']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
