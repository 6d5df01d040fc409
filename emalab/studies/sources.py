"""Where studies come from: values in a Python file, or a YAML file that names a recipe and what its cells change.

A YAML file::

    name: scale-and-bases
    summary: the temperature and the number of bases
    question: Does a higher λ help when bases are few?
    test: paired by seed, Student's interval at 95 %
    base: shapes-tiny                     # name of a recipe, or a recipe.yaml beside this file
    changes: {optim.iterations: 60}       # of the base, for all cells
    seeds: 3                              # of every cell that has no number of its own
    cells:
      base: {}                            # each cell: what it changes
      λ=4: {model.ema.scale: 4.0}
      K=4:
        changes: {model.ema.num_bases: 4}
        seeds: 5
        evaluations: {T=1: {model.ema.num_iters: 1}}
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from emalab.choices import suggestion
from emalab.recipes import Recipe, get_recipe
from emalab.recipes.changes import override
from emalab.recipes.files import is_recipe_file, read_recipe_file, refuse_code
from emalab.studies.config import Cell, Study

__all__ = ["CATALOG", "find_study", "load_studies"]

CATALOG = Path("book/experiments/studies.py")  # of the book: what a bare name is looked up in, from a clone's root


def find_study(source: str, allow_code: Collection[str] = ()) -> tuple[Study, Study]:
    """The study that ``FILE``, ``FILE:NAME`` or, for one of the book's catalog, ``NAME`` stands for, and its family's.

    The second is the study of the same file that is called as the family is; the study itself where there is none.

    Args:
        source: what to find.
        allow_code: as in `load_studies`.

    Raises:
        FileNotFoundError: no such file.
        KeyError: the file has no study of that name, or several and none was named.
        ValueError: the file is not one of studies, or needs code that is not allowed.
    """
    file, name = _split(source)
    if file is None:
        if not CATALOG.is_file():
            raise FileNotFoundError(
                f"no file {source!r}, and no {CATALOG} here to look up {name!r} in: "
                "run this from the root of a clone, or name a file, as in my_study.yaml or my_studies.py:NAME"
            )
        file = CATALOG
    studies = load_studies(file, allow_code)
    if not name and len(studies) > 1:
        raise KeyError(f"{file} has {len(studies)} studies; name one, as in {file}:{next(iter(studies))}")
    if name and name not in studies:
        near = get_close_matches(name, studies, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(studies)}"
        raise KeyError(f"no study {name!r} in {file}; {hint}")
    study = studies[name or next(iter(studies))]
    return study, studies.get(study.family, study)


def load_studies(path: Path, allow_code: Collection[str] | None = ()) -> dict[str, Study]:
    """The studies of a file, by name: one of a ``.yaml``; of a ``.py``, which is run, those bound to names of it.

    A name may be bound to a `Study` or to a list, a tuple or a mapping of them. The file may import the modules beside
    it; one in a package imports them by their full names.

    Args:
        path: the file.
        allow_code: modules that a ``.yaml`` may name, as "module:Class" in ``model.context``; None for any.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has another ending, holds no study, two of one name, or a field that studies do not have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix in (".yaml", ".yml"):
        study = _from_yaml(path, allow_code)
        return {study.name: study}
    if path.suffix != ".py":
        raise ValueError(f"{path} is neither a Python file (.py) nor a YAML file (.yaml) with studies")
    found: dict[str, Study] = {}
    for study in _studies_in(_run(path).values()):
        if found.setdefault(study.name, study) != study:
            raise ValueError(f"{path} has two studies called {study.name!r}")
    if not found:
        raise ValueError(f"{path} binds no name to a Study")
    return found


def _split(source: str) -> tuple[Path | None, str]:
    """FILE and NAME; no file for a bare name."""
    for ending in (".py", ".yaml", ".yml"):
        file, found, name = source.partition(f"{ending}:")
        if found:
            return Path(file + ending), name
        if source.endswith(ending):
            return Path(source), ""
    return None, source


def _run(path: Path) -> dict[str, Any]:
    """The names that a Python file binds; what it may import lies beside it, or beside the package that it is in."""
    folder = path.resolve().parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    added = str(folder) not in sys.path
    if added:
        sys.path.append(str(folder))
    try:
        return runpy.run_path(str(path))
    finally:
        if added:
            sys.path.remove(str(folder))


def _studies_in(values: Any) -> Iterator[Study]:
    for value in values:
        if isinstance(value, Study):
            yield value
        elif isinstance(value, list | tuple):
            yield from _studies_in(value)
        elif isinstance(value, dict) and all(isinstance(inner, Study) for inner in value.values()):
            yield from value.values()


def _from_yaml(path: Path, allow_code: Collection[str] | None) -> Study:
    from emalab.yaml_files import read_yaml

    values = read_yaml(path, "a study's YAML")
    fields = _object(
        path, "a study", values, ("name", "summary", "question", "test", "base", "changes", "seeds", "cells")
    )
    for key in ("base", "cells"):
        if key not in fields:
            raise ValueError(f"{path}: {key!r} is missing")
    seeds = fields.get("seeds", Cell.seeds)
    cells = _object(path, "'cells'", fields["cells"])
    changes = _object(path, "'changes'", fields.get("changes") or {})
    name = str(fields.get("name", path.stem))
    try:
        base = replace(override(_base(path, fields["base"]), changes), name=name)
        study = Study(
            name,
            str(fields.get("summary", "")),
            base,
            tuple(_cell(path, str(label), cell, seeds) for label, cell in cells.items()),
            question=str(fields.get("question", "")),
            test=str(fields.get("test", "")),
        )
    except (KeyError, ValueError, TypeError) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        raise ValueError(text if text.startswith(f"{path}:") else f"{path}: {text}") from error
    if allow_code is not None:
        _refuse_code(study, str(path), allow_code)
    return study


def _base(path: Path, name: Any) -> Recipe:
    """The recipe that a study in ``path`` is based on: one with a name, or a file beside it."""
    if is_recipe_file(str(name)):
        return read_recipe_file(path.parent / str(name), allow_code=None)  # the study's cells are looked at later
    return get_recipe(str(name))


def _refuse_code(study: Study, where: str, allow_code: Collection[str]) -> None:
    for cell in study.cells:
        recipe = study.recipe(cell)
        for changes in ({}, *cell.evaluations.values()):
            refuse_code(override(recipe, changes), where, allow_code)


def _cell(path: Path, label: str, values: Any, seeds: Any) -> Cell:
    """A cell from what it changes, or from an object with ``changes``, ``seeds`` and ``evaluations``."""
    known = ("changes", "seeds", "evaluations")
    values = _object(path, f"cell {label!r}", values or {})
    if not set(values) & set(known):
        values = {"changes": values}
    values = _object(path, f"cell {label!r}", values, known)
    count = values.get("seeds", seeds)
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f"cell {label!r} has {count!r} seeds; take a whole number")
    changes = _object(path, f"cell {label!r}, 'changes'", values.get("changes") or {})
    evaluations = _object(path, f"cell {label!r}, 'evaluations'", values.get("evaluations") or {})
    return Cell(label, changes, count, {str(key): _object(path, str(key), value) for key, value in evaluations.items()})


def _object(path: Path, what: str, values: Any, known: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {what} must be a mapping, not {values!r:.60}")
    for key in values:
        if known and key not in known:
            raise ValueError(f"{path}: {what} has no field {key!r:.60}; {suggestion(str(key), known)}")
    return values
