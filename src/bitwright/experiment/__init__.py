"""Experiments as files: read, checked, overridden, written again as they ran."""

from bitwright.experiment.read import load, names, parse
from bitwright.experiment.schema import Experiment
from bitwright.experiment.write import to_toml

__all__ = ["Experiment", "load", "names", "parse", "to_toml"]
