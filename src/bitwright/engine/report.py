"""What `convert` says: a row per layer, the verification, the verdict."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field
from typing import Any

PASS, WARN, REFUSE = "PASS", "WARN", "REFUSE"


@dataclass
class ReportRow:
    """One layer. Bytes: as float32 and as stored. ms: median of the float operator and of ours, example's batch."""

    layer: str
    kind: str
    runs_as: str  # bits | int8 | bits on disk, float run | float
    bits: str
    bytes_before: int
    bytes_after: int
    max_abs_diff: float | None = None
    ms_before: float | None = None
    ms_after: float | None = None
    why: str = ""


@dataclass
class Disagreement:
    """One image whose class differs between the trained and the packed net."""

    index: int
    trained: int
    packed: int
    margin: float  # between the trained net's two best outputs
    first_layer: str  # whose input codes differ first; "" where no code differs


@dataclass
class ConvertReport:
    """`.status` is PASS, WARN or REFUSE; `str()` is the table."""

    rows: list[ReportRow]
    status: str = REFUSE
    verdict: str = ""
    backend: str = ""
    isa: str = ""
    images: int = 0
    same: int = 0  # class as the trained net gives it in float32
    same_folded: int = 0  # class as the folded net gives it (BatchNorm merged, contract 3.2 b): the packed arithmetic
    layers_exact: bool = True
    codes_checked: int = 0
    largest_difference: float | None = None
    disagreements: list[Disagreement] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    file_bytes: int | None = None
    ms_before: float | None = None
    ms_after: float | None = None

    @property
    def refused(self) -> list[ReportRow]:
        """Layers that stay float although their slots ask for bits."""
        return [r for r in self.rows if r.why and r.runs_as == "float"]

    @property
    def bytes_before(self) -> int:
        return sum(r.bytes_before for r in self.rows)

    @property
    def bytes_after(self) -> int:
        return sum(r.bytes_after for r in self.rows)

    def to_dict(self) -> dict[str, Any]:
        d = asdict(self)
        d["bytes_before"], d["bytes_after"] = self.bytes_before, self.bytes_after
        return d

    def to_csv(self) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(ReportRow.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in self.rows)
        return out.getvalue()

    def _cells(self) -> list[list[str]]:
        rows = [["layer", "runs as", "w/x", "kB float", "kB", "ms float", "ms", "max diff", "why"]]
        for r in self.rows:
            rows.append(
                [
                    r.layer,
                    r.runs_as,
                    r.bits,
                    _kb(r.bytes_before),
                    _kb(r.bytes_after),
                    _ms(r.ms_before),
                    _ms(r.ms_after),
                    "-" if r.max_abs_diff is None else ("0" if r.max_abs_diff == 0 else f"{r.max_abs_diff:.0e}"),
                    r.why,
                ]
            )
        counts: dict[str, int] = {}
        for r in self.rows:
            counts[r.runs_as] = counts.get(r.runs_as, 0) + 1
        smaller = f"{self.bytes_before / self.bytes_after:.1f}x smaller" if self.bytes_after else ""
        rows.append(
            [
                "total",
                ", ".join(f"{n} {k}" for k, n in counts.items()),
                "",
                _kb(self.bytes_before),
                _kb(self.bytes_after),
                _ms(self.ms_before),
                _ms(self.ms_after),
                "",
                smaller,
            ]
        )
        return rows

    def to_markdown(self) -> str:
        head, *body = self._cells()
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in body])

    def __str__(self) -> str:
        cells = self._cells()
        width = [max(len(r[i]) for r in cells) for i in range(len(cells[0]))]
        left = {0, 1, 8}
        lines = [
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(r, width, strict=True))
            ).rstrip()
            for r in cells
        ]
        if self.images:
            lines.append(
                f"verify  {self.same:,} of {self.images:,} images: same class as the trained net, {self.same_folded:,} as the "
                f"folded net; largest output difference {self.largest_difference or 0:.1e}; codes of {self.codes_checked} layers "
                f"{'equal bit for bit' if self.layers_exact else 'DIFFER: ' + ', '.join(self.inexact)}"
            )
        for d in self.disagreements[:10]:
            lines.append(
                f"        image {d.index}: trained {d.trained}, packed {d.packed}, margin {d.margin:.1e}, "
                f"first differing layer {d.first_layer or 'none (float head)'}"
            )
        if len(self.disagreements) > 10:
            lines.append(f"        ... {len(self.disagreements) - 10} more in .disagreements")
        lines.append(f"{self.status}  {self.verdict}")
        return "\n".join(lines)


def _kb(n: int) -> str:
    return f"{n / 1000:,.0f}" if n >= 100_000 else f"{n / 1000:.3g}"


def _ms(v: float | None) -> str:
    return "-" if v is None else f"{v:.3g}"
