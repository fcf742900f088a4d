"""plotly inside the page: zoom in the two scatters and the weight histograms. An extra, imported when asked for."""

from __future__ import annotations

from typing import Any

from bitwright.errors import InputError
from bitwright.reporting.run_data import RunData
from bitwright.reporting.sections import worth
from bitwright.reporting.sections.weights import BINS
from bitwright.reporting.svg.charts import ScatterPlot

SYMBOLS = {"diamond": "diamond", "circle": "circle"}
COLORS = {"ours": "#c2410c", "fp32": "#7d8792", "int8": "#0072b2", "bf16": "#56b4e9"}


def script() -> str:
    """plotly.js whole, as its package ships it."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise InputError(
            "report --interactive: needs plotly, which is not installed. Run: pip install 'bitwright[interactive]'",
            code="extra-missing",
            remedy="pip install 'bitwright[interactive]'",
        ) from None
    return get_plotlyjs().replace("</script", "<\\/script").replace("\r\n", "\n")


def figures_of(run: RunData) -> dict[str, Any]:
    """{id of the place in the page: {"data": ..., "layout": ...}} in plotly's own form."""
    found: dict[str, Any] = {}
    for name, chart in (("plot-size", worth.size_scatter(run)), ("plot-time", worth.time_scatter(run))):
        if chart is not None:
            found[name] = _scatter(chart)
    if run["histograms"]:
        found["plot-weights"] = _histograms(run)
    return found


def _scatter(chart: ScatterPlot) -> dict[str, Any]:
    data = [
        {
            "type": "scatter", "mode": "markers+text", "name": _text(p.name), "x": [p.x], "y": [100 * (p.accuracy or 0.0)],
            "text": [_text(p.name)], "textposition": "bottom center", "hovertext": [_text(p.tip)], "hoverinfo": "text",
            "marker": {"size": 13, "symbol": SYMBOLS.get(p.shape, "square"), "color": COLORS[p.color]},
        }
        for p in chart.points
    ]  # fmt: skip
    marks = [u.mark for u in chart.uprights]
    shapes = [
        {
            "type": "line", "x0": m.x, "x1": m.x, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": COLORS[m.color], "dash": "dot"}, "label": {"text": _text(m.name), "textposition": "start"},
        }
        for m in marks
    ]  # fmt: skip
    return {
        "data": data,
        "layout": _layout(chart.axes.x_title, chart.axes.y_title, {"type": "log", "dtick": "D2"}) | {"shapes": shapes},
    }


def _histograms(run: RunData) -> dict[str, Any]:
    """One line of steps per layer, as shares, so that layers of all sizes compare; the legend picks."""
    middles = [(2 * i + 1) / BINS - 1 for i in range(BINS)]
    data = [
        {
            "type": "scatter", "mode": "lines", "line": {"shape": "hvh"}, "name": _text(h.layer), "x": middles,
            "y": [100 * n / h.weights for n in h.counts], "visible": True if i < 6 else "legendonly",
        }
        for i, h in enumerate(run["histograms"])
    ]  # fmt: skip
    return {"data": data, "layout": _layout("weight / largest of its layer", "share of weights (%)", {})}


def _layout(x: str, y: str, x_axis: dict[str, Any]) -> dict[str, Any]:
    plain = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "#7d8792"}}
    bar = {"bgcolor": "rgba(0,0,0,0)", "color": "#7d8792", "activecolor": "#c2410c"}
    margin = {"l": 50, "r": 10, "t": 20, "b": 45}
    return plain | {
        "margin": margin, "modebar": bar, "height": 300, "showlegend": not x_axis,
        "xaxis": {"title": {"text": x}, "gridcolor": "#7d879233", **x_axis},
        "yaxis": {"title": {"text": y}, "gridcolor": "#7d879233"},
    }  # fmt: skip


def _text(text: str) -> str:
    """plotly reads a little HTML in texts; names are not HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")
