"""A run directory with every file a report reads, made of numbers a test can add up. The names are hostile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bitwright.runs.folder import Run

HOSTILE = '<script>alert("x")</script>&\'"'
CLASSES = ["zero", "one & two", HOSTILE, "three", "four", "five", "six", "seven", "eight", "nine"]
MACHINE = {
    "cpu": "Example CPU", "cores": 2, "isa": "avx2 avx512bw", "kernels": "avx512", "threads": 1, "load": 0.1,
    "os": "Linux x86_64", "python": "3.12.1", "bitwright": "0.1", "torch": "2.9", "onnxruntime": None,
    "date": "2026-01-02T03:04:05Z",
}  # fmt: skip


def layer_names(n: int) -> list[str]:
    """A stem, blocks, a classifier; the second name is hostile, the third 60 characters long."""
    names = ["stem", *(f"layer{i // 6 + 1}.{i % 6}.conv{i % 2 + 1}" for i in range(max(0, n - 2))), "fc"][:n]
    if n > 3:
        names[1], names[2] = HOSTILE, ("features.stage4.block17.branch2.depthwise_conv_with_long_name" * 2)[:60]
    return names


def layer_rows(n: int) -> list[dict[str, Any]]:
    rows = []
    for i, name in enumerate(layer_names(n)):
        edge, size = i in (0, n - 1), 1000 * (i % 7 + 1)
        rows.append({
            "layer": name, "kind": "Linear 64>10" if name == "fc" else "Conv2d 16>16 3x3", "w": "bwn",
            "x": "sign", "w_bits": 8 if edge else (1, 1, 2, 32, "")[i % 5], "x_bits": 8 if edge else 1 + i % 2,
            "macs": 2_359_296, "runs_as": "int8" if edge else "float" if i % 5 in (3, 4) else "bits",
            "bytes_before": 4 * size, "bytes_after": size if edge else size // 8 + 64, "ms_before": 0.5 + i % 3 / 4,
            "ms_after": 0.21 if edge else 0.05 + i % 4 / 100, "max_abs_diff": 1e-6 if edge else 0.0,
            "why": "3 input channels: a bit kernel would waste 61 of 64 lanes" if i == 0 else "",
        })  # fmt: skip
    return rows


def bench_dict(ours: float = 0.888, cpu: str = "Example CPU") -> dict[str, Any]:
    def row(name: str, precision: str, ms: float | None, best: bool = False, note: str = "") -> dict[str, Any]:
        times = {"latency_ms": ms, "latency_q1_ms": ms and ms * 0.97, "latency_q3_ms": ms and ms * 1.06}
        rate = 1000 / ms if ms else None
        ratio = ms / ours if ms and name != "bitwright" else None
        return {
            "name": name, "precision": precision, **times, "runs": 150 if ms else 0, "per_second": rate,
            "ratio": ratio, "best_of_precision": best, "note": note,
        }  # fmt: skip

    rows = [
        row("bitwright", "1 bit", ours), row("ort-int8", "int8", 3.33, True), row("torch-int8", "int8", 4.44),
        row("torch-bf16", "bf16", 5.55, True), row("ort-fp32", "fp32", 11.1, True), row("torch-fp32", "fp32", 12.2),
        row("ort-int4", "int4", None, note="unavailable: not installed"),
    ]  # fmt: skip
    return {
        "rows": rows, "machine": {**MACHINE, "cpu": cpu}, "batch": 1, "input": [3, 32, 32], "rounds": 15, "clock": "cpu",
        "summary": "", "quality": "quartile spread 9 %, machine idle enough",
        "why": ["stem takes 21 % (3 input channels, runs as int8)"],
    }  # fmt: skip


def example_run(
    path: Path, layers: int = 8, *, seed: int = 3, classes: list[str] = CLASSES, status: str = "PASS", shift: float = 0
) -> Run:
    """Writes all files. `shift` moves the accuracies, as another seed would."""
    path.mkdir(parents=True, exist_ok=True)
    run, rng = Run(path), random.Random(seed)
    run.write_text("experiment.toml", f'seed = {seed}\n\n[data]\nname = "digits"\n\n[[stage]]\nepochs = 6\n')
    run.write_text("command.txt", f"bitwright train digits-resnet20-bwn seed={seed} --out {path.name}\n")
    run.write_json("machine.json", MACHINE)
    rows = layer_rows(layers)
    names = [row["layer"] for row in rows]
    run.write_csv("layers.csv", rows)
    accuracy, trained, before = 0.9772 + shift, 0.9775 + shift, 0.9990
    run.write_json("convert.json", {
        "status": status, "verdict": "20.0x smaller", "images": 9999, "same": 9996,
        "layers_exact": True, "codes_checked": layers, "largest_difference": 2.1e-6,
        "disagreements": [{"index": 7, "trained": 1, "packed": 2, "margin": 1e-4, "first_layer": HOSTILE}] * 3,
        "file_bytes": 24_000 + sum(r["bytes_after"] for r in rows), "ms_before": 11.0, "ms_after": 0.9,
        "accuracy": accuracy, "trained_accuracy": trained, "rows": [],
    })  # fmt: skip
    run.write_json("bench.json", bench_dict())
    run.put_results([
        {"net": "float", "precision": "fp32", "accuracy": before, "images": 9999, "bytes": 1_111_000},
        {"net": "trained", "precision": "1 bit", "accuracy": trained, "images": 9999},
        {"net": "bitwright", "precision": "1 bit", "accuracy": accuracy, "images": 9999},
    ])  # fmt: skip
    _training(run, rng, names, trained, before)
    _weights(path, rng, names, seed)
    _predictions(run, rng, classes)
    return run


def _training(run: Run, rng: random.Random, names: list[str], trained: float, before: float) -> None:
    metrics, health = [], []
    for stage, epochs in ((0, 6), (1, 14)):
        for epoch in range(epochs):
            reached = (before if stage == 0 else trained) - 0.3 * 0.6**epoch
            last = stage == 1 and epoch == epochs - 1
            metrics.append({
                "stage": stage, "epoch": epoch, "step": 390 * (epoch + 1), "loss": 2 * 0.7**epoch, "top1": reached - 0.02,
                "top5": 0.999, "test_top1": trained if last else reached + rng.uniform(-0.01, 0.01), "val_top1": "",
                "lr": 1e-3, "seconds": 12.5,
            })  # fmt: skip
            health += [
                {
                    "stage": stage, "epoch": epoch, "layer": name, "flips": rate * 0.04 * 0.75**epoch + (i == 2) * 0.02,
                    "dead": 0.01, "scale": 1.1, "saturation": 0.2, "positive": 0.5,
                }
                for i, name in enumerate(names)
                if stage == 1 and (rate := rng.uniform(0.5, 1))
            ]  # fmt: skip
    run.write_csv("metrics.csv", metrics)
    run.write_csv("health.csv", health)
    run.write_json("state.json", {
        "status": "done", "stage": 1, "epoch": 14, "step": 390, "stages": 2, "test_top1": trained, "test_images": 9999,
        "warnings": [f"{HOSTILE}: 2.0 % of signs still flip each step"], "seconds": 7322.0, "float_top1": before,
    })  # fmt: skip


def _weights(path: Path, rng: random.Random, names: list[str], seed: int) -> None:
    random_ = np.random.default_rng(seed)
    tensors = {f"{name}.weight": random_.normal(0, 0.2, (16, 16, 3, 3)).astype(np.float32) for name in names}
    for i, key in enumerate(tensors):
        if i % 2:  # decided: two humps
            tensors[key] = (np.sign(tensors[key]) * 0.5 + tensors[key] * 0.3).astype(np.float32)
    tensors = tensors or {"scale": np.ones(1, np.float32)}
    save_file(tensors, path / "model.safetensors", metadata={"recipe": '[[rule]]\nmatch = "*"\nw = "bwn"\n'})
    save_file({"bits": np.zeros(100, np.uint8)}, path / "packed.safetensors")


def _predictions(run: Run, rng: random.Random, classes: list[str]) -> None:
    n = len(classes)
    rows = []
    for i in range(max(600, 20 * n)):
        true = i % n
        wrong = rng.random() < 0.15
        said = (true + rng.choice((1, 1, 2, 5))) % n if wrong else true
        before = said if rng.random() < 0.3 else true
        rows.append(
            {"index": i, "true": true, "said": said, "confidence": 0.5 + rng.random() / 2, "float_said": before}
        )
    run.write_csv("predictions.csv", rows)
    run.write_json("classes.json", {"classes": classes})
    wrong = sorted((r for r in rows if r["true"] != r["said"]), key=lambda r: -r["confidence"])[:24]
    ramp = np.arange(32, dtype=np.uint8)
    images = np.stack(
        [
            np.stack([7 * ramp[:, None] ^ (ramp * k % 64), 5 * ramp[None] + 0 * ramp[:, None], ramp[:, None] * ramp])
            for k in range(len(wrong))
        ]
    )
    save_file(
        {"images": images, "index": np.array([r["index"] for r in wrong], np.int64)}, run.file("worst.safetensors")
    )


def selfprune_files(run: Run, layers: int, modes: tuple[str, ...] = ("running", "recalibrate", "batch")) -> None:
    """What a training of 0/1 weights, and `analyze sweep`, add to an `example_run`."""
    names, rows = layer_names(layers), []
    for epoch in range(14):
        for i, name in enumerate(names):
            on = 40 + 3 * i + epoch
            rows.append({
                "stage": 1, "epoch": epoch, "layer": name, "share": on / 4096, "weights": 4096, "units": 64, "on": on,
                "fan_in_mean": on / 64, "fan_in_max": 9 + i, "no_input": i % 5, "live": 64 - i % 5 - epoch % 3,
            })  # fmt: skip
    run.write_csv("connections.csv", rows)
    values, sweeps = [*(i / 10 for i in range(41)), 5.0, 10.0, 100.0], []
    for k, mode in enumerate(modes):
        points = [
            {
                "on": v,
                "right_images": 30 + 10 * k + i,
                "preactivation_images": 32 + 10 * k + i,
                "agree_images": 2 * i + 12,
                "tied_images": i,
            }
            for i, v in enumerate(values)
        ]
        sweeps.append({
            "norm": mode, "images": 100, "trained_on": 1.0, "output": names[-1], "ranking": "smallest", "limit": 100.0,
            "digital": 0.9, "train_images": None, "norms": 3, "rows": points,
        })  # fmt: skip
    run.write_json("sweep.json", {"batch": 50, "sweeps": sweeps})


def gate_files(run: Run, gates: int, classes: list[str] = CLASSES, *, images: int = 300, fbs: bool = True) -> None:
    """What a gated training adds to an `example_run`: its second stage has `gates` gated layers of two kinds."""
    rng = random.Random(gates)
    names = layer_names(gates + 2)[1:-1]
    metrics = run.read_csv("metrics.csv")
    rows: list[dict[str, Any]] = []
    for row in metrics:
        if row["stage"] == "1":
            done = 1.0 - 0.03 * int(row["epoch"])
            row |= {"macs": 4e7 * done, "dense_macs": 4e7, "bops": 4e10 * done, "dense_bops": 4e10}
            for i, name in enumerate(names):
                at: dict[str, Any] = {"stage": 1, "epoch": row["epoch"], "layer": name, "rate": 0.5}
                if fbs and i % 3 == 1:
                    at |= {"gate": "fbs", "keep": 0.5, "saliency": 1 + 0.01 * i}
                else:
                    t = 0.05 * int(row["epoch"]) + 0.1 * (i % 5)
                    at |= {"gate": "channel_gate", "rate": rng.random(), "target": 1.0}
                    at |= {"threshold_mean": t, "threshold_min": t - 0.2, "threshold_max": t + 0.3}
                    at |= {"mean_bits": 3.14} if i % 3 == 2 else {}
                rows.append(at)
    run.write_csv("metrics.csv", metrics)
    run.write_csv("gates.csv", rows)
    run.write_json("work.json", {
        "overhead_macs": 123_456.0, "comparisons": 7_890.5, "quadratic_macs": 2e7, "quadratic_reduction": 2.0,
        "unweighted_sparsity": 0.8414, "gated_bits": 2.4142, "net_bits": 5.4366, "mean_bits": {}, "rates": {},
    })  # fmt: skip
    run.write_csv(
        "gate_classes.csv",
        [{"layer": n, "class": k, "rate": 0.3 + 0.4 * rng.random()} for n in names for k in range(len(classes))],
    )
    work = [20_000_000 + round(rng.gauss(0, 1) * 1e6) for _ in range(images)]
    run.write_csv(
        "compute.csv",
        [{"index": i, "true": i % len(classes), "said": i * 7 % len(classes), "macs": m, "bops": 1024 * m}
         for i, m in enumerate(work)],
    )  # fmt: skip
    order = sorted(range(images), key=lambda i: work[i])
    index = [*order[:8], *order[:-9:-1]]
    ramp = np.arange(32, dtype=np.uint8)
    images_ = np.stack([np.stack([7 * ramp[:, None] ^ (ramp * k % 64)] * 3) for k in range(len(index))])
    save_file({"images": images_, "index": np.array(index, np.int64)}, run.file("compute.safetensors"))
