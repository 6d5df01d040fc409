"""Recipes in files: YAML that names a recipe and what it changes, or gives every setting.

A file ``my_recipe.yaml``::

    base: camvid-lite2          # the name of a recipe, or another such file, beside this one
    optim:
      lr: 2e-3
      loss: {dice_weight: 1}
    model.ema.num_bases: 32     # the same as nested keys

`emalab recipes camvid-lite2 --write my_recipe.yaml` writes one with all fields, and `emalab train my_recipe.yaml`
trains it. Checkpoints and records hold the whole recipe, so that the file is not needed again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emalab.recipes.catalog import named_recipe
from emalab.recipes.changes import override
from emalab.recipes.config import Recipe, recipe_to_dict

__all__ = ["check_file_name", "get_recipe", "is_recipe_file", "read_recipe_file", "recipe_to_yaml", "refuse_code"]

_FILE_NAME = re.compile(r"\w[\w. +=-]*")
_MOST_BASES = 32  # one above the other
_NEEDED = ("data", "model", "optim")  # of a recipe without a base


def get_recipe(name: str | Path, allow_code: Collection[str] = ()) -> Recipe:
    """The recipe called ``name``, or the one in a YAML file.

    Example:
        >>> get_recipe("voc-r101").optim.iterations
        30000

    Args:
        name: one of `recipe_names`, or a path that ends in .yaml; `emalab.recipes.files` describes the file.
        allow_code: as in `read_recipe_file`.

    Raises:
        KeyError: no such recipe; the message suggests the nearest names.
        FileNotFoundError, ValueError: as in `read_recipe_file`.
    """
    if is_recipe_file(name):
        return read_recipe_file(Path(name), allow_code)
    return named_recipe(str(name))


def is_recipe_file(name: str | Path) -> bool:
    """Whether ``name`` is the path of a recipe's file rather than the name of a recipe."""
    return Path(name).suffix in (".yaml", ".yml")


def read_recipe_file(path: Path, allow_code: Collection[str] | None = ()) -> Recipe:
    """The recipe in a YAML file; its name is that of the file unless the file sets ``name``.

    Args:
        path: the file.
        allow_code: modules that may be imported where the recipe names one of them, as "module:Class" the context
            module of its network or as "module:function" an augmentation; None for any.

    Raises:
        FileNotFoundError: no such file, or none of its base.
        ValueError: not YAML, a field that recipes do not have, a value that its field does not allow, neither a base
            nor all sections, or code that is not allowed. The message is one line that names the file.
    """
    recipe = _read(path, ())
    if allow_code is not None:
        refuse_code(recipe, str(path), allow_code)
    return recipe


def refuse_code(recipe: Recipe, where: str, allow_code: Collection[str], used: Recipe | None = None) -> None:
    """Raise `ValueError` for a recipe from a file that needs a module that ``allow_code`` does not name.

    Args:
        recipe: as the file has it.
        where: the file, for the message.
        allow_code: modules that may be imported.
        used: the recipe after changes that are not the file's; names that they replaced do not count.
    """
    for part, name in _code(recipe).items():
        module = name.partition(":")[0]
        if module not in allow_code and _code(used or recipe).get(part) == name:
            raise ValueError(
                f"{where}: {part} needs code, {name}, which a file may not import by itself; if you trust it, allow "
                f"the module {module} (--allow-code {module}; in Python allow_code=({module!r},))"
            )


def _code(recipe: Recipe) -> dict[str, str]:
    """What a recipe may name as "module:name", by the part that needs it."""
    names = {"the network": recipe.model.context, "the augmentation": recipe.data.augment or ""}
    return {part: name for part, name in names.items() if ":" in name}


def check_file_name(what: str, name: str) -> None:
    """Raise `ValueError` "WHAT cannot be called …" for a name that is not valid as the name of a folder."""
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{what} cannot be called {name!r:.80}; take letters and digits, with . _ - between")


def recipe_to_yaml(recipe: Recipe) -> str:
    """A file with every setting of ``recipe``, to be edited; `read_recipe_file` reads it.

    The recipe is the file's base where it has a name in the catalog, so that lines may be deleted. Scores that others
    publish for it are left out.
    """
    import yaml

    values = recipe_to_dict(recipe)
    named = _is_named(recipe)
    for key in ("name", "published", *(("summary", "notes") if named else ())):
        del values[key]
    head = f"# A line that is deleted gets its value from the base.\nbase: {recipe.name}\n\n" if named else ""
    return head + yaml.dump(values, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=100)


def _is_named(recipe: Recipe) -> bool:
    try:
        return named_recipe(recipe.name) == recipe
    except KeyError:
        return False


def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Lists in one line."""

    for kind in (list, tuple):
        Dumper.add_representer(
            kind, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
        )
    return Dumper


def _read(path: Path, above: tuple[Path, ...]) -> Recipe:
    """The recipe in ``path``, which the files ``above`` are based on."""
    from emalab.yaml_files import read_yaml

    here = Path(os.path.realpath(path))  # Path.resolve fails where links form a loop
    if here in above:
        raise ValueError(f"{path}: is its own base; name a recipe of `emalab recipes`")
    if len(above) > _MOST_BASES:
        raise ValueError(f"{path}: more than {_MOST_BASES} files are based on one another; join some of them")
    values = read_yaml(path, "a recipe's YAML")
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path}: contains no recipe; begin, for example, with base: shapes-tiny")
    base = values.pop("base", None)
    if base is None and (missing := [key for key in _NEEDED if not any(_is_in(key, name) for name in values)]):
        raise ValueError(f"{path}: has neither a base nor {missing[0]!r}; name a recipe, as in base: shapes-tiny")
    if not isinstance(base, str | None) or not (base or "").isprintable():
        raise ValueError(f"{path}: base must be the name of a recipe, or a .yaml file; got {base!r:.60}")
    if base is None:
        start = Recipe()
    elif is_recipe_file(base):
        if not (path.parent / base).exists():
            raise FileNotFoundError(f"{path}: its base {path.parent / base} does not exist")
        start = _read(path.parent / base, (*above, here))
    else:
        try:
            start = named_recipe(base)
        except KeyError as error:
            raise ValueError(f"{path}: {error.args[0]}") from None
    start = replace(start, name=path.stem, published=(), summary=f"{base}, changed" if base else "")
    try:
        recipe = override(start, dict(_dotted(values, recipe_to_dict(start))))
        check_file_name("a recipe", recipe.name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe


def _is_in(section: str, name: object) -> bool:
    return str(name).partition(".")[0] == section


def _dotted(values: Mapping[Any, Any], fields: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields that a file sets, by their dotted names; a section without lines sets none.

    Raises:
        ValueError: a field that is set twice, in a section and by its dotted name.
    """
    seen: set[str] = set()
    for key, value in values.items():
        path = f"{prefix}{key}"
        inner = fields
        for part in str(key).split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and value is None:
            continue
        found = (
            _dotted(value, inner, f"{path}.")
            if isinstance(inner, dict) and isinstance(value, dict)
            else [(path, value)]
        )
        for name, entry in found:
            if name in seen:
                raise ValueError(f"recipe.{name} is set twice")
            seen.add(name)
            yield name, entry
