"""A conversion in words: the table of its layers and the lines of its proof."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

from bitwright import numbers
from bitwright.tabular import Row, fit, wrap

if TYPE_CHECKING:
    from bitwright.engine.report import ConvertReport, ReportRow

HEADERS = ("layer", "runs as", "w/x", "kB float", "kB", "ms float", "ms", "max diff", "why")
DROP = ("max diff", "kB float", "ms float")  # on a narrow screen, the first one first


def markdown(report: ConvertReport) -> str:
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in _cells(report)])


def table(report: ConvertReport, width: int | None, limit: int | None) -> list[str]:
    """With `limit`, a run of more than that many layers that differ only in sizes and times is cut short."""
    *cells, total = _cells(report)
    body: list[Row] = []
    for _, group in groupby(zip(report.rows, cells, strict=True), key=lambda pair: _alike(pair[0])):
        rows = list(group)
        shown = len(rows) if limit is None or len(rows) <= limit + 1 else limit
        body += [texts for _, texts in rows[:shown]]
        if shown < len(rows):
            body.append(f"...  {len(rows) - shown} more {rows[0][0].runs_as} layers (--all)")
    *total, gain = total
    merged: list[str | None] = [*(None if i == 2 else text for i, text in enumerate(total)), ""]
    lines = fit(HEADERS, [*body, merged], width, right=range(3, 8), drop=DROP)
    return [*lines, *(wrap(f"gain       {gain}", width, 11) if gain else [])]


def _alike(r: ReportRow) -> tuple[str, ...]:
    return r.kind.split()[0] if r.kind else "", r.runs_as, r.bits, r.why


def _cells(report: ConvertReport) -> list[list[str]]:
    """Texts of the rows; the last one is the whole net: bytes of its files, time of a whole run."""
    rows = [
        [
            *(r.layer, r.runs_as, r.bits, numbers.kb(r.bytes_before), numbers.kb(r.bytes_after)),
            *(numbers.ms(r.ms_before), numbers.ms(r.ms_after), _difference(r.max_abs_diff)),
            r.why.replace("its slots are empty", "slots empty"),
        ]
        for r in report.rows
    ]
    count = Counter(r.runs_as for r in report.rows)
    order = sorted(count, key=lambda kind: ("bits", "int8").index(kind) if kind in ("bits", "int8") else 2)
    kinds = ", ".join(f"{count[kind]} {kind}" for kind in order)
    sizes = [numbers.kb(report.float_bytes), numbers.kb(report.file_bytes)]
    return [
        *rows,
        ["whole net", kinds, "", *sizes, numbers.ms(report.ms_before), numbers.ms(report.ms_after), "", report.gain()],
    ]


def proof(report: ConvertReport, width: int | None, what: str, limit: int | None) -> list[str]:
    """Lines on the verification and, at most `limit` of them, on images whose class differs."""
    if not report.images:
        return ["verify  not done"]
    distinct = f" ({report.classes} different)" if report.classes else ""
    exact = "equal bit for bit" if report.layers_exact else "DIFFER: " + ", ".join(report.inexact)
    codes = (
        f"codes of {report.codes_checked} layers {exact}" if report.codes_checked else "no layer computes with codes"
    )
    lines = [
        f"verify  {report.same:,} of {report.images:,} {what}: same {report.share[1]} as the trained net{distinct}; "
        f"largest output difference {report.largest_difference or 0:.0e}",
        f"        {codes}{'' if report.beyond else '; values up to rounding'}",
    ]
    lines += [
        f"        {b.where}: off by {b.difference:.1e}, rounding explains {b.bound:.1e} (image {b.image})"
        for b in report.beyond[:limit]
    ]
    lines += [
        f"        output{o.name}: {o.same:,} of {o.images:,} same {o.kind}, largest difference {o.largest:.0e}"
        for o in (report.outputs if len(report.outputs) > 1 else [])
    ]
    shown = report.disagreements[:limit]
    lines += [
        f"        image {d.index}{d.output and f', output{d.output}'}: trained {d.trained}, packed {d.packed}, margin "
        f"{d.margin:.1e}, first differing layer {d.first_layer or 'none (float head)'}"
        for d in shown
    ]
    if len(report.disagreements) > len(shown):
        lines.append(f"        ... {len(report.disagreements) - len(shown)} more in .disagreements (--details)")
    return [part for line in lines for part in wrap(line, width, 8)]


def _difference(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.0e}"
