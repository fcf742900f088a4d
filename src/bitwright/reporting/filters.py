"""How the page writes values: the functions of `numbers`, with the unit where one stands alone."""

from __future__ import annotations

import re

from bitwright import numbers

UNKNOWN = "-"
_AS_IS = re.compile(r"(<(?:script|style|pre|code)\b.*?</(?:script|style|pre|code)>)", re.S)
_UNIT = re.compile(r"(\d(?:</(?:b|i|span)>)?) (?=%|(?:ms|us|s|min|h|kB|MB|GB|M|G|k|points?|bits?|threads?)\b)")


def ms_unit(value: float | None) -> str:
    """
    >>> ms_unit(1.53), ms_unit(0.0032), ms_unit(None)
    ('1.53 ms', '0.00320 ms', '-')
    """
    return UNKNOWN if value is None else f"{numbers.ms(value)} ms"


def percent_unit(share: float | None) -> str:
    return UNKNOWN if share is None else f"{numbers.percent(share)} %"


def points_unit(difference: float) -> str:
    """
    >>> points_unit(-0.0123), points_unit(0.01), points_unit(0.0)
    ('-1.2 points', '+1.0 point', '0.0 points')
    """
    text = numbers.points(difference)
    return f"{text} point" + ("" if text in ("+1.0", "-1.0") else "s")


def difference(value: float | None) -> str:
    """A largest difference: 0 is exact.

    >>> difference(0.0), difference(2.1e-6), difference(None)
    ('0', '2e-06', '-')
    """
    if value is None:
        return UNKNOWN
    return "0" if value == 0 else f"{value:.0e}"


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def loss(value: float | None) -> str:
    return UNKNOWN if value is None else numbers.significant(value)


def general(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def bits(value: int | None) -> str:
    """
    >>> bits(1), bits(32), bits(None)
    ('1', 'fp', 'unknown')
    """
    return "unknown" if value is None else "fp" if value >= 32 else str(value)


def bits_class(value: int | None) -> str:
    """The color class of weight bits; unknown counts as float.

    >>> [bits_class(b) for b in (1, 2, 3, 4, 8, 16, 32, None)]
    ['c1', 'c2', 'c2', 'c4', 'c8', 'c16', 'c32', 'c32']
    """
    if value is None or value >= 32:
        return "c32"
    return next(f"c{limit}" for limit, top in ((1, 1), (2, 3), (4, 7), (8, 8), (16, 31)) if value <= top)


def duration(seconds: float | None) -> str:
    """
    >>> duration(42.3), duration(192), duration(7322), duration(None)
    ('42 s', '3 min 12 s', '2 h 02 min', '-')
    """
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def unbroken(page: str) -> str:
    """No line of the page ends between a number and its unit; scripts, styles and commands stay as they are.

    >>> unbroken("<p><b>1.5</b> ms, 2 points</p><pre>sleep 2 s</pre>")
    '<p><b>1.5</b>\\xa0ms, 2\\xa0points</p><pre>sleep 2 s</pre>'
    """
    pieces = _AS_IS.split(page)
    return "".join(piece if i % 2 else _UNIT.sub("\\1\u00a0", piece) for i, piece in enumerate(pieces))


FILTERS = {
    write.__name__: write
    for write in (
        ms_unit, percent_unit, points_unit, difference, count, bits, bits_class, duration, general,
        numbers.kb, numbers.kb_unit, numbers.macs, numbers.ms, numbers.percent, numbers.ratio,
    )
}  # fmt: skip
