"""bitwright: low-bit, pruned and gated neural networks that are really small and really fast.

    analyze -> Recipe -> apply -> train (any loop) -> convert (packed, verified) -> cost / bench / report / export

Names are imported at first use: `bitwright --help` needs no torch, and `import bitwright` costs nothing by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bitwright.version import __version__ as __version__

if TYPE_CHECKING:
    from bitwright import data, experiment, export, importers, models, nn, ort, procedures, testing, zoo
    from bitwright.analysis import Budget, CostTable, MacCount, analyze, cost, count_macs
    from bitwright.engine.convert import Converted, convert
    from bitwright.engine.files import load, save
    from bitwright.errors import BitwrightWarning, InputError
    from bitwright.measure.bench import bench
    from bitwright.measure.table import BenchTable
    from bitwright.parts import make_part, parts
    from bitwright.reporting import report
    from bitwright.training import train
    from bitwright.transforms import (
        Plan,
        Recipe,
        Rule,
        apply,
        attach,
        calibrate,
        param_groups,
        penalty,
        plan,
        recipe_of,
        recipes,
        walk,
    )
    from bitwright.types import Coded, LayerInfo, PartInfo

# public name -> the module that defines it
_HOME = {
    "Budget": "analysis",
    "CostTable": "analysis",
    "MacCount": "analysis",
    "cost": "analysis",
    "count_macs": "analysis",
    "Converted": "engine.convert",
    "convert": "engine.convert",
    "load": "engine.files",
    "save": "engine.files",
    "BitwrightWarning": "errors",
    "InputError": "errors",
    "bench": "measure.bench",
    "BenchTable": "measure.table",
    "make_part": "parts",
    "parts": "parts",
    "report": "reporting",
    "train": "training",
    "Plan": "transforms",
    "Recipe": "transforms",
    "Rule": "transforms",
    "apply": "transforms",
    "attach": "transforms",
    "calibrate": "transforms",
    "param_groups": "transforms",
    "penalty": "transforms",
    "plan": "transforms",
    "recipe_of": "transforms",
    "recipes": "transforms",
    "walk": "transforms",
    "Coded": "types",
    "LayerInfo": "types",
    "PartInfo": "types",
}
_MODULES = ("data", "experiment", "export", "importers", "models", "nn", "ort", "procedures", "testing", "zoo")

__all__ = [
    "BenchTable",
    "BitwrightWarning",
    "Budget",
    "Coded",
    "Converted",
    "CostTable",
    "InputError",
    "LayerInfo",
    "MacCount",
    "PartInfo",
    "Plan",
    "Recipe",
    "Rule",
    "analyze",
    "apply",
    "attach",
    "bench",
    "calibrate",
    "convert",
    "cost",
    "count_macs",
    "data",
    "experiment",
    "export",
    "importers",
    "load",
    "make_part",
    "models",
    "nn",
    "ort",
    "param_groups",
    "parts",
    "penalty",
    "plan",
    "procedures",
    "recipe_of",
    "recipes",
    "report",
    "save",
    "testing",
    "train",
    "walk",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"bitwright.{name}")
    if name == "analyze":  # a module inside analysis, under its public name
        return importlib.import_module("bitwright.analysis.analyze")
    if name not in _HOME:
        raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"bitwright.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
