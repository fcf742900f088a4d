"""How numbers are written, once for the terminal, reports and docs. Machine output holds raw values instead."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ms(value: float | None) -> str:
    """Milliseconds with three significant digits, never another unit: they stand in columns.

    >>> ms(0.0486), ms(1.53), ms(12.2), ms(0.0032), ms(None)
    ('0.0486', '1.53', '12.2', '0.00320', '-')
    """
    return "-" if value is None else significant(value)


def us(seconds: float | None) -> str:
    """Seconds as microseconds with three significant digits.

    >>> us(0.0000135), us(None)
    ('13.5', '-')
    """
    return "-" if seconds is None else significant(1e6 * seconds)


def significant(value: float) -> str:
    """Three significant digits without an exponent, thousands with commas.

    >>> significant(1234.5), significant(0.0), significant(99.96)
    ('1,234', '0', '100')
    """
    if value == 0:
        return "0"
    digits, places = abs(float(f"{value:.3g}")), 2
    while digits >= 10 and places > 0:
        digits, places = digits / 10, places - 1
    while digits < 1 and places < 12:
        digits, places = digits * 10, places + 1
    return f"{value:,.{places}f}"


def kb(size: float | None) -> str:
    """Bytes as kB of 1,000 bytes: three digits below 100, thousands with comma.

    >>> kb(1_730), kb(269_722), kb(1_072_912), kb(None)
    ('1.73', '270', '1,073', '-')
    """
    if size is None:
        return "-"
    return f"{size / 1e3:,.0f}" if size >= 1e5 else significant(size / 1e3)


def kb_unit(size: float | None) -> str:
    return "-" if size is None else f"{kb(size)} kB"


def ratio(value: float | None) -> str:
    """Reference / ours, larger is better; a value below 1 says that it is slower.

    >>> ratio(2.345), ratio(0.62), ratio(0.999), ratio(None)
    ('2.3x', '0.6x (slower)', '1.0x', '-')
    """
    if value is None:
        return "-"
    text = f"{value:,.1f}x" if value >= 0.05 else f"{value:.2f}x"
    return f"{text} (slower)" if value < 0.95 else text


def smaller(before: float, after: float) -> str:
    """How many times smaller a packed file is than the file of the float net; a value below 1 says that it is larger.

    >>> smaller(1_090_000, 70_000), smaller(900, 1_000)
    ('15.6x smaller', '0.9x (larger)')
    """
    factor = before / after
    return f"{factor:,.1f}x smaller" if factor >= 0.95 else f"{factor:.1f}x (larger)"


def percent(share: float | None) -> str:
    """A share as percent with one decimal.

    >>> percent(0.9725)
    '97.2'
    """
    return "-" if share is None else f"{share * 100:.1f}"


def at_chance(share: float, classes: int, images: int) -> bool:
    """Whether so many right answers are what guessing gives: within three standard deviations of 1 / classes.

    >>> at_chance(0.12, 10, 360), at_chance(0.5, 10, 360)
    (True, False)
    """
    chance = 1 / max(1, classes)
    return share <= chance + 3 * math.sqrt(chance * (1 - chance) / max(1, images))


def points(difference: float) -> str:
    """A difference of two shares in points, with its sign.

    >>> points(-0.0123), points(0.0)
    ('-1.2', '0.0')
    """
    text = f"{difference * 100:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def macs(count: float | None) -> str:
    """Multiply-accumulates where they stand alone; in a column see `in_one_unit`.

    >>> macs(640), macs(442_368), macs(1_814_073_344), macs(None)
    ('640', '0.44 M', '1.81 G', '-')
    """
    if count is None:
        return "-"
    if count >= 1e9:
        return f"{count / 1e9:,.2f} G"
    return f"{round(count):,}" if count < 10_000 else f"{count / 1e6:,.2f} M"


def in_one_unit(counts: Sequence[float | None]) -> tuple[str, list[str]]:
    """Counts of one column, and the unit for its head: that of the largest one.

    >>> in_one_unit([640, 442_368, None]), in_one_unit([640, 1_814_073_344])
    (('k', ['0.640', '442', '-']), ('M', ['0.000640', '1,814']))
    >>> in_one_unit([640, 9_000])
    ('', ['640', '9,000'])
    """
    largest = max((c for c in counts if c is not None), default=0)
    size, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 10 * s), (1, ""))
    write = significant if unit else "{:,.0f}".format
    return unit, ["-" if c is None else write(c / size) for c in counts]


def factor(value: float) -> str:
    """How many times as much, without a judgement.

    >>> factor(12.34), factor(0.5)
    ('12.3x', '0.50x')
    """
    return f"{value:,.1f}x" if value >= 0.95 else f"{value:.2f}x"
