"""How much work do the gates skip? Rates, counts, and the test images that cost least and most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright import numbers
from bitwright.reporting import filters
from bitwright.reporting.images import data_uri
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections import gate_charts
from bitwright.reporting.sections.errors import class_names
from bitwright.reporting.sections.gate_charts import NAMES, price
from bitwright.reporting.sections.section import Gap, Section, epochs_json, rounded
from bitwright.reporting.svg.charts import ChartTable, table_of
from bitwright.reporting.tensor_files import pictures
from bitwright.runs.cells import last_epoch
from bitwright.runs.tables import Classes, Gate, GateClass, GateWork, ImageWork

PICTURES = 6  # of the cheapest images, and of the costliest
BARS_SHOWN = 24
KEPT_RATES = 1500  # per class, in the page's JSON


@dataclass(frozen=True)
class Priced:
    """A test image and what the net computed for it; `picture` is a PNG data URI."""

    index: int
    true: str
    said: str
    macs: int
    bops: int
    picture: str


@dataclass(frozen=True)
class Gates:
    """rows of every epoch; by_class: layer -> rate per class; macs, bops: per test image, in rising order."""

    rows: tuple[Gate, ...]
    classes: tuple[str, ...] = ()
    by_class: dict[str, tuple[float | None, ...]] | None = None
    macs: tuple[int, ...] = ()
    bops: tuple[int, ...] = ()
    cheapest: tuple[Priced, ...] = ()
    costliest: tuple[Priced, ...] = ()
    counted: GateWork | None = None

    @property
    def last(self) -> tuple[Gate, ...]:
        """The rows of the last epoch."""
        return last_epoch(self.rows)

    @property
    def key(self) -> str:
        """What differs between images: "macs", or "bops" where only the bits of a product do."""
        return "bops" if self.macs and self.macs[0] == self.macs[-1] and self.bops[0] != self.bops[-1] else "macs"


class GatesSection(Section):
    name, title, place = "gates", "Gates", 80
    key, tables = "gates", (Gate, GateClass, GateWork, ImageWork, Classes)

    def read(self, run: RunData) -> Gates | None:
        rows, images = run.rows(Gate), {row.index: row for row in run.rows(ImageWork)}
        if not rows:
            return None
        numbers = sorted({row.number for row in run.rows(GateClass)})
        known = [*numbers, *(n for row in images.values() for n in (row.true, row.said))]
        names = class_names(run, 1 + max(known, default=-1), "gate_classes.csv")
        rates = {(row.layer, row.number): row.rate for row in run.rows(GateClass)}
        by_class = {name: tuple(rates.get((name, k)) for k in numbers) for name in dict.fromkeys(n for n, _ in rates)}
        macs, bops = (tuple(sorted(getattr(row, key) for row in images.values())) for key in ("macs", "bops"))
        shown = pictures(run.path("compute.safetensors"))
        half = len(shown) // 2
        cheapest, costliest = (
            tuple(
                Priced(i, names[(row := images[i]).true], names[row.said], row.macs, row.bops, data_uri(image))
                for i, image in some[:PICTURES]
                if i in images  # else of an earlier evaluation
            )
            for some in (shown[:half], shown[half : 2 * half])
        )
        classes = tuple(names[k] for k in numbers)
        return Gates(rows, classes, by_class or None, macs, bops, cheapest, costliest, run.one(GateWork))

    def shown(self, run: RunData) -> bool:
        return run["gates"] is not None

    def view(self, run: RunData) -> dict[str, Any]:
        found: Gates = run["gates"]
        drift, saliency = gate_charts.drifts(run, found)
        shown = {
            "bars": rate_bars(found)[:BARS_SHOWN], "more": max(0, len(found.last) - BARS_SHOWN), "rates": rate_table(found),
            "counted": counted_table(found), "classes": gate_charts.class_map(found), "drift": drift, "saliency": saliency,
            "work": gate_charts.work_histogram(found), "scatter": gate_charts.work_scatter(run), "summary": summary(run),
            "unit": NAMES[found.key], "key": found.key, "price": price,
        }  # fmt: skip
        return {"gates_view": shown}

    def json(self, run: RunData) -> dict[str, Any]:
        """Every epoch where that is not too much; of the images their cost at a few percentiles."""
        found: Gates = run["gates"]
        few = len(found.classes) * len(found.by_class or {}) <= KEPT_RATES
        by_class = {n: [rounded(v) for v in rates] for n, rates in (found.by_class or {}).items()} if few else None
        at = {"min": 0.0, "p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}

        def spread(values: Sequence[int]) -> dict[str, int]:
            return {name: values[round(share * (len(values) - 1))] for name, share in at.items()} if values else {}

        counted = found.counted and found.counted.model_dump()
        costs = {"macs": spread(found.macs), "bops": spread(found.bops), "counted": counted}
        return {"gates": {**epochs_json(found.rows, Gate), "by_class": by_class, **costs}}

    def gaps(self, run: RunData) -> Iterator[tuple[str, Gap]]:
        if run["gates"] is not None and not run["gates"].macs:
            yield "gates", Gap("What each test image costs is not recorded.", "bitwright eval {run}")


@dataclass(frozen=True)
class RateBar:
    name: str
    part: str
    rate: float
    tip: str


def summary(run: RunData) -> str:
    """ "MACs 0.51x, 1.96x fewer": of the last epoch."""
    last = run.work
    if last is None or not last.dense_macs or not last.macs:
        return ""
    texts: dict[str, str] = {}
    for key, done, dense in (("macs", last.macs, last.dense_macs), ("bops", last.bops, last.dense_bops)):
        if done and dense:
            share = f"{done / dense:.2f}"
            if share == texts.get("macs"):
                return f"{share} of the dense net's MACs and BOPs ({dense / done:.2f}x fewer)"
            texts[key] = share
    return ", ".join(f"{share} of the dense net's {NAMES[key]}" + _fewer(run, key) for key, share in texts.items())


def _fewer(run: RunData, key: str) -> str:
    done, dense = getattr(run.work, key), getattr(run.work, f"dense_{key}")
    return f" ({dense / done:.2f}x fewer)" if done < dense else ""


def rate_bars(gates: Gates) -> list[RateBar]:
    said = "{}\n{}: on for {} of its decisions".format
    known = [(g, g.rate) for g in gates.last if g.rate is not None]
    return [RateBar(g.layer, g.gate, rate, said(g.layer, g.gate, filters.percent_unit(rate))) for g, rate in known]


def rate_table(gates: Gates) -> ChartTable:
    plain = filters.general
    return table_of("Every gate in the last epoch", gates.last, {
        "layer": ("layer", str), "gate": ("gate", str), "on": ("rate", filters.percent_unit),
        "least threshold": ("threshold_min", plain), "mean": ("threshold_mean", plain), "largest": ("threshold_max", plain),
        "target": ("target", plain), "keep": ("keep", plain), "mean saliency": ("saliency", plain),
        "mean input bits": ("mean_bits", plain),
    })  # fmt: skip


def counted_table(gates: Gates) -> ChartTable | None:
    """What the count is made of, and the figures of the papers and their codes, named as theirs. None without work.json."""
    found = gates.counted
    if found is None:
        return None
    rows: list[tuple[str, str, str]] = []

    def add(name: str, value: str, note: str) -> None:
        if value != filters.UNKNOWN:
            rows.append((name, value, note))

    def bits(value: float | None) -> str:
        return filters.UNKNOWN if value is None else f"{value:.2f}"

    add("predictors and scaling, MACs", numbers.macs(found.overhead_macs), "part of the MACs above")
    add("comparisons", numbers.macs(found.comparisons), "of the decisions; no multiply, not in the MACs")
    if found.gated_bits is not None:
        add("mean input bits, gated layers", bits(found.gated_bits), "over the products of layers gated by precision")
        add("mean input bits, whole net", bits(found.net_bits), "over all products; a float counts 32")
    if found.quadratic_reduction is not None:
        text = f"{numbers.macs(found.quadratic_macs)}, {found.quadratic_reduction:.2f}x fewer"
        add("all-quadratic MACs", text, "as papers count fbs: an upper bound, for sums of maps are denser")
    sparsity = filters.percent_unit(found.unweighted_sparsity)
    add("unweighted sparsity", sparsity, "as the public codes print it: every decision the same; no reduction of work")
    return ChartTable("What is counted, per image", ("", "per image", "which is"), tuple(rows))
