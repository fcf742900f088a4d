"""Linear layers of few levels on floats: the time of torch's dense product over that of look-ups (bitwright/csrc/float_tables.h).

    python bench/tables.py [--isa avx2]

One thread, medians of CPU time in turn. Rows go to docs/results/tables.csv; PAYS of bitwright/engine/table_linear.py is taken from
them. A ratio above 1 means that look-ups are faster.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F

from bitwright.engine import native
from bitwright.engine.table_linear import TableTerm
from bitwright.measure.machine import machine
from bitwright.timing import clock_for, interleave
from methods import ROOT, read, write

SHAPES = ((64, 64), (256, 64), (256, 256), (784, 500), (2048, 1000), (9216, 4096))  # inputs, outputs
BATCHES, LEVELS = (1, 8, 64), {"binary": (-1, 1), "ternary": (-1, 0, 1), "4 bits": tuple(range(-7, 8))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--isa", default="", help="instruction set of the kernels. [default: the best here]")
    native.force_isa(parser.parse_args().isa)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    path, facts = ROOT / "docs" / "results" / "tables.csv", machine(1)
    kept = [r for r in read(path) if (r["cpu"], r["kernels"]) != (facts["cpu"], facts["kernels"])]
    for k, o in SHAPES:
        for name, levels in LEVELS.items():
            weight = torch.tensor(levels)[torch.randint(0, len(levels), (o, k))].int()
            term, dense = TableTerm(weight, torch.ones(1), torch.zeros(1)), weight.float()
            for batch in BATCHES:
                x = torch.randn(batch, k)
                with torch.inference_mode():
                    calls = {"ours": partial(term.run, x), "torch": partial(F.linear, x, dense)}
                    found = interleave(calls, rounds=7, clock=clock_for(1)[0])
                ours, other = found["ours"], found["torch"]
                kept.append(
                    {
                        "inputs": k, "outputs": o, "weights": name, "batch": batch, "us": round(1e6 * ours.median, 2),
                        "torch_us": round(1e6 * other.median, 2), "ratio": round(other.median / ours.median, 2),
                        "ratio_q1": round(other.q1 / ours.q3, 2), "ratio_q3": round(other.q3 / ours.q1, 2), **facts,
                    }
                )  # fmt: skip
                print(
                    f"{k}x{o} {name}, batch {batch}: {1e6 * ours.median:.1f} us, torch {other.median / ours.median:.2f}x"
                )
    write(path, kept)


if __name__ == "__main__":
    main()
