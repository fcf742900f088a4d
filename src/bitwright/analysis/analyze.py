"""`bw.analyze`: analyses that look at a trained net and say what to do with it. Each is imported at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitwright.analysis.pca import pca

# name -> the module that defines it
_HOME = {
    "pca": "pca",
}

__all__ = ["pca"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"bw.analyze has no {name!r}; there is: {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(f"bitwright.analysis.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
