"""Widths of the speed bars and shares of the strips, in per cent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitwright.measure import numbers
from bitwright.reporting import words
from bitwright.reporting.sections import Candidate, Layer, RunData


@dataclass(frozen=True)
class Bar:
    """`width`, whisker `left` and `whisker` in per cent of the longest whisker's end."""

    row: Candidate
    ours: bool
    color: str
    width: float
    left: float
    whisker: float
    tip: str
    rule: bool  # a line above: another precision begins


def bars(run: RunData) -> list[Bar]:
    """Measured candidates in the table's order; the axis starts at 0."""
    rows = [r for r in run.speed.rows if r.ms is not None] if run.speed else []
    top = max((r.q3 or r.ms or 0.0 for r in rows), default=0.0) or 1.0
    found: list[Bar] = []
    for row in rows:
        ours = run.speed is not None and row is run.speed.rows[0]
        q1, q3 = (row.ms if q is None else q for q in (row.q1, row.q3))
        low, high = (100 * (q or 0.0) / top for q in (q1, q3))
        tip = f"{row.name} ({row.precision}): {words.ms_unit(row.ms)}\nquartiles {words.ms(q1)} to {words.ms(q3)}"
        if row.runs:
            tip += f", {row.runs:,} runs"
        color = "ours" if ours else row.precision if row.precision in ("int8", "bf16", "fp32") else "fp32"
        rule = bool(found) and found[-1].color != color
        found.append(Bar(row, ours, color, 100 * (row.ms or 0.0) / top, low, high - low, tip, rule))
    return found


@dataclass(frozen=True)
class Piece:
    """One layer's part of a strip; `share` of the sum of all."""

    index: int
    layer: Layer
    share: float
    style: str
    label: str
    tip: str


@dataclass(frozen=True)
class Strip:
    title: str
    total: str
    pieces: tuple[Piece, ...]
    missing: int  # layers without a value


def strips(run: RunData) -> list[Strip]:
    """Packed time, packed bytes, float time; one is left out where no layer has a value."""
    made = (
        _strip(run, "Packed: time, layers alone", "ms_after", words.ms_unit, True),
        _strip(run, "Packed: bytes", "bytes_after", words.kb_unit, True),
        _strip(run, "Float: time, layers alone, for comparison", "ms_before", words.ms_unit, False),
    )
    return [strip for strip in made if strip is not None]


def _strip(run: RunData, title: str, column: str, write: Callable[[float | None], str], colored: bool) -> Strip | None:
    total = run.total(column)
    if not total:
        return None
    pieces, missing = [], 0
    for i, layer in enumerate(run.layers):
        value = getattr(layer, column)
        if value is None:
            missing += 1
            continue
        share = value / total
        runs = f", {layer.runs_as}" if colored and layer.runs_as else ""
        bits = f"\nw {words.bits(layer.w_bits)}, x {words.bits(layer.x_bits)}{runs}" if colored else ""
        tip = f"{layer.name}\n{write(value)} ({numbers.percent(share)} %){bits}"
        style = words.bits_class(layer.w_bits) if colored else "c32"
        pieces.append(Piece(i, layer, share, style, _label(layer.name, share), tip))
    return Strip(title, write(total), tuple(pieces), missing)


def _label(name: str, share: float) -> str:
    """What fits: about 150 characters of small type on the whole width."""
    room = int(share * 150) - 2
    if len(name) <= room:
        return name
    last = name.rpartition(".")[2]
    first = name.partition(".")[0]
    return next((text for text in (first, last) if 3 <= len(text) <= room), "")


def bit_keys(run: RunData) -> list[tuple[str, str]]:
    """(class, text) of the weight bits that occur."""
    found = {words.bits_class(layer.w_bits): layer.w_bits for layer in run.layers}
    order = ("c1", "c2", "c4", "c8", "c16", "c32")
    texts = {"c1": "1 bit", "c2": "2-3 bits", "c4": "4-7 bits", "c8": "8 bits", "c16": "9-31 bits", "c32": "float"}
    keys = [(key, texts[key]) for key in order if key in found]
    if any(layer.w_bits is None for layer in run.layers):
        keys = [(k, "float or unknown" if k == "c32" else t) for k, t in keys]
    return keys
