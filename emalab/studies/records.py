"""Records of runs as files: what must be in one, and what is wrong where it is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emalab.recipes import Recipe, recipe_from_dict, recipe_to_dict
from emalab.results import read_record

__all__ = ["CorruptRecordError", "first_difference", "read_run"]


class CorruptRecordError(ValueError):
    """A file that should be the record of a run, and is not a whole one; the message names it and the field."""


def read_run(path: Path) -> tuple[dict[str, Any], Recipe]:
    """The record of a run of a study, and its recipe.

    Raises:
        CorruptRecordError: the file is no JSON object, lacks a field or has a value that the field cannot have, or was
            changed after it was written.
    """
    try:
        record = read_record(path)
    except ValueError as error:
        raise CorruptRecordError(str(error)) from error
    _field(path, record, "recipe", dict)
    try:
        recipe = recipe_from_dict(record["recipe"])
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptRecordError(f"{path} is not a record: {error}") from error
    if _field(path, record, "seed", int) != recipe.seed:
        raise CorruptRecordError(f"{path} is not a record: 'seed' is {record['seed']}, its recipe's {recipe.seed}")
    _number(path, _field(path, record, "seconds", dict), "seconds", "run", math.inf)
    if "diverged" not in record:
        for part in ("scores", "evaluations"):
            for label, scores in _field(path, record, part, dict).items():
                if not isinstance(scores, dict) or "miou" not in scores:
                    raise CorruptRecordError(f"{path} is not a record: '{part}.{label}.miou' is missing")
                if scores["miou"] is not None:
                    _number(path, scores, f"{part}.{label}", "miou", 1.0)
        _field(path, record["scores"], "single scale", dict, "scores.")
    return record, recipe


def first_difference(one: Recipe, other: Recipe) -> str:
    """The first field in which two recipes differ, with both values."""
    ours, theirs = (_flat(recipe_to_dict(recipe)) for recipe in (one, other))
    ignored = ("summary", "notes", "published")
    for name in sorted(ours.keys() | theirs.keys(), key=lambda name: (name == "name", name)):
        if ours.get(name) != theirs.get(name) and name.split(".")[0] not in ignored:
            return f"recipe.{name} is {ours.get(name)!r}, not {theirs.get(name)!r}"
    return "the recipes are equal"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _field(path: Path, values: Mapping[str, Any], key: str, kind: type, prefix: str = "") -> Any:
    if key not in values:
        raise CorruptRecordError(f"{path} is not a record of a study: '{prefix}{key}' is missing")
    if not isinstance(values[key], kind):
        raise CorruptRecordError(f"{path} is not a record: '{prefix}{key}' is {values[key]!r:.60}")
    return values[key]


def _number(path: Path, values: Mapping[str, Any], parent: str, key: str, most: float) -> None:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most or math.isinf(value):
        raise CorruptRecordError(f"{path} is not a record: '{parent}.{key}' is {value!r:.60}, not a number from 0 on")
