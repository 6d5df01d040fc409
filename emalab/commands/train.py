"""`emalab train RECIPE` and `emalab train --from-record FILE`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from emalab.commands.environment import default_data_root, is_first_process, under_torchrun
from emalab.commands.recipes import about, recipe_table
from emalab.options import RunOptions, run_folder
from emalab.recipes import Recipe, get_recipe, recipe_from_dict
from emalab.results import git_commit, load_records

__all__ = ["run"]

_USAGE = """usage: emalab train RECIPE [--FIELD VALUE ...]
       emalab train --from-record FILE [--FIELD VALUE ...]

FILE is the record of a run, which is trained again: the same recipe, the same seed.

"""


def run(arguments: Sequence[str]) -> None:
    """Train a recipe; every field of it is a flag. `emalab train RECIPE --help` shows its values."""
    if arguments[:1] == ["--from-record"] and len(arguments) > 1:
        recipe, record = _recorded(Path(arguments[1]))
        prog, arguments = "emalab train --from-record FILE", arguments[1:]
    elif not arguments or arguments[0].startswith("-"):
        print(_USAGE + recipe_table())
        raise SystemExit(0 if set(arguments) & {"-h", "--help"} else 2)
    else:
        recipe, record = get_recipe(arguments[0]), {}
        prog = f"emalab train {recipe.name}"
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else 1
    nodes = int(os.environ["WORLD_SIZE"]) // local if under_torchrun() else 1
    options = RunOptions(data_root=default_data_root(), devices=local, num_nodes=nodes)

    @dataclass(frozen=True)
    class Arguments:
        recipe: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: recipe)
        run: Annotated[RunOptions, arg(name="")] = field(default_factory=lambda: options)
        out: Path | None = None
        """Folder for checkpoints, log and record; runs/RECIPE-seedN by default."""

    parsed = tyro.cli(Arguments, prog=prog, description=about(recipe), args=arguments[1:])
    out = parsed.out or Path("runs") / run_folder(recipe.name, parsed.recipe.seed)
    from emalab.trainer import train

    result = train(parsed.recipe, out, parsed.run)
    if not is_first_process():
        return  # the other processes have the same to say
    for protocol, scores in result.scores.items():
        print(f"{protocol}: {scores}")
        if recorded := record.get("scores", {}).get(protocol):
            print(f"{' ' * len(protocol)}  recorded: {100 * recorded['miou']:.2f}")
    print(f"checkpoints, log and record are in {out}")


def _recorded(path: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a record, seed included, and the record; says so where it was made by other code."""
    if not path.is_file():
        raise FileNotFoundError(f"no record at {path}")
    (record,) = load_records(path.parent, path.name)
    if not isinstance(record, dict) or "recipe" not in record:
        raise ValueError(f"{path} is not the record of a run: it has no recipe")
    try:
        recipe = recipe_from_dict(record["recipe"])
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the recipe in {path} cannot be read ({error}); was it written by another version?"
        ) from error
    if is_first_process() and (commit := git_commit()) != record.get("commit"):
        print(
            f"note: {path.name} was made by commit {record.get('commit') or 'unknown'}; this is {commit or 'unknown'}"
        )
    return recipe, record
