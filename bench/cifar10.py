"""CIFAR-10, all 50,000 training images: float nets and their low-bit students, then packed, verified and timed.

    python bench/cifar10.py train   --data DIR [--rows NAME ...]     checkpoints and accuracy, row by row
    python bench/cifar10.py evaluate --data DIR [--rows NAME ...]    accuracy of the checkpoints again
    python bench/cifar10.py measure --data DIR [--rows NAME ...]     converts, verifies 10,000 images, times peers

One float net per topology; students start from it. Both commands skip rows that are done: stop and start at will.
Settings are below; accuracy is that of the last epoch, never of the best.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import bitwright as bw

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    name: str
    model: str
    recipe: str  # "" = float
    start: str  # the row it starts from, "" = from scratch
    epochs: int
    optimizer: str
    lr: float
    normalize: bool = True  # False: the first layer reads pixels as 8-bit codes


ROWS = [
    Row("float-resnet20", "resnet20", "", "", 5, "sgd", 0.1),
    Row("float-bireal", "bireal_resnet20", "", "", 5, "sgd", 0.1),
    Row("bireal", "bireal_resnet20", "bireal", "float-bireal", 5, "adam", 2e-3),
    Row("bireal8", "bireal_resnet20", "bireal8", "float-bireal", 5, "adam", 2e-3, normalize=False),
    Row("bwn", "resnet20", "bwn", "float-resnet20", 5, "adam", 1e-3),
    Row("dorefa-w1a32", "resnet20", "dorefa-w1a32", "float-resnet20", 5, "adam", 1e-3),
    Row("ttq", "resnet20", "ttq", "float-resnet20", 5, "adam", 1e-3),
]


def build(row: Row) -> nn.Module:
    model = bw.models.create(row.model)
    return bw.apply(model, row.recipe, torch.zeros(2, 3, 32, 32)) if row.recipe else model


def optimizer_of(row: Row, model: nn.Module) -> torch.optim.Optimizer:
    if row.optimizer == "sgd":
        return torch.optim.SGD(bw.param_groups(model, row.lr, 5e-4), momentum=0.9, nesterov=True)
    return torch.optim.Adam(bw.param_groups(model, row.lr, 1e-5))


@torch.no_grad()
def accuracy(model: nn.Module, data: Any, normalize: bool) -> float:
    model.eval()
    right = 0
    for x, y in data.batches(500, normalize=normalize, channels_last=True):
        right += int((model(x).argmax(1) == y).sum())
    return right / len(data)


def note_share(shares: list[float]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        shares.append(float((args[0] >= 0).float().mean()))

    return hook


@torch.no_grad()
def sign_balance(model: nn.Module, data: Any, normalize: bool) -> float:
    """The rarer sign's share of a layer's binary inputs, at the layer where it is smallest."""
    shares: dict[str, list[float]] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, bw.nn.SlotLayer) and layer.x is not None and getattr(layer.x, "bits", 0) == 1:
            hooks.append(layer.register_forward_pre_hook(note_share(shares.setdefault(name, []))))
    model.eval()
    for x, _ in data.limit(2000).batches(500, normalize=normalize, channels_last=True):
        model(x)
    for h in hooks:
        h.remove()
    means = [sum(s) / len(s) for s in shares.values()]
    return min((min(m, 1 - m) for m in means), default=float("nan"))


def train(row: Row, folder: Path, train_set: Any, test_set: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build(row)
    if row.start:
        source = bw.load(folder / f"{row.start}.safetensors", bw.models.create(row.model))
        # the latents start from the float weights, scales are read off them afterwards
        plain = bw.models.create(row.model)
        plain.load_state_dict(source.state_dict())
        model = bw.apply(plain, row.recipe, torch.zeros(2, 3, 32, 32))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_of(row, model)
    batch = 128
    steps = row.epochs * (len(train_set) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in optimizer.param_groups], total_steps=steps, pct_start=0.2, div_factor=10
    )
    bw.attach(model, optimizer)
    started = time.perf_counter()
    for epoch in range(row.epochs):
        model.train()
        total = 0.0
        for i, (x, y) in enumerate(
            train_set.batches(
                batch,
                shuffle=True,
                augment=True,
                normalize=row.normalize,
                epoch=epoch,
                drop_last=True,
                channels_last=True,
            )
        ):
            with torch.autocast("cpu", torch.bfloat16):
                out = model(x)
            loss = F.cross_entropy(out.float(), y) + bw.penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            if i % 100 == 99:
                rate = (epoch * len(train_set) + (i + 1) * batch) / (time.perf_counter() - started)
                print(f"{row.name} epoch {epoch} step {i + 1} loss {total / (i + 1):.3f} {rate:.0f} img/s", flush=True)
        if total != total:
            raise SystemExit(f"{row.name}: loss became nan in epoch {epoch}")
        print(f"{row.name} epoch {epoch} test {100 * accuracy(model, test_set, row.normalize):.2f} %", flush=True)
    seconds = time.perf_counter() - started
    result = {
        "row": row.name,
        "model": row.model,
        "recipe": row.recipe or "float",
        "start": row.start,
        "epochs": row.epochs,
        "optimizer": f"{row.optimizer} {row.lr:g}",
        "seed": 0,
        "accuracy": round(accuracy(model, test_set, row.normalize), 4),
        "rarer_sign": round(sign_balance(model, test_set, row.normalize), 4),
        "train_s": round(seconds),
        "torch": torch.__version__,
        "cpu": cpu_name(),
    }
    bw.save(model, folder / f"{row.name}.safetensors", row=row.name)
    return result


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(t.split(":", 1)[1].strip() for t in lines if t.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    with path.open(newline="") as f:
        return {r["row"]: dict(r) for r in csv.DictReader(f)}


def write_rows(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """In the order of ROWS, beside the target and then renamed."""
    order = [r.name for r in ROWS if r.name in rows]
    keys = list(dict.fromkeys(k for n in order for k in rows[n]))
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, keys)
        writer.writeheader()
        writer.writerows(rows[n] for n in order)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("command", choices=["train", "evaluate", "measure"])
    parser.add_argument("--data", default=None, help="folder with cifar-10-batches-py (default: BITWRIGHT_DATA)")
    parser.add_argument("--rows", nargs="*", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", default=str(ROOT / "runs" / "cifar10"), help="checkpoints")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results"), help="CSV files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, out = Path(args.runs), Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    test_set = bw.data.load("cifar10", args.data, "test")
    chosen = [r for r in ROWS if args.rows is None or r.name in args.rows]
    if args.command == "train":
        table = out / "cifar10_accuracy.csv"
        train_set = bw.data.load("cifar10", args.data, "train")
        print(f"loader alone {bw.data.loader_rate(train_set, 128, True):,.0f} img/s", flush=True)
        for row in chosen:
            done = read_rows(table)
            if row.name in done and (folder / f"{row.name}.safetensors").exists():
                continue
            result = train(row, folder, train_set, test_set)
            done = read_rows(table)
            done[row.name] = result
            write_rows(table, done)
    elif args.command == "evaluate":
        table = out / "cifar10_accuracy.csv"
        done = read_rows(table)
        for row in chosen:
            model = bw.load(folder / f"{row.name}.safetensors", build(row))
            done[row.name]["accuracy"] = round(accuracy(model, test_set, row.normalize), 4)
            done[row.name]["rarer_sign"] = round(sign_balance(model, test_set, row.normalize), 4)
            print(row.name, done[row.name]["accuracy"], flush=True)
        write_rows(table, done)
    else:
        from cifar10_measure import measure

        measure(chosen, folder, out, test_set)


if __name__ == "__main__":
    main()
