"""Bits or bytes: time of a 3x3 convolution on bit planes over that on byte codes, for channels, pairs of planes and weights.

    python bench/forms.py [--isa avx2]

One image, one thread, float output, medians of CPU time in turn. The limits of bitwright/engine/forms.py are taken from these rows,
which go to docs/results/forms.csv. A ratio below 1 means that bits are faster. There are two ratios: to bytes of any size, and to
bytes that are known to be small (codes below 8, weights of -7..7), for which a kernel may need fewer products.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch

from bitwright.engine import native
from bitwright.measure.machine import machine
from bitwright.timing import clock_for, interleave
from methods import ROOT, read, write

SHAPES = ((16, 32), (32, 16), (64, 8), (64, 56), (128, 28), (256, 14), (512, 7))
PLANES = ((1, 1), (2, 1), (3, 1), (2, 2), (5, 1), (3, 2), (3, 3))  # of the input and of the weight
ROUNDS = 15


def plans(channels: int, side: int) -> dict[Any, Any]:
    """Calls by their key: "bytes", "small", or (input planes, weight planes, balanced)."""
    weight = torch.randint(-7, 8, (channels, channels, 3, 3))
    codes = torch.randint(0, 8, (1, side, side, channels), dtype=torch.uint8)
    output = native.FloatOutput(torch.ones(channels), torch.zeros(channels))
    found: dict[Any, Any] = {
        name: partial(native.ConvPlan.bytes(weight, x_bits=bits, padding=1).run, codes, output, None, 1)
        for name, bits in (("bytes", 8), ("small", 3))
    }
    for x, w in PLANES:
        words = native.to_words(codes % 2**x, x)
        for balanced in (True, False):
            plan = native.ConvPlan.bits(
                torch.randint(0, 2, (w, channels, channels, 3, 3)),
                w_mult=[2 << i if balanced else 1 << i for i in range(w)],
                w_zero=1 - 2**w if balanced else 0,
                x_mult=[1 << i for i in range(x)],
                padding=1,
            )
            found[x, w, balanced] = partial(plan.run, words, output, None, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--isa", default="", help="instruction set of the kernels. [default: the best here]")
    args = parser.parse_args()
    native.force_isa(args.isa)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    path = ROOT / "docs" / "results" / "forms.csv"
    facts = machine(1)
    kept = [r for r in read(path) if (r["cpu"], r["kernels"]) != (facts["cpu"], facts["kernels"])]
    for channels, side in SHAPES:
        found = interleave(plans(channels, side), rounds=ROUNDS, clock=clock_for(1)[0])
        base, small = found.pop("bytes"), found.pop("small")
        for (x, w, balanced), time in found.items():
            kept.append(
                {
                    "channels": channels, "side": side, "x_planes": x, "w_planes": w, "balanced": balanced,
                    "bytes_us": round(1e6 * base.median, 2), "bits_us": round(1e6 * time.median, 2),
                    "ratio": round(time.median / base.median, 3), "ratio_q1": round(time.q1 / base.q3, 3),
                    "ratio_q3": round(time.q3 / base.q1, 3), "small_us": round(1e6 * small.median, 2),
                    "ratio_small": round(time.median / small.median, 3), "runs": time.runs, **facts,
                }
            )  # fmt: skip
        print(f"{channels}x{side}: bytes {1e6 * base.median:.1f} us, small {1e6 * small.median:.1f} us", flush=True)
    write(path, kept)


if __name__ == "__main__":
    main()
