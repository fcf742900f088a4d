"""Floor 5: what a model costs, and analyses."""

from bitwright.analysis.cost import CostRow, CostTable, cost

__all__ = ["CostRow", "CostTable", "cost"]
