"""Recipes: everything that decides a training run, as frozen values with names.

An experiment is a recipe, not a script. A recipe serializes to JSON and travels inside every checkpoint and every
result record.
"""

from emalab.recipes.catalog import get_recipe, recipe_groups, recipe_names
from emalab.recipes.config import (
    DataConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    Published,
    Recipe,
    recipe_changes,
    recipe_from_dict,
    recipe_to_dict,
)

__all__ = [
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "OptimConfig",
    "Published",
    "Recipe",
    "get_recipe",
    "recipe_changes",
    "recipe_from_dict",
    "recipe_groups",
    "recipe_names",
    "recipe_to_dict",
]
