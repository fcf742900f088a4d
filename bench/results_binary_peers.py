"""The section on 1-bit layers beside other programs for 1-bit nets."""

from __future__ import annotations

from results_tables import machine, number, read, table


def binary_peers() -> str:
    """Nothing where it was not measured."""
    found = read("binary_peers.csv")
    if not found:
        return ""
    rows = []
    for r in found:
        cells = [r["case"], r["program"].replace("_", " ")]
        if r["us"]:
            times = [_us(r[k]) for k in ("us", "us_q1", "us_q3", "us_p95")]
            cells += [times[0], f"{times[1]} to {times[2]}", times[3]]
            cells += ["" if r["program"] == "bitwright" else f"{number(r['ratio'])}x", ""]
        else:
            cells += ["", "", "", "", r["note"].removeprefix("unavailable: ")]
        rows.append(cells)
    head = ["layer", "program", "us", "quartiles", "p95", "ours faster by", "not measured, because"]
    first = found[0]
    others = ", ".join(f"{k.partition('_engine_')[2] or k.removeprefix('bnn_lab_')} {v}" for k, v in first.items() if v and k.startswith(("larq_engine_", "bnn_lab_")))  # fmt: skip
    return f"""## 1-bit layers in other programs for 1-bit nets

    python bench/binary_peers.py

Larq Compute Engine and bnn-lab in environments of their own, which the command makes, and our packed nets, timed in turn: one thread, CPU
time. A convolution is one of a chain of four (sign, 3x3, BatchNorm) in one call, floats in and out; ours pads with exact zeros, Larq's
with +1, which is its fast way. A fully connected layer takes and gives floats. "default" and "indirect" are Larq's two ways to multiply;
it is made for ARM, where nothing was measured. {machine("binary_peers.csv")}; {others}.

{table(head, rows)}

"""


def _us(text: str) -> str:
    return f"{float(text):,.0f}" if float(text) >= 100 else number(text)
