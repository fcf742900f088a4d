"""The result of `bench`: rows, the best peer of each precision, and one sentence to quote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bitwright import numbers
from bitwright.tabular import csv_text, fit, markdown, wrap
from bitwright.timing import NOISY, Timing, quality


@dataclass(frozen=True)
class BenchRow:
    """One candidate. Times are None where it could not be measured; `note` then says why."""

    name: str
    precision: str
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    p95_ms: float | None = None
    runs: int = 0
    per_second: float | None = None
    ratio: float | None = None
    best_of_precision: bool = False
    note: str = ""

    @classmethod
    def measured(cls, name: str, precision: str, timing: Timing, batch: int, note: str = "") -> BenchRow:
        """A row from seconds per call."""
        return cls(
            name, precision, timing.median * 1e3, timing.q1 * 1e3, timing.q3 * 1e3, timing.p95 * 1e3, timing.runs,
            batch / timing.median if timing.median else None, note=note,
        )  # fmt: skip

    @property
    def spread(self) -> float:
        """Quartile distance as a share of the median."""
        if not self.median_ms or self.q1_ms is None or self.q3_ms is None:
            return 0.0
        return (self.q3_ms - self.q1_ms) / self.median_ms


@dataclass(frozen=True)
class BenchTable:
    """Rows in the order ours, then peers by precision and speed. Prints as a table.

    rows      `BenchRow`s; `ratio` is peer / ours, so larger is better for us
    machine   what `measure.machine` says, threads and date included
    clock     "cpu" (one thread) or "wall"
    why       sentences on what keeps us from being faster, where that is known
    """

    rows: tuple[BenchRow, ...]
    machine: dict[str, Any]
    batch: int = 1
    input: tuple[int, ...] = ()
    rounds: int = 0
    clock: str = "wall"
    why: tuple[str, ...] = field(default=())

    @property
    def ours(self) -> BenchRow:
        """The first row."""
        return self.rows[0]

    def best(self, precision: str) -> BenchRow | None:
        """The fastest peer of "int8", "bf16" or "fp32"; None where none was measured."""
        return next((row for row in self.rows[1:] if row.precision == precision and row.best_of_precision), None)

    @property
    def fastest(self) -> BenchRow | None:
        """The fastest peer of any precision; None where none was measured."""
        return min(
            (r for r in self.rows[1:] if r.median_ms is not None), key=lambda r: r.median_ms or 0.0, default=None
        )

    def summary(self) -> str:
        """The sentence to quote."""
        first = self.fastest
        if first is None or first.ratio is None:
            return "in one line: " + ("no peer was measured" if self.ours.median_ms else "ours was not measured")
        said = [_times(first, "the speed of the fastest program here")]
        others = (self.best(p) for p in ("int8", "bf16", "fp32") if p != first.precision)
        said += [_times(r, f"the best {r.precision}") for r in others if r is not None]
        if self.best("int8") is None:
            said.append("no int8 was measured")
        return "in one line: " + "; ".join(said[:2])

    @property
    def spread(self) -> float:
        """The worst quartile spread among the rows that `summary` quotes."""
        return max((row.spread for i, row in enumerate(self.rows) if i == 0 or row.best_of_precision), default=0.0)

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY

    @property
    def quality(self) -> str:
        """Whether to trust the figures."""
        load, cores = self.machine.get("load"), self.machine.get("cores") or 1
        busy = load is not None and load > cores
        if self.noisy:
            return quality(self.spread)
        return f"{quality(self.spread)}, " + (
            f"machine busy (load {load:.1f} on {cores} cores)" if busy else "machine idle enough"
        )

    def head(self) -> str:
        """CPU, threads, batch, input, rounds."""
        threads = self.machine.get("threads", 1)
        shape = "x".join(str(n) for n in self.input)
        clock = "CPU time" if self.clock == "cpu" else "wall time"
        return (
            f"{self.machine.get('cpu', 'unknown CPU')}, kernels {self.machine.get('kernels', 'unknown')}, "
            f"{threads} thread{'s' if threads != 1 else ''}, "
            f"batch {self.batch}, input {shape or '?'}, {self.rounds} round{'s' if self.rounds != 1 else ''} interleaved, median {clock}"
        )

    def cells(self) -> list[list[str]]:
        """Texts of the table: candidate, precision, ms median, quartiles, p95, per second, ours faster by, note."""
        return [self._cells(row) for row in self.rows]

    def _cells(self, row: BenchRow) -> list[str]:
        if row.median_ms is None:
            return [row.name, row.precision, "-", "-", "-", "-", "-", row.note]
        quartiles = "-".join(numbers.ms(q) for q in (row.q1_ms or 0.0, row.q3_ms or 0.0))
        rate = "-" if row.per_second is None else f"{row.per_second:,.0f}"
        best = f"best {row.precision}" if row.best_of_precision else ""
        note = "; ".join(text for text in (best, row.note) if text)
        return [
            row.name, row.precision, numbers.ms(row.median_ms), quartiles, numbers.ms(row.p95_ms or 0.0),
            rate, numbers.ratio(row.ratio), note,
        ]  # fmt: skip

    HEADERS = ("candidate", "precision", "ms median", "quartiles", "p95", "img/s", "ours faster by", "")

    def text(self, width: int | None = None) -> str:
        """Head, table, what could not be measured, the sentence to quote, reasons, quality; `width` in characters.

        On a narrow screen the quartiles go first, then the rate, then p95; the note wraps.
        """
        measured = [c for c, row in zip(self.cells(), self.rows, strict=True) if row.median_ms is not None]
        lines = wrap(self.head(), width)
        lines += fit(self.HEADERS, measured, width, right=(2, 3, 4, 5), drop=("quartiles", "img/s", "p95"))
        for note in dict.fromkeys(row.note for row in self.rows if row.median_ms is None):  # one line for each reason
            names = ", ".join(row.name for row in self.rows if row.median_ms is None and row.note == note)
            lines += wrap(f"{names} not measured: {note.removeprefix('unavailable: ')}", width, 6)
        lines += wrap(self.summary(), width)
        if self.why:
            lines += wrap(f"not faster here because: {'; '.join(self.why)}", width, 6)
        return "\n".join([*lines, *wrap(f"quality: {self.quality}", width)])

    def __str__(self) -> str:
        return self.text()

    def to_markdown(self) -> str:
        """A Markdown table, then the machine line and the sentence."""
        table = markdown([*self.HEADERS[:-1], "note"], self.cells(), range(2, 6))
        return f"{table}\n\n{self.head()}; {self.summary()}; {self.quality}"

    def records(self) -> list[dict[str, Any]]:
        """One flat dict a row: raw values with the unit in the key, then the machine's columns."""
        shared = {"batch": self.batch, "input": "x".join(map(str, self.input)), "rounds": self.rounds}
        return [{**_raw(row), **shared, "clock": self.clock, **self.machine} for row in self.rows]

    def to_csv(self) -> str:
        """`records` as CSV text; empty where nothing was measured."""
        return csv_text(self.records())

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "rows": [_raw(row) for row in self.rows],
            "machine": self.machine,
            "batch": self.batch,
            "input": list(self.input),
            "rounds": self.rounds,
            "clock": self.clock,
            "summary": self.summary(),
            "quality": self.quality,
            "why": list(self.why),
        }


def _times(row: BenchRow, what: str) -> str:
    """`0.4x the best int8, ort-int8 (slower)`."""
    factor, _, loss = numbers.ratio(row.ratio).partition(" ")
    return f"{factor} {what}, {row.name}" + (f" {loss}" if loss else "")


def _raw(row: BenchRow) -> dict[str, Any]:
    raw = asdict(row)
    times = {key: raw.pop(old) for key, old in _TIMES.items()}
    return {"name": raw.pop("name"), "precision": raw.pop("precision"), **times, **raw}


_TIMES = {"latency_ms": "median_ms", "latency_q1_ms": "q1_ms", "latency_q3_ms": "q3_ms", "latency_p95_ms": "p95_ms"}


def ranked(ours: BenchRow, peers: Iterable[BenchRow]) -> tuple[BenchRow, ...]:
    """Adds ratios and best-of marks; order: ours, int8, bf16, fp32 (fastest first), then what was not measured."""
    order = {"int8": 0, "bf16": 1, "fp32": 2}
    peers = sorted(peers, key=lambda r: (r.median_ms is None, order.get(r.precision, 3), r.median_ms or 0.0))
    seen: set[str] = set()
    rows = [ours]
    for row in peers:
        if row.median_ms is not None:
            factor = row.median_ms / ours.median_ms if ours.median_ms else None
            row = replace(row, ratio=factor, best_of_precision=row.precision not in seen)
            seen.add(row.precision)
        rows.append(row)
    return tuple(rows)
