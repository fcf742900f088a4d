"""What the demo prints at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitwright import numbers
from bitwright.cli.output import Output
from bitwright.measure.table import BenchTable

if TYPE_CHECKING:
    from bitwright.runs import Run

Tables = dict[tuple[str, int], BenchTable]


def float_ms(tables: Tables, batch: int) -> float | None:
    """The best float32 program's time per batch, where any table of this batch size has one."""
    rows = [row for (_, b), table in tables.items() if b == batch and (row := table.best("fp32")) is not None]
    times = [row.median_ms for row in rows if row.median_ms is not None]
    return min(times, default=None)


def call_bound(tables: Tables) -> float | None:
    """How much longer an image takes alone than in a batch of 256, for our slowest such net; None below 2."""
    factors = []
    for (name, batch), table in tables.items():
        large = tables.get((name, 256))
        alone, together = table.ours.median_ms, large.ours.median_ms if large else None
        if batch == 1 and alone is not None and together:
            factors.append(alone / (together / 256))
    return min(factors) if factors and min(factors) >= 2 else None


def print_tables(out: Output, runs: list[Run], tables: Tables, conv: BenchTable) -> None:
    """The table of nets, one line for the convolution, and the reason for small gains where there is one."""
    state = runs[0].read_json("state.json")
    teacher = float(state["float_top1"])
    weights = int(runs[0].read_json("convert.json")["float_bytes"])
    ms = [numbers.ms(float_ms(tables, batch)) for batch in (1, 256)]
    rows = [["float", numbers.percent(teacher), "-", numbers.kb(weights), "-", ms[0], "-", ms[1], "-", "-"]]
    out.data["nets"] = [{"net": "float", "accuracy": teacher, "file_bytes": weights}]
    for run in runs:
        found, name = run.read_json("convert.json"), run.name.upper()
        accuracy = float(run.read_json("state.json")["test_top1"])
        size = found["file_bytes"]
        guesses = numbers.at_chance(teacher, 10, found["images"] or 1)  # then there is nothing to compare with
        cells = [name, numbers.percent(accuracy), "-" if guesses else numbers.points(accuracy - teacher)]
        cells += [
            numbers.kb(size),
            numbers.smaller(found["float_bytes"], size).removesuffix(" smaller") if size else "-",
        ]
        for batch in (1, 256):
            cells += _speed(tables.get((run.name, batch)))
        rows.append([*cells, found["status"]])
        keys = ("status", "same", "images", "file_bytes")
        out.data["nets"].append({"net": name, "accuracy": accuracy, **{key: found[key] for key in keys}})
    out.data["bench"] = [{"net": name.upper(), **table.to_dict()} for (name, _), table in tables.items()]
    head = ["net", "test %", "vs float", "kB", "smaller", "ms, 1", "vs fastest", "ms, 256", "vs fastest", "verdict"]
    out.result()
    head, *rows = [[f"  {row[0]}", *row[1:]] for row in [head, *rows]]
    out.table(head, rows, right=range(1, 9), drop=("vs float",))
    out.prose("  ms for a batch of 1 and of 256 images; float is the best fp32 program here; smaller compares files", 2)
    first = {
        batch: sorted({t.fastest.name for (_, b), t in tables.items() if b == batch and t.fastest})
        for batch in (1, 256)
    }
    names = "; ".join(f"{', '.join(found)} at {batch}" for batch, found in first.items() if found)
    out.prose(f"  fastest of all programs here, of any precision: {names or 'none was measured'}", 2)
    missing = {row.name: row.note for table in (*tables.values(), conv) for row in table.rows if row.median_ms is None}
    if missing:  # a ratio to the peers that happen to be installed must not look like one to all
        for note in dict.fromkeys(missing.values()):
            names = ", ".join(name for name, why in missing.items() if why == note)
            out.prose(f"  not measured: {names} ({note.removeprefix('unavailable: ')})", 2)
    out.result()
    out.prose("one 3x3 convolution of a larger net, 256 channels, 14x14 pixels, codes to codes:")
    out.prose(f"  {numbers.ms(conv.ours.median_ms)} ms; {conv.summary().removeprefix('in one line: ')}", 2)
    out.result()
    factor = call_bound(tables)
    if factor is not None:
        out.result(f"This net is tiny: one image alone takes {factor:.0f} times its share of a batch of 256;")
        out.result("calling its layers costs more than computing them.")
    noisy = [table.quality for table in (*tables.values(), conv) if table.noisy]
    if noisy:
        out.warn(f"the times are {noisy[0]}")


def _speed(table: BenchTable | None) -> list[str]:
    if table is None or table.ours.median_ms is None:
        return ["-", "-"]
    best = table.fastest
    return [numbers.ms(table.ours.median_ms), numbers.ratio(best.ratio) if best else "-"]
