"""Architectures of others: in which form each converts, how many layers as bits, and the speed beside int8.

    python bench/strangers.py [--rows NAME ...] [--rounds 15]

The nets of `tests/strangers`, two recipes each, with fresh weights and one training step. You can stop and restart it: each row is
written when it is done, and rows in the CSV that converted are skipped (`--again` measures them anew). Writes
docs/results/strangers.csv, then the page of results. Needs the extra `onnx` for the onnxruntime peer.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bitwright as bw
import results_page
from bitwright.errors import InputError
from bitwright.measure.machine import machine
from bitwright.transforms.twin import one_line
from methods import ROOT, read, write

sys.path.insert(0, str(ROOT / "tests"))
STRANGERS: list[Any] = importlib.import_module("strangers").STRANGERS
PEERS = ("torch-int8", "ort-int8")


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def trained(stranger: Any, recipe: str) -> nn.Module:
    """The net after one step."""
    torch.manual_seed(0)
    net = stranger.build()
    bw.apply(net, recipe, stranger.inputs(4))
    optimizer = torch.optim.SGD(bw.param_groups(net, 0.01, 1e-4))
    with bw.attach(net, optimizer):
        loss = torch.stack([t.square().mean() for t in tensors(net.train()(*stranger.example(4)))]).sum()
        loss.backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def largest_difference(net: nn.Module, packed: nn.Module, given: tuple[Tensor, ...]) -> float:
    """Over all outputs, as a share of the largest value of each."""
    pairs = zip(tensors(net(*given)), tensors(packed(*given)), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def layers_of(net: nn.Module, report: Any) -> dict[str, Any]:
    """How the layers with parts run; of those that stay float, the reasons."""
    wanted = {
        name
        for name, m in net.named_modules(remove_duplicate=False)  # a module may stand in the tree twice
        if isinstance(m, bw.nn.SlotLayer) and (m.w is not None or m.x is not None)
    }
    rows = [row for row in report.rows if row.layer in wanted]
    runs = [row.runs_as for row in rows]
    whys = dict.fromkeys(row.why or "no reason given" for row in rows if row.runs_as == "float")
    return {
        "slot_layers": len(rows), "bits": runs.count("bits"), "int8": runs.count("int8"),
        "on_disk": runs.count("bits on disk, float run"), "float": runs.count("float"), "why_float": "; ".join(whys),
    }  # fmt: skip


def measure(stranger: Any, recipe: str, rounds: int) -> dict[str, Any]:
    """Everything of a row that converts."""
    net = trained(stranger, recipe)
    converted = bw.convert(net, stranger.inputs(2), threads=1)
    if converted.model is None:
        raise InputError(converted.report.verdict)
    timed = bw.bench(converted, stranger.inputs(1), threads=1, against=PEERS, rounds=rounds)
    ours, peer = timed.ours, timed.best("int8")
    return {
        "form": converted.form, **layers_of(net, converted.report),
        "largest_difference": largest_difference(net, converted.model, stranger.example(3)), "ms": ours.median_ms,
        "ms_q1": ours.q1_ms, "ms_q3": ours.q3_ms,
        "int8_peer": peer.name if peer else "", "int8_ms": peer.median_ms if peer else "",
        "int8_ms_q1": peer.q1_ms if peer else "", "int8_ms_q3": peer.q3_ms if peer else "",
        "ratio": peer.ratio if peer else "", "status": converted.report.status,
        "note": "" if peer else "; ".join(f"{row.name} {row.note}" for row in timed.rows[1:]),
        "rounds": timed.rounds, "clock": timed.clock,
    }  # fmt: skip


COLUMNS = (
    "architecture", "recipe", "form", "slot_layers", "bits", "int8", "on_disk", "float", "why_float", "largest_difference", "ms",
    "ms_q1", "ms_q3", "int8_peer", "int8_ms", "int8_ms_q1", "int8_ms_q3", "ratio", "status", "note", "rounds", "clock",
)  # fmt: skip


def run_row(stranger: Any, recipe: str, rounds: int) -> dict[str, Any]:
    """A row; where a net is refused or fails, the error text is its note: one net must not end the table."""
    try:
        found = measure(stranger, recipe, rounds)
    except InputError as error:
        found = {"note": str(error)}
    except Exception as error:
        found = {"note": one_line(error)}
    return dict.fromkeys(COLUMNS, "") | {"architecture": stranger.name, "recipe": recipe} | found | machine(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", nargs="*", default=None, choices=[s.name for s in STRANGERS], metavar="NAME")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are in the CSV already")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "strangers.csv"), help="the CSV file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter(
        "ignore"
    )  # of the peers' own exporters, and of layers that stay float, which are counted here
    path = Path(args.out)
    order = [(s.name, recipe) for s in STRANGERS for recipe in s.recipes]
    for stranger in STRANGERS:
        for recipe in stranger.recipes:
            if args.rows is not None and stranger.name not in args.rows:
                continue
            done = {(r["architecture"], r["recipe"]): r for r in read(path)}
            key = (stranger.name, recipe)
            if not args.again and done.get(key, {}).get("form"):
                continue
            done[key] = record = run_row(stranger, recipe, args.rounds)
            write(path, [done[k] for k in order if k in done])
            print(f"{stranger.name} {recipe}: {record['form'] or 'not converted'} {record['note']}".strip(), flush=True)
    (results_page.FOLDER / "README.md").write_text(results_page.page())


if __name__ == "__main__":
    main()
