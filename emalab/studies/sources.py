"""Where studies come from: values in a Python file, or a YAML file that names a recipe and what its cells change.

A YAML file::

    name: scale-and-bases
    summary: the temperature and the number of bases
    question: Does a higher λ help when bases are few?
    test: paired by seed, Student's interval at 95 %
    base: shapes-tiny                     # name of a recipe
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
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from emalab.studies.config import Cell, Study, override

__all__ = ["CATALOG", "find_study", "load_studies"]

CATALOG = Path("book/experiments/studies.py")  # of the book: what a bare name is looked up in, from a clone's root

_LARGEST = 1 << 20  # bytes of a YAML file


def find_study(source: str) -> tuple[Study, Study]:
    """The study that ``FILE``, ``FILE:NAME`` or, for one of the book's catalog, ``NAME`` stands for, and its family's.

    The second is the study of the same file that is called as the family is; the study itself where there is none.

    Raises:
        FileNotFoundError: no such file.
        KeyError: the file has no study of that name, or several and none was named.
        ValueError: the file is not one of studies.
    """
    file, name = _split(source)
    if file is None:
        if not CATALOG.is_file():
            raise FileNotFoundError(
                f"no file {source!r}, and no {CATALOG} here to look up {name!r} in: "
                "run this from the root of a clone, or name a file, as in my_study.yaml or my_studies.py:NAME"
            )
        file = CATALOG
    studies = load_studies(file)
    if not name and len(studies) > 1:
        raise KeyError(f"{file} has {len(studies)} studies; name one, as in {file}:{next(iter(studies))}")
    if name and name not in studies:
        near = get_close_matches(name, studies, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(studies)}"
        raise KeyError(f"no study {name!r} in {file}; {hint}")
    study = studies[name or next(iter(studies))]
    return study, studies.get(study.family, study)


def load_studies(path: Path) -> dict[str, Study]:
    """The studies of a file, by name: one of a ``.yaml``; of a ``.py``, which is run, those bound to names of it.

    A name may be bound to a `Study` or to a list, a tuple or a mapping of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has another ending, holds no study, two of one name, or a field that studies do not have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix in (".yaml", ".yml"):
        study = _from_yaml(path)
        return {study.name: study}
    if path.suffix != ".py":
        raise ValueError(f"{path} is neither a Python file (.py) nor a YAML file (.yaml) with studies")
    found: dict[str, Study] = {}
    for study in _studies_in(runpy.run_path(str(path)).values()):
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


def _studies_in(values: Any) -> Iterator[Study]:
    for value in values:
        if isinstance(value, Study):
            yield value
        elif isinstance(value, list | tuple):
            yield from _studies_in(value)
        elif isinstance(value, dict) and all(isinstance(inner, Study) for inner in value.values()):
            yield from value.values()


def _from_yaml(path: Path) -> Study:
    import yaml

    from emalab.recipes import get_recipe

    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a study needs fewer than {_LARGEST}")
    text = path.read_text(encoding="utf-8")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError(f"{path} has a YAML alias (*name); write its value out")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    fields = _object(
        path, "a study", values, {"name", "summary", "question", "test", "base", "changes", "seeds", "cells"}
    )
    for key in ("base", "cells"):
        if key not in fields:
            raise ValueError(f"{path}: {key!r} is missing")
    seeds = fields.get("seeds", Cell.seeds)
    cells = _object(path, "'cells'", fields["cells"])
    name = str(fields.get("name", path.stem))
    try:
        base = replace(override(get_recipe(str(fields["base"])), fields.get("changes") or {}), name=name)
        return Study(
            name,
            str(fields.get("summary", "")),
            base,
            tuple(_cell(path, str(label), cell, seeds) for label, cell in cells.items()),
            question=str(fields.get("question", "")),
            test=str(fields.get("test", "")),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error.args[0] if isinstance(error, KeyError) else error}") from error


def _cell(path: Path, label: str, values: Any, seeds: Any) -> Cell:
    """A cell from what it changes, or from an object with ``changes``, ``seeds`` and ``evaluations``."""
    known = {"changes", "seeds", "evaluations"}
    values = _object(path, f"cell {label!r}", values or {})
    if not set(values) & known:
        values = {"changes": values}
    values = _object(path, f"cell {label!r}", values, known)
    count = values.get("seeds", seeds)
    if not isinstance(count, int) or isinstance(count, bool):
        raise ValueError(f"cell {label!r} has {count!r} seeds; take a whole number")
    changes = _object(path, f"cell {label!r}, 'changes'", values.get("changes") or {})
    evaluations = _object(path, f"cell {label!r}, 'evaluations'", values.get("evaluations") or {})
    return Cell(label, changes, count, {str(key): _object(path, str(key), value) for key, value in evaluations.items()})


def _object(path: Path, what: str, values: Any, known: set[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {what} must be a mapping, not {values!r:.60}")
    for key in values:
        if known is not None and key not in known:
            raise ValueError(f"{path}: {what} has no field {key!r}; fields are {', '.join(sorted(known))}")
    return values
