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
from emalab.data.names import is_folder_name
from emalab.data.required import check_data
from emalab.options import RunOptions, run_folder
from emalab.recipes import Recipe, get_recipe, recipe_from_dict, recipe_names
from emalab.results import git_commit, load_records
from emalab.shipped import find_checkpoint
from emalab.tables import aligned

__all__ = ["run"]

_USAGE = """usage: emalab train RECIPE [--FIELD VALUE ...]
       emalab train FOLDER/ [--FIELD VALUE ...]
       emalab train --from-record FILE [--FIELD VALUE ...]

FOLDER holds images/ and masks/ of your own: the shipped network is fine-tuned on them, and what was chosen is printed.
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
        recipe, record = _named(arguments[0], arguments[1:]), {}
        prog = f"emalab train {arguments[0]}"
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
    if parsed.run.num_nodes > 1 and not set(os.environ) & {"MASTER_ADDR", "SLURM_JOB_ID"}:  # it would wait for them
        raise ValueError(
            f"--num-nodes {parsed.run.num_nodes}: start the processes of all machines with torchrun or srun"
        )
    out = parsed.out or Path("runs") / run_folder(recipe.name, parsed.recipe.seed)
    _require_inputs(parsed.recipe, parsed.run.data_root, out)
    _look_at_labels(parsed.recipe)
    from emalab.trainer import train

    result = train(parsed.recipe, out, parsed.run)
    if not is_first_process():
        return  # the others would print the same
    for protocol, scores in result.scores.items():
        print(f"{protocol}: {scores}")
        if recorded := record.get("scores", {}).get(protocol):
            print(f"{' ' * len(protocol)}  recorded: {100 * recorded['miou']:.2f}")
    print(f"checkpoints, log and record are in {out}")


def _named(name: str, arguments: Sequence[str]) -> Recipe:
    """The recipe of that name, or the one that follows from a folder."""
    if not is_folder_name(name) and (name in recipe_names() or not name or not Path(name).is_dir()):
        return get_recipe(name)
    check_data(name if is_folder_name(name) else f"{name}/", None)
    from emalab.recipes.from_folder import describe_recipe, recipe_for_folder

    on_cpu = any(arguments[i : i + 2] == ["--accelerator", "cpu"] for i in range(len(arguments)))
    report = print if is_first_process() else lambda line: None
    recipe = recipe_for_folder(name, "cpu" if on_cpu else "auto", report=report)
    if not set(arguments) & {"-h", "--help"}:
        rows = describe_recipe(recipe)
        report(f"{name}, unless flags say otherwise:")
        for line in aligned(rows, indent="  "):
            report(line)
    return recipe


def _require_inputs(recipe: Recipe, data_root: Path | None, out: Path) -> None:
    """Refuse at once data and weights that are not there; what they hold is looked at later."""
    check_data(recipe.data.name, data_root)
    start = recipe.init_from
    if start and start not in recipe_names() and not (out / "last.pt").exists():
        find_checkpoint(start)


def _look_at_labels(recipe: Recipe) -> None:
    """Refuse a folder whose labels are of no use before the first step, and warn of what is probably not meant."""
    if not (is_folder_name(recipe.data.name) and is_first_process()):
        return
    from emalab.data.check import check_labels

    for warning in check_labels(recipe.data.name, (recipe.data.train_split, recipe.data.eval_split)):
        print(f"warning: {warning}")


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
