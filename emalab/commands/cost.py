"""`emalab cost RECIPE`."""

from __future__ import annotations

from tyro.conf import Positional

from emalab.recipes import get_recipe
from emalab.tables import aligned

__all__ = ["run"]


def run(recipe: Positional[str], size: tuple[int, int] | None = None, allow_code: tuple[str, ...] = ()) -> None:
    """Count what the network of a recipe costs for one image: multiply-adds, parameters and activations.

    Args:
        recipe: its name, of those that `emalab recipes` lists, or a .yaml file with one.
        size: height and width of the image; by default that of the recipe's crops.
        allow_code: modules that may be imported for a network with a part of your own.
    """
    chosen = get_recipe(recipe, allow_code)
    from emalab.cost import network_cost

    height, width = size or chosen.data.crop_size
    total = network_cost(chosen.model, (height, width))
    rows = [(f"{height}×{width}", "multiply-adds", "parameters", "activations")]
    for name, cost in {**total.parts, "total": total}.items():
        giga, mega, maps = cost.multiply_adds / 1e9, cost.parameters / 1e6, cost.activations / 1e6
        rows.append((name, f"{giga:.3f} G", f"{mega:.3f} M", f"{maps:.2f} M"))
    print("\n".join(aligned(rows, right={1, 2, 3})))
