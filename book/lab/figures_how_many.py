"""Figures and measurements of the chapter on the hyperparameters of EM attention."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from emalab import EMAU, Segmenter, em_attention
from emalab.em import log_likelihood, normalize_bases
from emalab.inspection import look_inside
from emalab.recipes import OptimConfig, Recipe
from emalab.studies.statistics import Interval
from emalab.studies.summary import StudySummary, scores_by_seed
from emalab.trainer import RunOptions, Trainer
from lab.style import SERIES
from lab.verdicts import AGAIN, PAIRS, POOLED

__all__ = [
    "Contrast",
    "Convergence",
    "Grid",
    "converge",
    "draw_convergence",
    "draw_grids",
    "draw_hyperparameter",
    "draw_overview",
    "learn_scale",
    "step_times",
    "swap_iterations",
]


def draw_overview(
    axes_of: Mapping[str, StudySummary], differences: Mapping[str, Interval]
) -> Figure:
    """All settings of one data set in a row, grouped: hyperparameter → its study, label → difference."""
    figure, axes = plt.subplots(figsize=(8.6, 3.4), layout="constrained")
    place, ticks = 0.0, []
    for title, found in axes_of.items():
        first = place
        for row in found.rows:
            value = row.label.rpartition("=")[2].rpartition(" ")[2].removesuffix(".0")
            ticks.append((place, value))
            if row is found.base:
                axes.plot(place, 0, "D", color="black", markersize=5)
            else:
                interval = differences[row.label]
                wide = 2.6 if interval.excludes_zero else 1.4
                axes.plot(
                    [place] * 2,
                    [interval.low, interval.high],
                    color=POOLED,
                    linewidth=wide,
                )
                axes.plot(place, interval.mean, "D", color=POOLED, markersize=4)
            place += 1
        axes.text(
            (first + place - 1) / 2, 6.0, title, ha="center", va="bottom", fontsize=9
        )
        axes.axvline(place + 0.1, color=PAIRS, alpha=0.25, linewidth=0.8)
        place += 1.2
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(
        [at for at, _ in ticks], [value for _, value in ticks], fontsize=9, rotation=60
    )
    axes.set(ylabel="points of mIoU", ylim=(-3.4, 5.8), xlim=(-0.8, place - 0.9))
    handles = [
        Line2D([], [], color="black", marker="D", markersize=5, linewidth=0),
        Line2D([], [], color=POOLED, marker="D", markersize=4, linewidth=1.4),
        Line2D([], [], color=POOLED, marker="D", markersize=4, linewidth=2.6),
    ]
    meanings = ("baseline", "mean and 95 % interval", "interval excludes zero")
    figure.legend(handles, meanings, loc="outside lower center", ncols=3)
    return figure


def draw_hyperparameter(
    panels: Mapping[str, StudySummary],
    xlabel: str,
    more: Mapping[str, Mapping[str, Interval]],
) -> Figure:
    """Differences from the baseline against the number in each row's label: a panel for each title.

    ``more`` has, for some titles, intervals from all runs of the baseline.
    """
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(8.6, 3.1),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, found) in zip(axes.flat, panels.items(), strict=True):
        _draw_numbered(axis, found, more.get(title, {}))
        axis.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel("points of mIoU")
    marks: dict[str, dict[str, Any]] = {
        "one seed": {"color": PAIRS, "marker": "o", "markersize": 3.5, "linewidth": 0},
        "mean and 95 %, pooled over all cells": {"color": POOLED, "marker": "D", "markersize": 5, "linewidth": 2.2},
        "the same, all runs of the baseline": AGAIN,
        "baseline": {"color": "black", "marker": "D", "markersize": 5, "linewidth": 0},
    }  # fmt: skip
    handles = [Line2D([], [], **look) for look in marks.values()]
    figure.legend(handles, list(marks), loc="outside lower center", ncols=2)
    return figure


def _draw_numbered(
    axis: Axes, found: StudySummary, more: Mapping[str, Interval]
) -> None:
    numbers = [float(row.label.rpartition("=")[2]) for row in found.rows]
    for at, row in zip(numbers, found.rows, strict=True):
        if row is found.base:
            axis.plot(at, 0, "D", color="black", markersize=5)
            continue
        base = found.base.scores
        pairs = [row.scores[seed] - base[seed] for seed in row.scores if seed in base]
        axis.plot([at] * len(pairs), pairs, "o", color=PAIRS, markersize=3.5)
        axis.plot(
            [at, at], [row.pooled.low, row.pooled.high], color=POOLED, linewidth=2.2
        )
        axis.plot(at, row.pooled.mean, "D", color=POOLED, markersize=5)
        if again := more.get(row.label):
            aside = 1.16 * at
            axis.plot([aside] * 2, [again.low, again.high], color=POOLED, linewidth=1.2)
            axis.plot(aside, again.mean, **(AGAIN | {"linewidth": 0}))
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, [f"{number:g}" for number in numbers], fontsize=9)
    axis.minorticks_off()
    axis.set_ylim(-7, 5)
    axis.grid(alpha=0.25)


# ---- Iterations ----


class Grid(NamedTuple):
    """Scores of networks trained with one number of iterations and tested with another."""

    trained: list[int]
    tested: list[int]
    scores: dict[tuple[int, int], dict[int, float]]
    """(T in training, T at test) → seed → mIoU in percent."""

    def change(self, trained: int, tested: int) -> list[float]:
        """What each network gains with another T at test than in training, in points."""
        own, other = self.scores[trained, trained], self.scores[trained, tested]
        return [other[seed] - own[seed] for seed in own]


def swap_iterations(found: StudySummary) -> Grid:
    """The grid of a study of iterations, whose further evaluations are labeled ``T=…``."""
    study = found.study
    trained = [int(cell.label.removeprefix("T=")) for cell in study.cells]
    labels = [label for label in study.evaluations if label.startswith("T=")]
    tested = [int(label.removeprefix("T=")) for label in labels]
    scores = {
        (a, b): scores_by_seed(found.records, study.recipe(cell).name, f"T={b}")
        for cell, a in zip(study.cells, trained, strict=True)
        for b in tested
    }
    return Grid(trained, tested, scores)


def draw_grids(grids: Mapping[str, Grid]) -> Figure:
    """For each data set: the mean of every pair of T, and what the same network gains with another T."""
    figure, panels = plt.subplots(
        len(grids),
        2,
        figsize=(8.6, 3.2 * len(grids)),
        squeeze=False,
        layout="constrained",
    )
    for (left, right), (title, grid) in zip(panels, grids.items(), strict=True):
        means = np.array(
            [
                [np.mean(list(grid.scores[a, b].values())) for b in grid.tested]
                for a in grid.trained
            ]
        )
        picture = left.imshow(means, cmap="viridis", aspect="auto")
        figure.colorbar(picture, ax=left, label="mIoU, %")
        limit = means.min() + 0.6 * np.ptp(means)
        for (row, column), value in np.ndenumerate(means):
            shade = "black" if value > limit else "white"
            left.text(
                column,
                row,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8.5,
                color=shade,
            )
        left.set_xticks(range(len(grid.tested)), [str(t) for t in grid.tested])
        left.set_yticks(range(len(grid.trained)), [str(t) for t in grid.trained])
        left.set(
            xlabel="T at test",
            ylabel="T in training",
            title=f"{title}: mean over seeds",
        )
        left.spines[:].set_visible(False)
        _draw_changes(right, grid)
        right.set(
            title=f"{title}: same network",
            xlabel="T at test",
            ylabel="change, points",
            ylim=(-1, 1),
        )
    return figure


def _draw_changes(axes: Axes, grid: Grid) -> None:
    """Dots: networks; dashes: their means."""
    for index, a in enumerate(grid.trained):
        shade = plt.get_cmap("viridis")(0.95 * index / len(grid.trained))
        for column, b in enumerate(grid.tested):
            if a != b:
                at, own = column + 0.1 * (index - 2.5), grid.change(a, b)
                axes.plot([at] * len(own), own, "o", color=shade, markersize=2.5)
                axes.plot(at, np.mean(own), "_", color=shade, markersize=8)
        axes.plot([], [], "o", color=shade, markersize=4, label=str(a))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(grid.tested)), [str(t) for t in grid.tested])
    axes.legend(title="T in training", fontsize=9, title_fontsize=9, ncols=6, loc="lower center",
                handletextpad=0, columnspacing=0.6)  # fmt: skip
    axes.grid(alpha=0.25)


def step_times(found: StudySummary) -> dict[str, float]:
    """Milliseconds of a training step: label → mean over the runs of the cell."""
    times = {}
    for cell in found.study.cells:
        name = found.study.recipe(cell).name
        own = [
            r["milliseconds_per_step"]
            for r in found.records
            if r["recipe"]["name"] == name
        ]
        if own:
            times[cell.label] = float(np.mean(own))
    return times


# ---- Convergence ----


@dataclass(frozen=True)
class Convergence:
    """EM on one image from the stored bases, far beyond the iterations of training."""

    x: Tensor
    """Features (1, n, c)."""
    climb: Tensor
    """Part of the objective's climb done after t iterations, t = 0 … end."""
    way: Tensor
    """Part of the bases' way that is left after t iterations."""
    moves: Tensor
    """Mean length of a base's step in iteration t, t = 1 … end."""
    changed: dict[int, float]
    """t → share of the positions whose label is another than with the iterations of training."""
    rises: bool
    """Whether the objective never falls."""


@torch.inference_mode()
def converge(
    model: Segmenter, image: Tensor, steps: Sequence[int], end: int = 100
) -> Convergence:
    """Iterate on the features of an image (3, h, w), normalized by nothing but `open_image`."""
    unit = model.context
    assert isinstance(unit, EMAU)
    features = model.features(image[None])
    x = look_inside(model, image[None]).x
    path = [normalize_bases(unit.bases)[None]]
    for _ in range(end):
        path.append(em_attention(x, path[-1], num_iters=1).bases)
    objective = torch.stack([log_likelihood(x, bases)[0] for bases in path])
    way = torch.stack([(bases - path[-1]).norm() for bases in path])
    trained = unit.num_iters
    usual = model.classifier(unit(features)).argmax(dim=1)
    changed: dict[int, float] = {}
    for num_iters in steps:
        unit.num_iters = num_iters
        labels = model.classifier(unit(features)).argmax(dim=1)
        changed[num_iters] = (labels != usual).double().mean().item()
    unit.num_iters = trained
    return Convergence(
        x,
        (objective - objective[0]) / (objective[-1] - objective[0]),
        way / way[0],
        torch.stack(path).diff(dim=0).norm(dim=-1).mean(dim=(1, 2)),
        changed,
        bool((objective.diff() > -1e-4 * objective[:-1].abs()).all()),
    )


def draw_convergence(found: Mapping[str, Convergence]) -> Figure:
    """Objective, bases and labels against the number of iterations, a line for each image."""
    figure, panels = plt.subplots(1, 3, figsize=(8.6, 3.2), layout="constrained")
    kinds = product(("-", "--"), SERIES)
    for (name, one), (dashes, color) in zip(found.items(), kinds, strict=False):
        steps = list(one.changed)
        look: dict[str, Any] = {"linewidth": 1.3, "marker": ".", "label": name}
        look |= {"color": color, "linestyle": dashes}
        panels[0].plot(steps, [1 - float(one.climb[t]) for t in steps], **look)
        panels[1].plot(steps, [float(one.moves[t - 1]) for t in steps], **look)
        panels[2].plot(steps, [100 * share for share in one.changed.values()], **look)
    titles = ("climb of L left, share", "step of a base", "changed labels, %")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, steps, fontsize=9)
        axes.minorticks_off()
        axes.set(xlabel="iterations", title=title)
        axes.grid(alpha=0.25)
    panels[0].set_yscale("log")
    panels[1].set_yscale("log")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(found))
    return figure


# ---- Contrast ----


class Contrast(NamedTuple):
    """λ of a network that learns it, before every step and at the end, and the features' mean length."""

    path: list[float]
    length_before: float
    length_after: float
    miou: float
    """In percent."""


def scale_of(unit: torch.nn.Module) -> float:
    """The λ that an `EMAU` has learned so far."""
    assert isinstance(unit.log_scale, Tensor)
    return unit.log_scale.exp().item()


def learn_scale(
    recipe: Recipe, optim: OptimConfig, start: float, scenes: Tensor
) -> Contrast:
    """Train a network whose λ is learned, from a start; lengths are measured on ``scenes`` (b, 3, h, w)."""
    ema = replace(recipe.model.ema, grad="last", scale=start, learn_scale=True)
    recipe = replace(recipe, model=replace(recipe.model, ema=ema), optim=optim)
    path: list[float] = []

    def note(module: torch.nn.Module, inputs: object) -> None:
        if module.training:
            path.append(scale_of(module))

    def length(model: Segmenter) -> float:
        return look_inside(model.eval(), scenes).x.norm(dim=-1).mean().item()

    options = RunOptions(progress=False, accelerator="cpu")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, Path(folder) / "run", options, None, None)
        before = length(trainer.model)
        trainer.model.context.register_forward_pre_hook(note)
        result = trainer.fit()
    path.append(scale_of(result.model.context))
    score = result.scores["single scale"].miou
    return Contrast(path, before, length(result.model), 100 * (score or 0.0))
