"""The HTML report of a run and the comparison of runs: one file, no network, no number that was not in the data."""

from bitwright.reporting.comparison import compare
from bitwright.reporting.page import report

__all__ = ["compare", "report"]
