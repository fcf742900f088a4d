"""Floor 3: transforms of any nn.Module: recipes, plan, apply, attach, walk, calibrate."""

from bitwright.transforms.apply import apply, recipe_of
from bitwright.transforms.attach import Handle, attach, param_groups, penalty
from bitwright.transforms.calibrate import calibrate
from bitwright.transforms.plan import Plan, PlanRow, plan
from bitwright.transforms.recipe import Recipe, Rule, as_recipe, recipes
from bitwright.transforms.walk import Flow, trace_flow, walk

__all__ = [
    "Flow",
    "Handle",
    "Plan",
    "PlanRow",
    "Recipe",
    "Rule",
    "apply",
    "as_recipe",
    "attach",
    "calibrate",
    "param_groups",
    "penalty",
    "plan",
    "recipe_of",
    "recipes",
    "trace_flow",
    "walk",
]
