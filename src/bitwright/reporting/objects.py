"""Result objects instead of a run directory -> `RunData`, as rows of the same tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bitwright.analysis import CostTable
from bitwright.engine.convert import Converted
from bitwright.errors import InputError
from bitwright.measure.table import BenchTable
from bitwright.reporting.load import filled
from bitwright.reporting.run_data import Origin, RunData
from bitwright.runs.cells import Table, parsed
from bitwright.runs.result_tables import Bench, Conversion, Layer

KINDS = (Converted, BenchTable, CostTable)
POSSIBLE = "a run directory, a Converted, a BenchTable, a CostTable, or a list or dict of these"


def load_objects(given: Any) -> RunData:
    """One object, a list, or a dict whose first key becomes the name of the page; one of each kind."""
    named = dict(given) if isinstance(given, Mapping) else dict(enumerate(given if _is_list(given) else [given]))
    found: dict[type, Any] = {}
    for key, item in named.items():
        kind = next((k for k in KINDS if isinstance(item, k)), None)
        if kind is None:
            where = f" (at {key!r})" if len(named) > 1 or isinstance(given, Mapping) else ""
            raise InputError(
                f"report: got {type(item).__name__}{where}; possible: {POSSIBLE}",
                code="report-input",
                given=type(item).__name__,
            )
        if kind in found:
            raise InputError(
                f"report: got two {kind.__name__}s; one page is about one net. For several runs: bitwright report --compare",
                code="report-input",
            )
        found[kind] = item
    if not found:
        raise InputError(f"report: got nothing; possible: {POSSIBLE}", code="report-input")
    name = next(iter(named))
    return _data(
        str(name) if isinstance(given, Mapping) else "this net",
        found.get(Converted),
        found.get(BenchTable),
        found.get(CostTable),
    )


def _is_list(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, (*KINDS, str))


def _data(name: str, converted: Converted | None, bench: BenchTable | None, cost: CostTable | None) -> RunData:
    tables: dict[type[Table], tuple[Table, ...]] = {}
    recipe, layers = "", ()
    if converted is not None:
        from bitwright.transforms import recipe_of

        conversion = parsed(Conversion, converted.report.to_dict(), "convert")
        tables[Conversion], layers = (conversion,), conversion.rows
        recipe = recipe_of(converted.source).to_toml()
    if bench is not None:
        tables[Bench] = (parsed(Bench, bench.to_dict(), "bench"),)
    if cost is not None:
        tables[Layer] = _with_cost(layers, cost)
    return filled(RunData(Origin(name, recipe=recipe, machine=dict(bench.machine) if bench else {}), tables=tables))


def _with_cost(layers: tuple[Layer, ...], cost: CostTable) -> tuple[Layer, ...]:
    """MACs and the names of the parts; without a conversion also bits and bytes, as counted."""
    counted = {
        row.name: Layer(
            layer=row.name, kind=row.kind, w=row.w, x=row.x, w_bits=row.w_bits, x_bits=row.x_bits, macs=row.macs,
            bytes_before=4.0 * row.weights + row.float_bytes, bytes_after=row.weight_bytes + row.float_bytes,
            why="counted, not packed" + (f"; {row.note}" if row.note else ""),
        )
        for row in cost.rows
    }  # fmt: skip
    if not layers:
        return tuple(counted.values())
    return tuple(
        layer.model_copy(update={"w": c.w, "x": c.x, "macs": c.macs}) if (c := counted.get(layer.name)) else layer
        for layer in layers
    )
