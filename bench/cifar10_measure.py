"""Second half of cifar10.py: it packs each trained student, verifies it on all 10,000 test images, and times it beside peers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

import bitwright as bw
from bitwright.engine.packed import PackedModel
from cifar10 import Row, build, read_rows, write_rows


def measure(rows: list[Row], folder: Path, out: Path, test_set: Any) -> None:
    """A row of cifar10_packed.csv per student, and the list of images whose class changed."""
    table = out / "cifar10_packed.csv"
    for row in rows:
        checkpoint = folder / f"{row.name}.safetensors"
        if not row.recipe or not checkpoint.exists():
            continue
        done = read_rows(table)
        if row.name in done:
            continue
        model = bw.load(checkpoint, build(row)).eval()
        batches = test_set.batches(500, normalize=row.normalize)
        packed = bw.convert(model, torch.zeros(1, 3, 32, 32), threads=1, verify=batches)
        report = packed.report
        print(report, flush=True)
        result: dict[str, Any] = {
            "row": row.name,
            "status": report.status,
            "images": report.images,
            "same_class": report.same,
            "layers_checked": report.codes_checked,
            "layers_exact": report.layers_exact,
            "largest_difference": f"{report.largest_difference:.3g}",
            "float_bytes": report.float_bytes,
        }
        if isinstance(packed.model, PackedModel):
            size = packed.save(folder / f"{row.name}.bw.safetensors", row=row.name)
            result |= {"file_bytes": size, "accuracy_packed": packed_accuracy(packed.model, test_set, row.normalize)}
            result |= size_limit(packed.model)
            result |= timings(packed)
        rows_now = read_rows(table)
        rows_now[row.name] = result
        write_rows(table, rows_now)
        write_disagreements(out / "cifar10_disagreements.csv", row.name, report.disagreements)


@torch.no_grad()
def packed_accuracy(model: torch.nn.Module, data: Any, normalize: bool) -> float:
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.batches(500, normalize=normalize))
    return round(right / len(data), 4)


def size_limit(model: PackedModel) -> dict[str, int]:
    """The payload, and the limit that we set for the file: payload + 8 bytes a channel + float layers + 24 kB."""
    graph = model.graph
    payload = channels = floats = weights_bits = 0
    for node in graph.nodes:
        if node.key("bits"):
            info = node.attrs["weight"]
            payload += graph.tensors[str(node.key("bits"))].numel()
            weights_bits += info["planes"] * math.prod(info["shape"])
            channels += info["shape"][0]
        elif node.op in ("conv", "linear", "conv_transpose", "affine", "prelu", "aten"):
            floats += sum(
                t.numel() * t.element_size() for r in node.attrs.get("tensors", {}).values() for t in [graph.tensors[r]]
            )
    return {
        "payload_bytes": payload,
        "payload_ideal": math.ceil(weights_bits / 8),
        "file_limit": payload + 8 * channels + floats + 24_000,
    }


def timings(packed: bw.Converted) -> dict[str, Any]:
    """Batch 1, one thread, medians interleaved in one run; the best peer of each precision."""
    table = bw.bench(packed, torch.randn(1, 3, 32, 32).sigmoid(), threads=1)
    print(table, flush=True)
    found: dict[str, Any] = {}
    for r in table.rows:
        found[f"{r.name}_ms"] = None if r.median_ms is None else round(r.median_ms, 4)
    return found


def write_disagreements(path: Path, row: str, found: list[Any]) -> None:
    """Every image whose class differs: its index, both classes, the margin, the first differing layer."""
    head = "row,image,trained,packed,margin,first_differing_layer\n"
    old = (
        [t for t in path.read_text().splitlines(keepends=True)[1:] if not t.startswith(f"{row},")]
        if path.exists()
        else []
    )
    new = [f"{row},{d.index},{d.trained},{d.packed},{d.margin:.3e},{d.first_layer}\n" for d in found]
    path.write_text(head + "".join(old + new))
