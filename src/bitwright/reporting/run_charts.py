"""The charts of one run: which nets, marks, lines and cells they get, from the sections."""

from __future__ import annotations

from bitwright.measure import numbers
from bitwright.reporting import words
from bitwright.reporting.charts import Mark, Point, Scatter, Table, scatter
from bitwright.reporting.curves import Curves, HeatMap, HeatRow, Series, curves
from bitwright.reporting.sections import Epoch, Health, RunData
from bitwright.reporting.verdict import restless

LAYERS_SHOWN, EPOCHS_SHOWN = 24, 40
COLORS = {"int8": "int8", "bf16": "bf16", "fp32": "fp32"}


def size_scatter(run: RunData) -> Scatter | None:
    """Accuracy against bytes: the float net and the packed one."""
    points = []
    rows = []
    for name, accuracy, size, shape, color, main in (
        (run.origin.name, run.accuracy, run.file_bytes, "diamond", "ours", True),
        ("float", run.float_accuracy, run.float_bytes, "circle", "fp32", False),
    ):
        rows.append((name, words.percent_unit(accuracy), words.kb_unit(size)))
        if accuracy is not None and size:
            tip = f"{name}\naccuracy {numbers.percent(accuracy)} %\n{words.kb_unit(size)}"
            points.append(Point(name, size / 1e3, accuracy, shape, color, tip, main))
    table = Table("Accuracy and size", ("net", "test accuracy", "size"), tuple(rows))
    if not any(p.main for p in points):
        return None  # the float net alone answers nothing
    return scatter("Accuracy against size", "size (kB, log; left is better)", points, (), table)


def time_scatter(run: RunData) -> Scatter | None:
    """Accuracy against ms: nets with a known accuracy as points, the best peer of a precision as a vertical mark."""
    points, marks, rows = [], [], []
    for name, accuracy, ms, shape, color, main in (
        (run.origin.name, run.accuracy, run.ms, "diamond", "ours", True),
        ("float", run.float_accuracy, run.float_ms, "circle", "fp32", False),
    ):
        rows.append((name, words.percent_unit(accuracy), words.ms_unit(ms)))
        if accuracy is not None and ms:
            tip = f"{name}\naccuracy {numbers.percent(accuracy)} %\n{words.ms_unit(ms)}"
            points.append(Point(name, ms, accuracy, shape, color, tip, main))
    if not any(p.main for p in points):
        return None
    for precision in ("int8", "bf16"):
        best = run.speed.best(precision) if run.speed else None
        if best is not None and best.ms:
            tip = f"{best.name}\n{words.ms_unit(best.ms)}\nits accuracy was not measured"
            marks.append(Mark(best.name, best.ms, COLORS[precision], tip))
            rows.append((best.name, "not measured", words.ms_unit(best.ms)))
    table = Table("Accuracy and latency", ("net", "test accuracy", "latency"), tuple(rows))
    return scatter("Accuracy against latency", "latency (ms, log; left is better)", points, marks, table)


def accuracy_curves(run: RunData) -> Curves | None:
    """Training, validation and test accuracy by epoch."""
    epochs = run.training.epochs if run.training else ()
    if not epochs:
        return None
    series = [
        Series("test", "ours", "", _shares(epochs, "test_top1")),
        Series("validation", "int8", "7 4", _shares(epochs, "val_top1")),
        Series("train", "fp32", "2 3", _shares(epochs, "top1")),
    ]
    return curves("Accuracy by epoch", series, [e.stage for e in epochs], _epoch_table(epochs))


def _shares(epochs: tuple[Epoch, ...], column: str) -> tuple[float | None, ...]:
    values = [getattr(e, column) for e in epochs]
    return tuple(None if v is None else v * 100 for v in values)


def _epoch_table(epochs: tuple[Epoch, ...]) -> Table:
    rows = tuple(
        (
            str(i), str(e.stage), str(e.epoch), words.loss(e.loss), numbers.percent(e.top1), numbers.percent(e.val_top1),
            numbers.percent(e.test_top1), words.general(e.lr), words.duration(e.seconds),
        )
        for i, e in enumerate(epochs, 1)
    )  # fmt: skip
    headers = ("epoch", "stage", "of stage", "loss", "train %", "validation %", "test %", "learning rate", "time")
    return Table("Every epoch", headers, rows)


def flip_map(run: RunData) -> HeatMap | None:
    """Sign flips by layer and epoch; strength is the share relative to the highest one."""
    health = [h for h in (run.training.health if run.training else ()) if h.flips is not None]
    if not health:
        return None
    moments = sorted({(h.stage, h.epoch) for h in health})
    recorded = [(e.stage, e.epoch) for e in run.training.epochs] if run.training else []
    number = {m: i for i, m in enumerate(recorded if set(moments) <= set(recorded) else moments, 1)}
    layers = list(dict.fromkeys(h.layer for h in health))
    rates = {(h.layer, h.stage, h.epoch): h.flips or 0.0 for h in health}
    shown = set(sorted(layers, key=lambda name: -rates.get((name, *moments[-1]), 0.0))[:LAYERS_SHOWN])
    groups = _groups(moments, EPOCHS_SHOWN)
    most = max(rates.values()) or 1.0
    long = max(len(_short(name)) for name in shown)
    left = round(16 + 6.9 * long, 1)
    width = (386.0 - left) / len(groups)
    high = 22.0 if len(shown) <= 10 else 15.0
    worst = restless(run)
    rows = []
    for name in (n for n in layers if n in shown):
        cells = []
        for i, group in enumerate(groups):
            found = [rates[name, *m] for m in group if (name, *m) in rates]
            if found:
                rate = sum(found) / len(found)
                tip = f"{name}\n{_span(group, number)}: {_rate(rate)} flip"
                cells.append((round(left + i * width, 1), round(width * 0.94, 1), round(rate / most, 3), tip))
        label = _row_label(name, [rates.get((name, *m)) for m in moments])
        y = 24 + len(rows) * high
        rows.append(HeatRow(name, _short(name), y, label, tuple(cells), worst is not None and name == worst[0]))
    ends = {0, len(groups) - 1}
    ticks = tuple((round(left + (i + 0.5) * width, 1), str(number[groups[i][0]])) for i in sorted(ends))
    return HeatMap(
        "Sign flips per step, by layer and epoch", 24 + len(rows) * high, high, left, tuple(rows), ticks,
        health_table(tuple(h for h in health if (h.stage, h.epoch) == moments[-1])), len(layers) - len(rows),
    )  # fmt: skip


def _groups(moments: list[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    size = -(-len(moments) // most)
    return [moments[i : i + size] for i in range(0, len(moments), size)]


def _span(group: list[tuple[int, int]], number: dict[tuple[int, int], int]) -> str:
    """Epochs counted from 1 over all stages, as in the curves."""
    first, last = number[group[0]], number[group[-1]]
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _rate(share: float | None) -> str:
    """Flips are small: three digits, not one decimal."""
    return "-" if share is None else f"{numbers.significant(share * 100)} %"


def _row_label(name: str, values: list[float | None]) -> str:
    return f"{name}: {_rate(values[0])} of the signs flip per step in the first epoch, {_rate(values[-1])} in the last"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:8]}...{name[-7:]}"


def health_table(last: tuple[Health, ...]) -> Table:
    rows = tuple(
        (
            h.layer, _rate(h.flips), words.percent_unit(h.dead), words.general(h.scale),
            words.percent_unit(h.saturation), words.percent_unit(h.positive),
        )
        for h in last
    )  # fmt: skip
    headers = ("layer", "flips per step", "dead", "scale against start", "saturated inputs", "positive inputs")
    return Table("Every layer in its last epoch", headers, rows)
