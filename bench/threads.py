"""Two threads beside one: how much faster is a packed layer, from 30 us of work on?

    python bench/threads.py [--threads 2] [--out FILE]

One image, 3x3 convolutions on bits and on bytes, float output, eight layers in one native call, wall time in turn. The machine must be quiet: what others run on
the second core is missing from the second thread. "limit" is what the cores allow: the same layer on several threads of Python at
once, with one thread each, against the same number of calls one after the other.
Rows go to --out. [default: docs/results/threads.csv]
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.engine import native
from bitwright.engine.native_library import NOWHERE, OPERATIONS, StepStruct, check_code, library
from bitwright.measure.machine import machine
from bitwright.timing import interleave
from methods import ROOT, write

SHAPES = ((64, 14), (64, 28), (128, 14), (128, 28), (256, 14), (256, 28), (512, 14), (512, 28))
ROUNDS = 25
CALLS = 10  # of each thread at once
LAYERS = 8


def layers(channels: int, side: int) -> dict[str, Callable[[int], Any]]:
    """A call for each form, which takes the number of threads: the layer LAYERS times, in one native call, as in a net."""
    codes = torch.randint(0, 256, (1, side, side, channels), dtype=torch.uint8)
    ints = native.ConvPlan.bytes(torch.randint(-128, 128, (channels, channels, 3, 3)), x_bits=8, padding=1)
    bits = native.ConvPlan.bits(
        torch.randint(0, 2, (1, channels, channels, 3, 3)), w_mult=[2], w_zero=-1, x_mult=[1], padding=1
    )
    return {"bits": several(bits, native.to_words(codes % 2, 1)), "bytes": several(ints, codes)}


def several(plan: native.ConvPlan, x: Tensor) -> Callable[[int], Any]:
    output = native.FloatOutput(torch.ones(plan.out_channels), torch.zeros(plan.out_channels))
    call, y = plan.call(*x.shape[:3]), torch.empty(output.made(*plan.call(*x.shape[:3]).image)[0])
    operation = OPERATIONS.index(f"conv_{plan.kind}")
    step = StepStruct(operation, call.address, plan.weights, output.address, -1, NOWHERE, -2, NOWHERE, 0)
    steps, outside = (StepStruct * LAYERS)(*[step] * LAYERS), (ctypes.c_void_p * 2)(x.data_ptr(), y.data_ptr())
    lib, kept = library(), (plan, output, call, x, y)

    def run(threads: int) -> Any:
        check_code(lib.bw_run(ctypes.addressof(steps), LAYERS, ctypes.addressof(outside), 0, threads))
        return kept

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=str(ROOT / "docs" / "results" / "threads.csv"))
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows, facts = [], machine(args.threads)
    with ThreadPoolExecutor(args.threads) as pool:

        def often(call: Callable[[int], Any]) -> None:
            for _ in range(CALLS):
                call(1)

        def at_once(call: Callable[[int], Any]) -> None:
            for done in [pool.submit(often, call) for _ in range(args.threads)]:
                done.result()

        for channels, side in SHAPES:
            for form, call in layers(channels, side).items():
                calls = {"one": partial(call, 1), "all": partial(call, args.threads), "both": partial(at_once, call)}
                found = interleave(calls, rounds=ROUNDS)
                one, all_of, both = (found[k] for k in ("one", "all", "both"))
                rows.append(
                    {
                        "layer": f"{channels}x{side}x{side}", "form": form, "one_us": round(1e6 * one.median / LAYERS, 1),
                        "several_us": round(1e6 * all_of.median / LAYERS, 1), "gain": round(one.median / all_of.median, 3),
                        "gain_q1": round(one.q1 / all_of.q3, 3), "gain_q3": round(one.q3 / all_of.q1, 3),
                        "limit": round(args.threads * CALLS * one.median / both.median, 3), "runs": one.runs, **facts,
                    }
                )  # fmt: skip
                print({k: rows[-1][k] for k in ("layer", "form", "one_us", "gain", "limit")}, flush=True)
    write(Path(args.out), rows)


if __name__ == "__main__":
    main()
