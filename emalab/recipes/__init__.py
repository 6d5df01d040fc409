"""Recipes: everything that decides a training run, as frozen values with names.

An experiment is a recipe, not a script. A recipe serializes to JSON and travels inside every checkpoint and every
result record. `emalab.recipes.files` reads them from YAML.
"""

from emalab.recipes.catalog import recipe_groups, recipe_names
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
    setting_names,
)
from emalab.recipes.files import get_recipe, recipe_to_yaml

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
    "recipe_to_yaml",
    "setting_names",
]
