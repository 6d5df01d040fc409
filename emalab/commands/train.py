"""`emalab train RECIPE`, `emalab train FILE.yaml`, `emalab train FOLDER/` and `emalab train --from-record FILE`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro
from tyro.conf import arg

from emalab.choices import SettingError
from emalab.commands.environment import default_data_root, is_first_process, under_torchrun
from emalab.commands.recipes import about, recipe_table
from emalab.data.names import is_folder_name
from emalab.data.required import check_data
from emalab.options import RunOptions, run_folder
from emalab.recipes import Recipe, get_recipe, recipe_from_dict, recipe_names, setting_names
from emalab.recipes.files import check_file_name, is_recipe_file, read_recipe_file, refuse_code
from emalab.results import git_commit, load_records
from emalab.shipped import find_checkpoint
from emalab.tables import aligned

__all__ = ["run"]

_Arguments = TypeVar("_Arguments")

_USAGE = """usage: emalab train RECIPE [--FIELD VALUE ...]
       emalab train FILE.yaml [--FIELD VALUE ...]
       emalab train FOLDER/ [--FIELD VALUE ...]
       emalab train --from-record FILE [--FIELD VALUE ...]

FILE.yaml holds a recipe of your own; `emalab recipes RECIPE --write FILE.yaml` makes one to edit.
FOLDER holds images/ and masks/ of your own: the shipped network is fine-tuned on them, and what was chosen is printed.
FILE is the record of a run, which is trained again: the same recipe, the same seed.

"""


def run(arguments: Sequence[str]) -> None:
    """Train a recipe; every field of it is a flag. `emalab train RECIPE --help` shows its values."""
    chosen = _choose(arguments)
    recipe = chosen.recipe
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else 1
    nodes = int(os.environ["WORLD_SIZE"]) // local if under_torchrun() else 1
    options = RunOptions(data_root=default_data_root(), devices=local, num_nodes=nodes)

    @dataclass(frozen=True)
    class Arguments:
        recipe: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: recipe)
        run: Annotated[RunOptions, arg(name="")] = field(default_factory=lambda: options)
        out: Path | None = None
        """Folder for checkpoints, log and record; runs/RECIPE-seedN by default."""
        allow_code: tuple[str, ...] = ()
        """Modules that may be imported for a part of your own (model.context, data.augment) that a file names."""

    parsed = _parse(Arguments, chosen)
    if parsed.run.num_nodes > 1 and not set(os.environ) & {"MASTER_ADDR", "SLURM_JOB_ID"}:  # it would wait for them
        raise ValueError(
            f"--num-nodes {parsed.run.num_nodes}: start the processes of all machines with torchrun or srun"
        )
    if chosen.file:
        refuse_code(recipe, chosen.file, parsed.allow_code, parsed.recipe)
    out = parsed.out or Path("runs") / run_folder(recipe.name, parsed.recipe.seed)
    _require_inputs(parsed.recipe, parsed.run.data_root, out)
    _look_at_labels(parsed.recipe)
    from emalab.trainer import train

    result = train(parsed.recipe, out, parsed.run)
    if not is_first_process():
        return  # the others would print the same
    for protocol, scores in result.scores.items():
        print(f"{protocol}: {scores}")
        if recorded := chosen.record.get("scores", {}).get(protocol):
            print(f"{' ' * len(protocol)}  recorded: {100 * recorded['miou']:.2f}")
    print(f"checkpoints, log and record are in {out}")


class _Chosen(NamedTuple):
    """What the first words of the command line ask for, and the flags that are left."""

    recipe: Recipe
    program: str
    flags: Sequence[str]
    file: str = ""  # that the recipe is from, if it is
    record: Mapping[str, Any] = {}  # that is repeated, if one is


def _choose(arguments: Sequence[str]) -> _Chosen:
    if arguments[:1] == ["--from-record"] and len(arguments) > 1:
        recipe, record = _recorded(Path(arguments[1]))
        return _Chosen(recipe, "emalab train --from-record FILE", arguments[2:], arguments[1], record)
    if not arguments or arguments[0].startswith("-"):
        print(_USAGE + recipe_table())
        raise SystemExit(0 if set(arguments) & {"-h", "--help"} else 2)
    name, flags = arguments[0], arguments[1:]
    if is_recipe_file(name) and not _describes_classes(Path(name)):
        return _Chosen(read_recipe_file(Path(name), allow_code=None), f"emalab train {name}", flags, name)
    return _Chosen(_named(name, flags), f"emalab train {name}", flags)


def _describes_classes(path: Path) -> bool:
    """Whether a YAML file describes a folder of images rather than a recipe."""
    if path.name in ("classes.yaml", "classes.yml"):
        return True
    from emalab.yaml_files import read_yaml

    values = read_yaml(path, "a recipe's YAML")
    return isinstance(values, dict) and "classes" in values


def _parse(kind: Callable[..., _Arguments], chosen: _Chosen) -> _Arguments:
    """What the flags say. tyro boxes errors of nested settings; a wrong range takes one line, as elsewhere."""
    parse = partial(tyro.cli, kind, prog=chosen.program, description=about(chosen.recipe), args=chosen.flags)
    try:
        with redirect_stderr(StringIO()):
            return parse()
    except (SettingError, SystemExit) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SettingError):
            cause = cause.__context__
        if cause is not None:
            raise ValueError(_as_flags(str(cause))) from None
        if error.args == (0,):  # help has been printed
            raise
    return parse()  # fails again, and now the box is seen


def _as_flags(message: str) -> str:
    """A message with flags in place of settings: --optim.lr for optim.lr, --model.num-classes for num_classes."""
    known = {*setting_names(), *(item.name for item in fields(RunOptions))}

    def flag(name: str) -> str:
        full = next((full for full in (name, f"model.{name}") if full in known), None)
        return f"--{full.replace('_', '-')}" if full else name

    recipe, colon, rest = message.partition(": ") if message.startswith("recipe ") else ("", "", message)
    first, space, rest = rest.partition(" ")
    rest = re.sub(r"[a-z_]+(\.[a-z_]+)+", lambda name: flag(name[0]), rest)
    return f"{recipe}{colon}{flag(first)}{space}{rest}"


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
        check_file_name("a recipe", recipe.name)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the recipe in {path} cannot be read ({error}); was it written by another version?"
        ) from error
    if is_first_process() and (commit := git_commit()) != record.get("commit"):
        print(
            f"note: {path.name} was made by commit {record.get('commit') or 'unknown'}; this is {commit or 'unknown'}"
        )
    return recipe, record
