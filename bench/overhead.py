"""What a packed net costs in torch in addition to its kernels, for each layer: one image, one thread.

    python bench/overhead.py [--rounds 31]

kernels       the native calls of the net with inputs and outputs prepared, and torch's own float operators on prepared inputs
whole         a call of the packed net
node by node  the same with a native call for each node, the way that `packed.values()` goes
overhead      (whole - kernels) / layers

CPU time, all three in turn. The lower quartile of the rounds counts, because other jobs, which share the caches, only add to a time.
Rows go to docs/results/overhead.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import bitwright as bw
from bitwright.engine.native_library import library
from bitwright.engine.native_run import NativeRun
from bitwright.engine.packed import PackedModel
from bitwright.engine.rules import LAYERS
from bitwright.measure.machine import machine
from bitwright.timing import clock_for, interleave
from methods import ROOT, write

NETS = (
    ("vgg_small", "w1a1-8", 32), ("bireal_resnet20", "w1a1-8", 32), ("bireal_resnet20", "bireal", 32),
    ("resnet20", "dorefa-w1a2", 32), ("resnet20", "lsq-w2a2", 32), ("resnet20", "w8a8", 32),
    ("bireal_resnet18", "w1a1-8", 224),
)  # fmt: skip


def kernels(packed: PackedModel, x: Tensor) -> list[Callable[[], Any]]:
    """A call for each step of the net, with its inputs and outputs prepared."""
    env, calls = packed.environment(x), []
    for node, step, _ in packed._joined:
        given = [env[name] for name in (step.reads if isinstance(step, NativeRun) else node.inputs)]
        step(env)
        if not isinstance(step, NativeRun):
            calls.append(partial(step, dict(env)))
            continue
        ((program, _),) = step.programs.values()
        tensors = [*given, *[env[name] for name, *_ in program.made]]
        outside = program.pointers(*[t.data_ptr() for t in tensors])
        call = partial(library().bw_run, program.address, program.count, outside, program.scratch, 1)
        calls.append(call)
    calls.append(partial(len, env))  # the environment keeps their memory alive
    return calls


def row(model: str, recipe: str, side: int, rounds: int) -> dict[str, Any]:
    net = bw.models.create(model)
    x = torch.rand(1, 3, side, side)
    bw.apply(net, recipe, x)
    packed = bw.convert(net.eval(), x, threads=1, verify=False).model
    assert isinstance(packed, PackedModel)
    packed(x)
    calls, single = kernels(packed, x), packed.steps

    def node_by_node() -> None:
        env = packed.environment(x)
        packed._near(x)
        for _, step, forget in single:
            step(env)
            for name in forget:
                del env[name]

    def only_kernels() -> None:
        for call in calls:
            call()

    with torch.inference_mode():
        found = interleave(
            {"kernels": only_kernels, "whole": lambda: packed(x), "node by node": node_by_node},
            rounds=rounds, slice_seconds=0.003, clock=clock_for(1)[0],
        )  # fmt: skip
    layers = sum(n.op in LAYERS for n in packed.graph.nodes)
    base = found["kernels"].q1
    made: dict[str, Any] = {"model": model, "recipe": recipe, "layers": layers, "calls": len(calls) - 1}
    made |= {f"{k.replace(' ', '_')}_us": round(1e6 * t.q1, 1) for k, t in found.items()}
    made["overhead_us_a_layer"] = round(1e6 * (found["whole"].q1 - base) / layers, 2)
    made["node_by_node_us_a_layer"] = round(1e6 * (found["node by node"].q1 - base) / layers, 2)
    return {**made, "spread": round(found["whole"].spread, 3), "runs": found["whole"].runs}


def measured(of: Callable[[str, str, int, int], dict[str, Any]], doc: str, table: str) -> None:
    """The rows of all nets into a table of docs/results."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    facts, rows = machine(1), []
    for model, recipe, side in NETS:
        rows.append({**of(model, recipe, side, args.rounds), **facts})
        print({k: v for k, v in rows[-1].items() if k not in facts}, flush=True)
    write(ROOT / "docs" / "results" / table, rows)


if __name__ == "__main__":
    measured(row, __doc__ or "", "overhead.csv")
