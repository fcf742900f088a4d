"""From values to positions in the drawing: linear and logarithmic axes, and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps low..high to start..end (pixels); `log` needs positive values."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel, one decimal.

        >>> Scale(1, 100, 0, 200, log=True)(10), Scale(0, 10, 100, 0)(2.5)
        (100.0, 75.0)
        """
        low, high, v = (math.log(x) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (v - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers within the axis."""
        return log_ticks(self.low, self.high, most) if self.log else linear_ticks(self.low, self.high, most)


def log_scale(values: Iterable[float], start: float, end: float) -> Scale:
    """A log axis with room on both sides, so that marks at the ends and their labels stay inside."""
    values = list(values)
    low, high = min(values), max(values)
    room = max(1.35, (high / low) ** 0.12)
    return Scale(low / room, high * room, start, end, log=True)


def linear_scale(values: Iterable[float], start: float, end: float, least: float = 2.0) -> Scale:
    """With room on both sides; spans at least `least`, so that noise does not look like a cliff."""
    values = list(values)
    low, high = min(values), max(values)
    room = max((high - low) * 0.15, (least - (high - low)) / 2)
    return Scale(low - room, high + room, start, end)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Steps of 1, 2 or 5 times a power of ten, at most `most` ticks.

    >>> linear_ticks(87.2, 101.0), linear_ticks(0, 3, 4)
    ([90.0, 95.0, 100.0], [0.0, 1.0, 2.0, 3.0])
    """
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        size = step * factor
        first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
        if last - first + 1 <= most:
            break
    return [round(i * size, 10) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """1, 2, 5 per decade; only the decades where that is too much.

    >>> log_ticks(30, 1200), log_ticks(0.9, 1e7)
    ([50.0, 100.0, 200.0, 500.0, 1000.0], [1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0, 1000000.0, 10000000.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{f}e{d}") for d in decades for f in factors if low <= float(f"{f}e{d}") <= high]
        if len(found) <= most:
            break
    if len(found) < 2:  # an axis within one decade has no round number inside
        return [float(f"{v:.2g}") for v in (low * (high / low) ** 0.15, low * (high / low) ** 0.85)]
    return found


def tick_text(value: float) -> str:
    """
    >>> tick_text(0.05), tick_text(90.0), tick_text(1000.0)
    ('0.05', '90', '1,000')
    """
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
