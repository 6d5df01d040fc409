"""The smallest studies: four runs of two steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tiny import tiny_recipe

from emalab.recipes import Recipe
from emalab.studies import Cell, Study, StudyOptions

CPU = StudyOptions(accelerator="cpu")
FROZEN = {"model.ema.maintenance": "frozen"}


def base(iterations: int = 2) -> Recipe:
    """Two steps of two crops of 32×32."""
    recipe = tiny_recipe(optim={"iterations": iterations, "batch_size": 2}, name="tiny")
    return replace(recipe, evaluation=replace(recipe.evaluation, batch_size=50))


def tiny_study(*cells: Cell, iterations: int = 2) -> Study:
    return Study("tiny", "", base(iterations), cells or (Cell("base", seeds=2), Cell("frozen", FROZEN, seeds=2)))


def names(folder: Path) -> list[str]:
    """What is in a folder; nothing if there is no such folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
