"""`bw.analyze`: analyses that look at a trained net and say what to do with it. Each is imported at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitwright.analysis.connections import connections
    from bitwright.analysis.pca import pca
    from bitwright.analysis.weight_sweep import weight_sweep

# name -> the module that defines it
_HOME = {
    "connections": "connections",
    "pca": "pca",
    "weight_sweep": "weight_sweep",
}

__all__ = ["connections", "pca", "weight_sweep"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"bw.analyze has no {name!r}; there is: {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(f"bitwright.analysis.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
