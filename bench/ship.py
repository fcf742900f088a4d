"""Size and start-up time of each form in which a net can be shipped: what a process takes from its start to its first answer.

    python bench/ship.py [--rounds 7]     # measures, writes docs/results/ship.csv, prints the table of docs/guides/ship-it.md
    python bench/ship.py --table           # prints the table again

A process reads the file and one image, answers, and ends; its CPU time counts, which other jobs on the machine change least. All forms
run in turn, once each round; the first round, which fills the file cache, is not counted. Sizes are those of the files: `bytes` of the net itself, `beside` of our library, where the
form takes it along. The C program is compiled with -O2 and stripped; its size is that of the whole program.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bitwright as bw
from bitwright.engine.packed import PackedModel
from bitwright.export_c.compiled import compiler
from bitwright.measure.machine import machine
from methods import ROOT, write

NETS = ("digits-mlp-zero_one", "digits-mlp-dorefa-w2a2", "cifar10-resnet20-bwn-a8")
FILE = ROOT / "docs" / "results" / "ship.csv"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
BATCHES = 8  # images given to an export to compare on
READ = "import sys, numpy; x = numpy.load(sys.argv[2]); "
SAY = "print(int(numpy.asarray(y).argmax()), flush=True); import os; os._exit(0)"
PACKED = f"{READ}import torch, bitwright; y = bitwright.load(sys.argv[1])(torch.from_numpy(x)); {SAY}"
OPTIONS = "import onnxruntime as o; s = o.SessionOptions(); s.intra_op_num_threads = 1; "
RUN = "r = o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider']); y = r.run(None, {'input': x})[0]; "
OURS = f"{READ}{OPTIONS}s.register_custom_ops_library(sys.argv[3]); {RUN}{SAY}"
PLAIN = f"{READ}{OPTIONS}{RUN}{SAY}"
MAIN = """#include <stdio.h>
#include "net.h"
int main(int count, char **words)
{
    static uint8_t in[NET_INPUTS];
    static float out[NET_OUTPUTS];
    FILE *file = count > 1 ? fopen(words[1], "rb") : NULL;
    int best = 0, i;
    if (!file || fread(in, 1, sizeof in, file) != sizeof in) return 1;
    net_run(in, out);
    for (i = 1; i < NET_OUTPUTS; i++)
        if (out[i] > out[best]) best = i;
    printf("%d\\n", best);
    return 0;
}
"""


def used() -> float:
    """CPU seconds of all processes that have ended."""
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime


@dataclass
class Form:
    """One way to ship a net: what is started, and the bytes that it takes along."""

    name: str
    command: list[str]
    bytes: int
    beside: int = 0
    times: list[float] = field(default_factory=list)

    def start(self) -> str:
        """The line that a new process writes; its CPU time is kept."""
        before = used()
        done = subprocess.run(self.command, capture_output=True, text=True, env={**os.environ, **ONE_THREAD})
        self.times.append(used() - before)
        if done.returncode:
            raise SystemExit(f"{self.name}: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()


def forms(name: str, folder: Path) -> tuple[list[Form], str]:
    """The forms of a net, written into a folder, and the class that each must answer."""
    card, net = bw.zoo.card(name), bw.zoo.load(name)
    assert isinstance(net, PackedModel)
    data = bw.zoo.data(card).limit(BATCHES)
    pictures = data.pictures(torch.arange(BATCHES))
    x = pictures.float() / 255
    more: dict[str, Any] = {}
    if card.normalize:
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (data.mean, data.std))
        x, more = (x - mean) / std, {"mean": data.mean, "std": data.std}
    packed, file, quantized = folder / "net.safetensors", folder / "net.onnx", folder / "net.qonnx.onnx"
    bw.save(net, packed)
    bw.export.onnx(net, x, file)
    np.save(folder / "x.npy", x[:1].numpy())
    (folder / "x.bin").write_bytes(pictures[:1].numpy().tobytes())
    image, python = str(folder / "x.npy"), [sys.executable, "-c"]
    library = Path(bw.ort.library())
    found = [
        Form("packed file, PyTorch", [*python, PACKED, str(packed), image], packed.stat().st_size, library.stat().st_size),
        Form("ONNX, onnxruntime and our library", [*python, OURS, str(file), image, str(library)], file.stat().st_size, library.stat().st_size),
        Form("ONNX, onnxruntime alone", [*python, PLAIN, str(file), image], file.stat().st_size),
        Form("C program", [str(folder / "net"), str(folder / "x.bin")], program(net, pictures, folder, more)),
    ]  # fmt: skip
    bw.export.qonnx(net, x[:2], quantized)
    found.append(Form("QONNX", [], quantized.stat().st_size))
    with torch.no_grad():
        return found, str(int(net(x[:1]).argmax()))


def program(net: PackedModel, pictures: torch.Tensor, folder: Path, more: dict[str, Any]) -> int:
    """Bytes of the stripped program."""
    bw.export.c(net, pictures, folder / "net.c", **more)
    (folder / "main.c").write_text(MAIN)
    cc = compiler()
    if cc is None:
        raise SystemExit("no C compiler here")
    parts = [str(folder / n) for n in ("net.c", "main.c")]
    subprocess.run([cc, "-std=c99", "-O2", "-s", *parts, "-o", str(folder / "net")], check=True)
    return (folder / "net").stat().st_size


def measure(rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        nets = {}
        for name in NETS:
            (Path(folder) / name).mkdir()
            nets[name] = forms(name, Path(folder) / name)
        print("files written, measuring", flush=True)
        facts = machine(1)
        for _ in range(rounds + 1):
            for name, (found, want) in nets.items():
                for form in found:
                    if form.command and form.start() != want:
                        raise SystemExit(f"{name}: {form.name} answers another class")
    for name, (found, _) in nets.items():
        for form in found:
            times = [1000 * t for t in form.times[1:]]
            q1, middle, q3 = [round(t, 1) for t in statistics.quantiles(times, n=4)] if times else ["", "", ""]
            row = {"net": name, "form": form.name, "bytes": form.bytes, "beside": form.beside or ""}
            row |= {"start_ms": middle, "q1_ms": q1, "q3_ms": q3}
            rows.append({**row, "runs": len(times) or "", **facts})
            print({k: v for k, v in rows[-1].items() if k not in facts}, flush=True)
    return rows


def table(rows: list[dict[str, str]]) -> str:
    """The table of the guide."""
    lines = ["| net | form | bytes | library beside it | start-up, ms | quartiles |", "|---|---|---|---|---|---|"]
    for r in rows:
        beside = f"{int(r['beside']):,}" if r["beside"] else "-"
        start = f"{float(r['start_ms']):,.0f}" if float(r["start_ms"] or 0) >= 20 else r["start_ms"] or "-"
        spread = f"{r['q1_ms']} to {r['q3_ms']}" if r["q1_ms"] else "-"
        lines.append(f"| {r['net']} | {r['form']} | {int(r['bytes']):,} | {beside} | {start} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        write(FILE, measure(args.rounds))
    with FILE.open(encoding="utf-8", newline="") as f:
        print(table(list(csv.DictReader(f))))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
