"""`emalab recipes`, and what a recipe's help says of it."""

from __future__ import annotations

from emalab.recipes import Recipe, recipe_groups

__all__ = ["about", "recipe_table", "run"]


def run() -> None:
    """List the recipes that `emalab train` knows."""
    print(recipe_table())


def recipe_table() -> str:
    """Names, what they are, and the published scores beside, in at most 100 columns."""
    lines = []
    for title, recipes in recipe_groups().items():
        lines.append(title)
        name_width = max(len(recipe.name) for recipe in recipes)
        summary_width = max(len(recipe.summary) for recipe in recipes)
        for recipe in recipes:
            first, *others = [f"{published.score} {published.protocol}" for published in recipe.published] or [""]
            lines.append(f"  {recipe.name:<{name_width}}  {recipe.summary:<{summary_width}}  {first}".rstrip())
            lines += [f"{'':<{name_width + summary_width + 6}}{other}" for other in others]
    scores = "Numbers are published mean IoU in percent; `emalab train RECIPE --help` says by whom."
    return "\n".join([*lines, "", scores])


def about(recipe: Recipe) -> str:
    """What a recipe is, who published what for it, and what its reader must know."""
    published = [
        f"Published: {published.score} mIoU, {published.protocol} ({published.source})."
        for published in recipe.published
    ]
    return "\n\n".join(text for text in (recipe.summary, " ".join(published), recipe.notes) if text)
