"""`emalab train RECIPE`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from emalab.commands.environment import default_data_root, is_first_process, under_torchrun
from emalab.commands.recipes import about, recipe_table
from emalab.recipes import Recipe, get_recipe
from emalab.trainer import RunOptions, run_folder, train

__all__ = ["run"]


def run(arguments: Sequence[str]) -> None:
    """Train a recipe; every field of it is a flag. `emalab train RECIPE --help` shows its values."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: emalab train RECIPE [--FIELD VALUE ...]\n\n" + recipe_table())
        raise SystemExit(0 if set(arguments) & {"-h", "--help"} else 2)
    recipe = get_recipe(arguments[0])
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else 1
    nodes = int(os.environ["WORLD_SIZE"]) // local if under_torchrun() else 1
    options = RunOptions(data_root=default_data_root(), devices=local, num_nodes=nodes)

    @dataclass(frozen=True)
    class Arguments:
        recipe: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: recipe)
        run: Annotated[RunOptions, arg(name="")] = field(default_factory=lambda: options)
        out: Path | None = None
        """Folder for checkpoints, log and record; runs/RECIPE-seedN by default."""

    parsed = tyro.cli(Arguments, prog=f"emalab train {recipe.name}", description=about(recipe), args=arguments[1:])
    out = parsed.out or Path("runs") / run_folder(recipe.name, parsed.recipe.seed)
    result = train(parsed.recipe, out, parsed.run)
    if not is_first_process():
        return  # the other processes have the same to say
    for protocol, scores in result.scores.items():
        print(f"{protocol}: {scores}")
    print(f"checkpoints, log and record are in {out}")
