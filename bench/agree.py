"""Every packed net of the zoo over its whole test set, in each form in which it ships: do all give the same answers?

    python bench/agree.py [--data DIR] [--images N] [--c N] [NAME ...]

The packed net in torch (`bw.zoo.load`) is compared with the exported ONNX file in onnxruntime with our operators
(`bw.ort.session`), with the same file in an onnxruntime without them, which uses the functions in the file, and with the exported
C file, compiled here (over the first images alone with --c: nets with floats take long in it). Rows go to docs/results/agree.csv, each when it is done: images whose class differs from torch's, images
with equal bits, and the largest difference of an output as a share of the largest output. You can stop and restart it: rows in
the CSV that compare as many images are skipped.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

import bitwright as bw
from bitwright.data.images import Images
from bitwright.export_c.compiled import compiler
from bitwright.measure.machine import machine
from bitwright.zoo.card import Card
from methods import ROOT, read, write

OUT = ROOT / "docs" / "results" / "agree.csv"
BATCH, SAY = 100, 1000
CHECKED = 8  # images that an export itself compares
FORMS = ("ours", "plain", "c")
Program = Callable[[Tensor, Tensor], np.ndarray]  # (what the net reads, the pixels) -> answers


def programs(net: torch.nn.Module, card: Card, images: Images, folder: Path) -> dict[str, Program]:
    """The forms, exported into a folder."""
    x = next(iter(images.batches(CHECKED, normalize=card.normalize)))[0]
    bw.export.onnx(net, x, folder / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    plain = onnxruntime.InferenceSession(str(folder / "net.onnx"), options, providers=["CPUExecutionProvider"])
    return {
        "torch": lambda x, _: net(x).detach().numpy(),
        "ours": in_onnxruntime(bw.ort.session(folder / "net.onnx")),
        "plain": in_onnxruntime(plain),
        "c": in_c(net, card, images, folder),
    }


def in_onnxruntime(session: Any) -> Program:
    name = session.get_inputs()[0].name
    return lambda x, _: np.asarray(session.run(None, {name: x.contiguous().numpy()})[0])


def in_c(net: torch.nn.Module, card: Card, images: Images, folder: Path) -> Program:
    """One call an image; the pixels as they are stored."""
    more: dict[str, Any] = {"mean": images.mean, "std": images.std} if card.normalize else {}
    report = bw.export.c(net, images.pictures(torch.arange(CHECKED)), folder / "net.c", **more)
    found = compiler()
    if found is None:
        raise SystemExit("no C compiler here")
    build = [found, "-std=c99", "-O3", "-march=native", "-fPIC", "-shared"]
    subprocess.run([*build, str(folder / "net.c"), "-o", str(folder / "net.so")], check=True)
    run = ctypes.CDLL(str(folder / "net.so")).net_run
    outputs = len(images.classes)
    assert report.differ == 0

    def answers(_: Tensor, pixels: Tensor) -> np.ndarray:
        given, out = np.ascontiguousarray(pixels.numpy()), np.empty((len(pixels), outputs), np.float32)
        for one, answer in zip(given, out, strict=True):
            if run(ctypes.c_void_p(one.ctypes.data), ctypes.c_void_p(answer.ctypes.data)):
                raise SystemExit("net_run failed")
        return out

    return answers


def row(name: str, images: Images, of: int, in_c: int) -> dict[str, Any]:
    net, card = bw.zoo.load(name), bw.zoo.card(name)
    answers: dict[str, np.ndarray] = {}
    labels = np.concatenate([y.numpy() for _, y in images.batches(BATCH)])
    with tempfile.TemporaryDirectory() as folder:
        for form, program in programs(net, card, images, Path(folder)).items():
            parts: list[np.ndarray] = []
            some = images.limit(in_c) if form == "c" else images
            for x, _ in some.batches(BATCH, normalize=card.normalize):
                first = len(parts) * BATCH
                parts.append(program(x, images.pictures(torch.arange(first, first + len(x)))))
                if (first + len(x)) % SAY == 0:
                    print(f"{name}, {form}: {first + len(x):,} of {len(some):,} images", flush=True)
            answers[form] = np.concatenate(parts)
    base = answers["torch"]
    made: dict[str, Any] = {"net": name, "data": card.data, "images": len(labels), "of": of}
    made["torch_right"] = int((base.argmax(1) == labels).sum())
    for form in FORMS:
        found = answers[form]
        if form == "c":
            made["c_images"], base, labels = in_c, base[:in_c], labels[:in_c]
        made[f"{form}_right"] = int((found.argmax(1) == labels).sum())
        made[f"{form}_other_class"] = int((found.argmax(1) != base.argmax(1)).sum())
        made[f"{form}_equal"] = int((found == base).all(1).sum())
        made[f"{form}_largest"] = f"{np.abs(found - base).max() / np.abs(base).max():.1e}"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="nets of the zoo. [default: all packed ones]")
    parser.add_argument("--data", default=None, help="where the data sets lie. [default: BITWRIGHT_DATA]")
    parser.add_argument("--images", type=int, default=None, help="only the first ones. [default: the whole test set]")
    parser.add_argument("--c", type=int, default=None, help="the C file only over the first ones. [default: all]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine(1)
    for name in args.names or bw.zoo.list("packed"):
        images = bw.zoo.data(bw.zoo.card(name), "test", args.data)
        of = len(images)
        images = images.limit(min(args.images or of, of))
        in_c = min(args.c or len(images), len(images))
        if any(r["net"] == name and int(r["images"]) >= len(images) and int(r["c_images"]) >= in_c for r in read(OUT)):
            print(f"{name}: done already, its row is in {OUT.name}", flush=True)
            continue
        made = {**row(name, images, of, in_c), **facts}
        print({k: v for k, v in made.items() if k not in facts}, flush=True)
        kept = [r for r in read(OUT) if r["net"] != name and r["net"] in bw.zoo.list("packed")]
        write(OUT, sorted([*kept, made], key=lambda r: r["net"]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
