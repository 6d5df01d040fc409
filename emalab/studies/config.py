"""Studies as values: a base recipe, cells that change it, seeds, and further ways to score what was trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from emalab.choices import suggestion
from emalab.recipes import Recipe
from emalab.recipes.changes import Changes, override
from emalab.recipes.files import check_file_name

__all__ = ["BASE", "Cell", "Changes", "Run", "Study", "family", "override", "same_training"]

_MOST_SEEDS = 10_000
_LONGEST_NAME = 120  # of a recipe: file systems take 255 bytes, Windows 260 characters with all folders
BASE = "base"  # what the cell without changes is called in the study of a whole family


@dataclass(frozen=True)
class Cell:
    """One setting of a study: a change of the base recipe, trained from several seeds."""

    label: str
    """What tables and figures call it."""
    changes: Changes = field(default_factory=dict)
    """Fields of the recipe, dotted, and their values; none for the base itself."""
    seeds: int = 3
    """Runs: seeds 0, 1, …"""
    evaluations: Mapping[str, Changes] = field(default_factory=dict)
    """Further scores of the trained network: label → changes of the recipe's ``model`` and ``evaluation``."""


@dataclass(frozen=True)
class Run:
    """A cell with a seed: what one worker trains and one record holds."""

    study: str
    cell: Cell
    recipe: Recipe
    question: str = ""
    test: str = ""
    """Of the study, where it has them."""

    @property
    def name(self) -> str:
        """Name of its files, the same wherever a family's studies contain this recipe with this seed."""
        return f"{self.recipe.name}-seed{self.recipe.seed}"


@dataclass(frozen=True)
class Study:
    """Cells around one base recipe, which all are compared with.

    Studies of one family have the same base and share a folder, in which a recipe with a seed is trained once.

    Raises:
        ValueError: no cell or several without changes, twice the same label or recipe, no seed, a field that recipes do
            not have, or an evaluation that changes more than the network and how it is scored.
    """

    name: str
    summary: str
    base: Recipe
    cells: tuple[Cell, ...]
    family: str = ""
    """Name of the folder; the study's own by default."""
    question: str = ""
    """What the study is to answer, written before its first run. Summaries print it, and records keep it."""
    test: str = ""
    """How the answer is read off: which difference, which interval, what counts; written before the first run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)
        for name in (self.name, self.family, self.base.name):
            check_file_name("a study", name)
        labels = [cell.label for cell in self.cells]
        recipes = [self.recipe(cell) for cell in self.cells]
        for what, values in (("label", labels), ("recipe", [recipe.name for recipe in recipes])):
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"study {self.name} has two cells with the {what} {twice[0]!r}")
        if self.base.name not in (recipe.name for recipe in recipes):
            raise ValueError(f"study {self.name} needs a cell without changes: the others are compared with it")
        for cell, recipe in zip(self.cells, recipes, strict=True):
            if not 1 <= cell.seeds <= _MOST_SEEDS:
                raise ValueError(f"study {self.name}: {cell.label} has {cell.seeds} seeds; take 1 to {_MOST_SEEDS}")
            for label, changes in cell.evaluations.items():
                if other := [key for key in changes if key.split(".")[0] not in ("model", "evaluation")]:
                    raise ValueError(f"study {self.name}: evaluation {label!r} of {cell.label} changes {other[0]}")
                override(recipe, changes)

    @property
    def baseline(self) -> Cell:
        """The cell that is the base recipe."""
        return next(cell for cell in self.cells if self.recipe(cell).name == self.base.name)

    @property
    def evaluations(self) -> list[str]:
        """Labels of all further scores, in order."""
        return list(dict.fromkeys(label for cell in self.cells for label in cell.evaluations))

    def recipe(self, cell: Cell, seed: int = 0) -> Recipe:
        """What a run of ``cell`` trains, named after what it changes; the end of a very long name is a hash of it."""
        changed = override(self.base, cell.changes)
        slugs = [
            _slug(key, value) for key, value in cell.changes.items() if override(self.base, {key: value}) != self.base
        ]
        name = "-".join([self.base.name, *slugs])
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME - 9]}-{sha256(name.encode()).hexdigest()[:8]}"
        return replace(changed, name=name, seed=seed)

    def runs(self, only: Sequence[str] = ()) -> list[Run]:
        """Every run: seed 0 of each cell first, then seed 1, …, so that an early stop leaves a balanced study.

        Args:
            only: labels of cells; all by default.

        Raises:
            ValueError: a label that no cell has.
        """
        labels = [cell.label for cell in self.cells]
        for label in only:
            if label not in labels:
                raise ValueError(f"study {self.name} has no cell {label!r}; {suggestion(label, labels)}")
        cells = [cell for cell in self.cells if not only or cell.label in only]
        return [
            Run(self.name, cell, self.recipe(cell, seed), self.question, self.test)
            for seed in range(max(cell.seeds for cell in cells))
            for cell in cells
            if seed < cell.seeds
        ]


def same_training(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes decide the same run, whatever their descriptions."""

    def bare(recipe: Recipe) -> Recipe:
        return replace(recipe, summary="", notes="", published=())

    return bare(one) == bare(other)


def family(name: str, summary: str, base: Recipe, axes: Mapping[str, tuple[str, Sequence[Cell]]]) -> list[Study]:
    """The studies NAME-AXIS of every axis, and before them NAME with the cells of all.

    A recipe that occurs in several axes is one run: everywhere with the most seeds that an axis gives it and with the
    evaluations of all.

    Args:
        name: of the family.
        summary: of the whole.
        base: recipe that all axes vary.
        axes: name → (summary, cells).
    """
    recipe = Study(name, summary, base, (Cell(BASE),)).recipe
    merged: dict[str, Cell] = {base.name: Cell(BASE)}
    for _, cells in axes.values():
        for cell in cells:
            known = merged.setdefault(recipe(cell).name, cell)
            merged[recipe(cell).name] = replace(
                known, seeds=max(known.seeds, cell.seeds), evaluations={**known.evaluations, **cell.evaluations}
            )

    def shared(cells: Sequence[Cell]) -> Iterator[Cell]:
        for cell in cells:
            yield replace(merged[recipe(cell).name], label=cell.label)

    whole = Study(name, summary, base, tuple(merged.values()), name)
    return [
        whole,
        *(Study(f"{name}-{axis}", about, base, tuple(shared(cells)), name) for axis, (about, cells) in axes.items()),
    ]


def _slug(path: str, value: object) -> str:
    """A change as a part of a name: model.ema.num_bases, 16 → num-bases-16."""
    leaf = path.rpartition(".")[2]
    text = leaf if value is True else f"{leaf}-{value}"
    return re.sub(r"[^a-zA-Z0-9.]+", "-", text).strip("-")
