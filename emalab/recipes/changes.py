"""Recipes that differ from others in a few fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emalab.recipes.config import Recipe, field_hint, recipe_from_dict, recipe_to_dict

__all__ = ["Changes", "override"]

Changes = Mapping[str, Any]  # dotted field of a recipe → value, such as {"model.ema.num_bases": 16}


def override(recipe: Recipe, changes: Changes) -> Recipe:
    """``recipe`` with some fields changed: ``override(recipe, {"model.ema.num_bases": 16})``.

    Raises:
        ValueError: a field that recipes do not have, or a value that its field does not allow.
    """
    values = recipe_to_dict(recipe)
    for path, value in changes.items():
        *parents, name = str(path).split(".")
        inner = values
        for parent in parents:
            inner = inner.get(parent, {}) if isinstance(inner, dict) else {}
        if not isinstance(inner, dict) or name not in inner:
            hint = field_hint(str(path)) or "`emalab train RECIPE --help` lists all"
            raise ValueError(f"a recipe has no field {path!a:.80}; {hint.strip()}")
        inner[name] = value
    return recipe_from_dict(values)
