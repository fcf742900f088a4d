"""A run directory and what can be built from it: the common ground of train, eval, convert, bench and report."""

from bitwright.runs.build import apply_stage, build_model, dataset, example_of, recipe_of_stage
from bitwright.runs.folder import Run, is_run

__all__ = ["Run", "apply_stage", "build_model", "dataset", "example_of", "is_run", "recipe_of_stage"]
