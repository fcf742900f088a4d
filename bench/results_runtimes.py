"""The section on one net in four programs, and on what calls cost in addition to their kernels."""

from __future__ import annotations

from results_tables import machine, number, read, table


def runtimes() -> str:
    """The tables, each only where it was measured."""
    return _programs() + _overhead() + _one_call()


def _programs() -> str:
    found = read("agree.csv")
    if not found:
        return ""
    forms = ("ours", "plain", "c")
    rows = [
        [
            r["net"],
            f"{int(r['images']):,}"
            if r["images"] == r["of"]
            else f"the first {int(r['images']):,} of {int(r['of']):,}",
            f"{int(r['c_images']):,}",
            f"{int(r['torch_right']):,}",
            " / ".join(r[f"{form}_other_class"] for form in forms),
            " / ".join(f"{int(r[f'{form}_equal']):,}" for form in forms),
            " / ".join(r[f"{form}_largest"] for form in forms),
        ]
        for r in found
    ]
    head = ["net of the zoo", "test images", "of them in C", "right", "other class", "equal bits", "largest difference"]
    return f"""## One net in four programs

    python bench/agree.py --data DIR

Whole test sets, or the first images where a row says so, in torch (`bw.zoo.load`), in onnxruntime with our operators (`bw.ort.session`), in a plain onnxruntime, which
uses the functions in the same file, and as a compiled C file. Columns: right answers in torch; then, for the other three programs in
this order, images whose class differs from torch's, images whose outputs all have torch's bits, and the largest difference of an
output from torch's, as a share of the largest output. Nets with codes have torch's bits in the first and the third program: all three add what
is float in one order, and means in double. Three nets have float inputs in all layers (`bwn`, `ttq`, `dorefa-w1a32`), whose convolutions are
Winograd's in the first two programs, so the last digits differ. A plain onnxruntime adds float layers in an order of its own; where one
stands in front of a quantizer, a code near a threshold may differ, which is a larger difference on that image. {machine("agree.csv")}.

{table(head, rows)}

"""


def _overhead() -> str:
    found = read("overhead.csv")
    if not found:
        return ""
    rows = [
        [
            f"{r['model']} {r['recipe']}",
            r["layers"],
            *(number(r[k]) for k in ("kernels_us", "whole_us", "overhead_us_a_layer", "node_by_node_us_a_layer")),
        ]
        for r in found
    ]
    head = ["net", "layers", "kernels, us", "a call, us", "besides kernels, us a layer", "the same node by node"]
    return f"""## What a call costs in torch beside its kernels

    python bench/overhead.py

Batch 1, one thread, lower quartile of the rounds. "Kernels" are the native calls and torch's float operators, with inputs and outputs
prepared. Neighboring native operations run in one call; in "node by node" each has its own call. The rest is Python between the calls,
the check that every number of the input is finite, and new memory for floats that torch's operators read. {machine("overhead.csv")}.

{table(head, rows)}

"""


def _one_call() -> str:
    found = read("one_call.csv")
    if not found:
        return ""
    rows = [
        [
            f"{r['model']} {r['recipe']}", r["apart_nodes"], r["nodes"],
            *(number(r[k]) for k in ("apart_us", "us", "saved_us_a_node")),
        ]
        for r in found
    ]  # fmt: skip
    head = ["net", "nodes apart", "nodes", "apart, us", "in one call, us", "saved, us a node"]
    return f"""## What one call saves in ONNX Runtime

    python bench/one_call.py

The file of a packed net has one node, `Run`, for operators of ours that follow each other; beside it, the same net with a node for each.
Batch 1, one thread, both in turn, lower quartile of the rounds. {machine("one_call.csv")}.

{table(head, rows)}

"""
