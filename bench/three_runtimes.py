"""Every packed net of the zoo over its whole test set, in three programs: do they give the same answers?

    python bench/three_runtimes.py [--data DIR] [NAME ...]

The programs are `bw.zoo.load` in torch, the exported file in onnxruntime with our operators (`bw.ort.session`), and the same
file in an onnxruntime without our operators, which uses the functions in the file. Rows go to docs/results/three_runtimes.csv:
images whose class differs from torch's, and the largest difference of an output as a share of the largest output.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import bitwright as bw
from bitwright.measure.machine import machine
from methods import ROOT, read, write

OUT = ROOT / "docs" / "results" / "three_runtimes.csv"
BATCH = 100


def plain(path: Path) -> onnxruntime.InferenceSession:
    """A plain onnxruntime, without our operators."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def row(name: str, data: str | None) -> dict[str, Any]:
    net, card = bw.zoo.load(name), bw.zoo.card(name)
    images = bw.zoo.data(card, "test", data)
    answers: dict[str, list[np.ndarray]] = {"torch": [], "ours": [], "plain": []}
    labels: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        bw.export.onnx(net, next(iter(images.batches(BATCH, normalize=card.normalize)))[0], path)
        sessions = {"ours": bw.ort.session(path), "plain": plain(path)}
        for x, y in images.batches(BATCH, normalize=card.normalize):
            labels.append(y.numpy())
            answers["torch"].append(net(x).numpy())
            for program, session in sessions.items():
                feeds = {session.get_inputs()[0].name: x.contiguous().numpy()}
                answers[program].append(np.asarray(session.run(None, feeds)[0]))
    found = {program: np.concatenate(parts) for program, parts in answers.items()}
    base, truth = found["torch"], np.concatenate(labels)
    made: dict[str, Any] = {"net": name, "data": card.data, "images": len(truth)}
    for program, values in found.items():
        made[f"{program}_right"] = int((values.argmax(1) == truth).sum())
    for program in ("ours", "plain"):
        made[f"{program}_other_class"] = int((found[program].argmax(1) != base.argmax(1)).sum())
        made[f"{program}_equal"] = int((found[program] == base).all(1).sum())
        made[f"{program}_largest"] = f"{np.abs(found[program] - base).max() / np.abs(base).max():.1e}"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="nets of the zoo. [default: all packed ones]")
    parser.add_argument("--data", default=None, help="where the data sets lie. [default: BITWRIGHT_DATA]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine(1)
    for name in args.names or bw.zoo.list("packed"):
        made = {**row(name, args.data), **facts}
        print({k: v for k, v in made.items() if k not in facts}, flush=True)
        kept = [r for r in read(OUT) if r["net"] != name and r["net"] in bw.zoo.list("packed")]
        write(OUT, sorted([*kept, made], key=lambda r: r["net"]))


if __name__ == "__main__":
    main()
