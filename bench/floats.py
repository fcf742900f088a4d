"""Float convolutions: the time of torch's over that of our kernel (bitwright/csrc/floats.h), layer by layer.

    python bench/floats.py [--isa avx2]

One image, one thread, medians of CPU time in turn. Rows go to docs/results/floats.csv; the instruction sets that
bitwright/engine/fuse_floats.py names are taken from them. A ratio above 1 means that our kernel is faster.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F

from bitwright.engine import native
from bitwright.engine.native_floats import FloatPlan
from bitwright.measure.machine import machine
from bitwright.timing import clock_for, interleave
from methods import ROOT, read, write

SHAPES = (  # inputs, outputs, side, kernel, stride: the layers of vgg_small, resnet20 and resnet18
    (3, 128, 32, 3, 1), (128, 128, 32, 3, 1), (128, 256, 16, 3, 1), (256, 256, 16, 3, 1), (256, 512, 8, 3, 1), (512, 512, 8, 3, 1),
    (3, 16, 32, 3, 1), (16, 16, 32, 3, 1), (16, 32, 32, 3, 2), (32, 32, 16, 3, 1), (32, 64, 16, 3, 2), (64, 64, 8, 3, 1),
    (3, 64, 224, 7, 2), (64, 64, 56, 3, 1), (64, 128, 56, 3, 2), (64, 128, 56, 1, 2), (128, 128, 28, 3, 1), (128, 256, 28, 3, 2),
    (256, 256, 14, 3, 1), (256, 512, 14, 3, 2), (512, 512, 7, 3, 1),
)  # fmt: skip
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--isa", default="", help="instruction set of the kernels. [default: the best here]")
    native.force_isa(parser.parse_args().isa)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    path, facts = ROOT / "docs" / "results" / "floats.csv", machine(1)
    kept = [r for r in read(path) if (r["cpu"], r["kernels"]) != (facts["cpu"], facts["kernels"])]
    for c, o, side, kernel, stride in SHAPES:
        x, weight = torch.rand(1, c, side, side), torch.randn(o, c, kernel, kernel)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        plan, place = FloatPlan(weight, None, stride, kernel // 2), {"stride": stride, "padding": kernel // 2}
        calls = {"ours": partial(plan.run, x), "torch": partial(F.conv2d, x, weight, **place)}
        with torch.inference_mode():
            found = interleave(calls, rounds=ROUNDS, clock=clock_for(1)[0])
        ours, other = found["ours"], found["torch"]
        products = c * o * kernel**2 * (-(-side // stride)) ** 2
        kept.append(
            {
                "inputs": c, "outputs": o, "side": side, "kernel": kernel, "stride": stride,
                "us": round(1e6 * ours.median, 2), "torch_us": round(1e6 * other.median, 2),
                "ratio": round(other.median / ours.median, 3), "ratio_q1": round(other.q1 / ours.q3, 3),
                "ratio_q3": round(other.q3 / ours.q1, 3), "products_per_ns": round(1e-9 * products / ours.median, 1), **facts,
            }
        )  # fmt: skip
        print(
            f"{c:4} -> {o:4} {side}x{side} k{kernel} s{stride}: {1e6 * ours.median:8.1f} us, torch {other.median / ours.median:.2f}x"
        )
    write(path, kept)


if __name__ == "__main__":
    main()
