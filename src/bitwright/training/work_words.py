"""What a gated net computed, in words: for the lines of `train` and `eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitwright.numbers import macs, percent

if TYPE_CHECKING:
    from bitwright.training.work import Work


def work_text(macs: float, dense_macs: float, bops: float, dense_bops: float) -> str:
    """MACs as a share of the dense net's; bit operations too where they say something else.

    >>> work_text(51, 100, 5100, 10000)
    'MACs 0.51x, 1.96x fewer'
    >>> work_text(100, 100, 75, 100)
    'BOPs 0.75x, 1.33x fewer'
    >>> work_text(50, 100, 25, 100)
    'MACs 0.50x, 2.00x fewer; BOPs 0.25x, 4.00x fewer'
    """
    m, b = macs / max(dense_macs, 1), bops / max(dense_bops, 1)
    apart = abs(m - b) > 0.01
    words = [_share("MACs", m)] if not apart or m != 1 else []
    return "; ".join(words + ([_share("BOPs", b)] if apart else []))


def _share(what: str, share: float) -> str:
    if share == 1:
        return f"{what} 1.00x"
    return f"{what} {share:.2f}x, " + (f"{1 / share:.2f}x fewer" if share < 1 else f"{(share - 1) * 100:.1f} % more")


def spread_text(work: Work) -> str:
    """Work per image at three percentiles: MACs, or bit operations where every image has the same MACs."""
    for what, at in (("MACs", work.spread), ("BOPs", work.spread_bops)):
        if at and at["min"] != at["max"]:
            return f"{what} per image p5 {macs(at['p5'])}, p50 {macs(at['p50'])}, p95 {macs(at['p95'])}"
    return "the same for every image"


def detail_lines(work: Work) -> list[str]:
    """What the count is made of, per image, and the figures that the papers and their codes print."""
    n = max(1, work.images)
    lines = [
        f"predictors and scaling {macs(round(work.overhead / n))} MACs of these, "
        f"decisions {macs(round(work.comparisons / n))} comparisons besides"
    ]
    if work.quadratic != work.macs:
        lines.append(
            f"all-quadratic, as papers count fbs: {macs(round(work.quadratic / n))} MACs, "
            f"{work.dense_macs / max(1, work.quadratic):.2f}x fewer; an upper bound"
        )
    if work.gated_bits is not None:
        lines.append(
            f"mean input bits {work.gated_bits:.2f} in layers gated by precision, {work.net_bits:.2f} in the net"
        )
    lines.append(
        f"unweighted sparsity, as the public codes print it: {percent(work.unweighted_sparsity)} %; no reduction of work"
    )
    return lines
