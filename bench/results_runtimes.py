"""The section on one net in three programs, and on what a call costs in addition to its kernels."""

from __future__ import annotations

from results_tables import machine, number, read, table


def runtimes() -> str:
    """Both tables, each only where it was measured."""
    return _programs() + _overhead()


def _programs() -> str:
    found = read("three_runtimes.csv")
    if not found:
        return ""
    rows = [
        [
            r["net"],
            f"{int(r['images']):,}",
            f"{int(r['torch_right']):,} / {int(r['ours_right']):,} / {int(r['plain_right']):,}",
            f"{int(r['ours_other_class'])} / {int(r['plain_other_class'])}",
            f"{r['ours_largest']} / {r['plain_largest']}",
        ]
        for r in found
    ]
    head = ["net of the zoo", "test images", "right", "other class", "largest difference"]
    return f"""## One net in three programs

    python bench/three_runtimes.py --data DIR

Whole test sets in torch (`bw.zoo.load`), in onnxruntime with our operators (`bw.ort.session`), and in a plain onnxruntime, which
uses the functions in the same file. Columns: right answers in each program; images whose class differs from torch's, in the second
and the third; the largest difference of an output from torch's, as a share of the largest output. {machine("three_runtimes.csv")}.

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
