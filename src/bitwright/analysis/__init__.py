"""Floor 5: what a model costs, and analyses."""

from bitwright.analysis.budget import Budget
from bitwright.analysis.cost import CostRow, CostTable, cost
from bitwright.analysis.count import count_macs
from bitwright.analysis.mac_count import MacCount

__all__ = ["Budget", "CostRow", "CostTable", "MacCount", "cost", "count_macs"]
