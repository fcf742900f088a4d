"""Line charts of docs/results: SVG files beside the page, so that a reader's browser runs and fetches nothing."""

from __future__ import annotations

from html import escape

import results_tables

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 626, 14, 208  # of the field of the lines


def chart(file: str, title: str, x_title: str, labels: list[str], lines: dict[str, list[float]]) -> str:
    """Writes a chart of test accuracies, 0 to 100 %, over places at equal distances; returns its Markdown.

    file     without a folder and a suffix
    labels   of the places
    lines    name -> one value per place, in the colors of `results_tables.COLORS`; names are drawn where there are several
    """
    step = (RIGHT - LEFT) / max(1, len(labels) - 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="11" fill="#808080"><title>{escape(title)}</title>'
    ]
    for percent in range(0, 101, 20):
        y = place(percent)
        parts.append(f'<path d="M{LEFT} {y}H{RIGHT}" stroke="#808080" stroke-opacity=".35"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:g}" text-anchor="end">{percent}</text>')
    for i, label in enumerate(labels):
        parts.append(f'<text x="{LEFT + i * step:.1f}" y="{BOTTOM + 17}" text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2:g}" y="{BOTTOM + 36}" text-anchor="middle">{escape(x_title)}</text>')
    parts.append(
        f'<text x="12" y="{(TOP + BOTTOM) / 2:g}" text-anchor="middle" transform="rotate(-90 12 {(TOP + BOTTOM) / 2:g})">test %</text>'
    )
    for n, (color, (name, values)) in enumerate(zip(results_tables.COLORS.values(), lines.items(), strict=False)):
        points = " ".join(f"{LEFT + i * step:.1f},{place(value)}" for i, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(lines) > 1:
            parts.append(
                f'<text x="{RIGHT}" y="{BOTTOM - 8 - 15 * n}" text-anchor="end" fill="{color}">{escape(name)}</text>'
            )
    (results_tables.FOLDER / f"{file}.svg").write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    return f"![{title}]({file}.svg)"


def place(percent: float) -> float:
    """The height at which an accuracy is drawn.

    >>> place(0), place(100), place(50)
    (208.0, 14.0, 111.0)
    """
    return round(BOTTOM - (BOTTOM - TOP) * percent / 100, 1)
