"""`emalab recipes`, and what a recipe's help says of it."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from emalab.files import write_atomically
from emalab.recipes import Recipe, get_recipe, recipe_groups, recipe_to_yaml
from emalab.recipes.files import is_recipe_file, read_recipe_file
from emalab.tables import aligned

__all__ = ["about", "recipe_table", "run"]


def run(recipe: Positional[str] = "", write: Path | None = None) -> None:
    """List the recipes that `emalab train` knows; or show every setting of one, as YAML.

    Edit what is written: `emalab recipes camvid-lite2 --write my_recipe.yaml`, then `emalab train my_recipe.yaml`.

    Args:
        recipe: the name of a recipe, or a file with one.
        write: a new file for its settings, ending in .yaml.
    """
    if not recipe:
        if write is not None:
            raise ValueError(
                f"--write {write}: of which recipe? Name it, as in emalab recipes shapes-tiny --write {write}"
            )
        print(recipe_table())
        return
    text = recipe_to_yaml(read_recipe_file(Path(recipe), None) if is_recipe_file(recipe) else get_recipe(recipe))
    if write is None:
        print(text, end="")
        return
    if not is_recipe_file(write):
        raise ValueError(f"--write {write}: a recipe's file ends in .yaml")
    if write.exists():
        raise FileExistsError(f"{write} exists; name a new file")
    write_atomically(write, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    print(f"wrote {write}; edit it, then: emalab train {write}")


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
