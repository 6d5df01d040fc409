"""`emalab recipes`, and what a recipe's help says of it."""

from __future__ import annotations

from emalab.recipes import Recipe, recipe_groups
from emalab.tables import aligned

__all__ = ["about", "recipe_table", "run"]


def run() -> None:
    """List the recipes that `emalab train` knows."""
    print(recipe_table())


def recipe_table() -> str:
    """Names, what they are, and the published scores beside, in at most 100 columns."""
    lines = []
    for title, recipes in recipe_groups().items():
        rows: list[tuple[str, ...]] = []
        for recipe in recipes:
            first, *others = [f"{published.score} {published.protocol}" for published in recipe.published] or [""]
            rows += [(recipe.name, recipe.summary, first), *(("", "", other) for other in others)]
        lines += [title, *aligned(rows, indent="  ")]
    scores = "Numbers are published mean IoU in percent; `emalab train RECIPE --help` says by whom."
    return "\n".join([*lines, "", scores])


def about(recipe: Recipe) -> str:
    """What a recipe is, who published what for it, and what its reader must know."""
    published = [
        f"Published: {published.score} mIoU, {published.protocol} ({published.source})."
        for published in recipe.published
    ]
    return "\n\n".join(text for text in (recipe.summary, " ".join(published), recipe.notes) if text)
