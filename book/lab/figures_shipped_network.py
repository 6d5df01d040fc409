"""The attempt at a better shipped network: what its records contain, and the figure of the chapter on results.

``book/experiments/shipped_network.py`` made the records in two steps: runs of a fractional factorial, scored on
held-out images, then two seeds of the final recipe, scored on val.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from emalab.data import get_spec
from emalab.results import load_records, read_record
from emalab.studies.statistics import Interval, least_squares, two_way_differences
from lab.style import MUTED
from lab.verdicts import BOOK, POOLED, RECORDS

__all__ = ["CHANGES", "GOAL", "class_scores", "draw", "effects", "lead", "plan", "together"]  # fmt: skip

FOLDER = RECORDS / "shipped-network"
GOAL = 80  # VOC-animals-7 on val, single scale, in percent
CHANGES = {  # in the figure
    "length": "twice the images seen",
    "channels": "twice the channels",
    "crop": "crops of 1.3 times the side",
    "average": "average of the weights",
    "rate": "a quarter of the learning rate",
    "batch": "twice the batch size",
    "streets": "street scenes added",
}
MEAN = "mean"
TODAY, FINAL = "today's recipe", "final recipe"
_INTERVAL: dict[str, Any] = {"color": POOLED, "marker": "D", "markersize": 5, "linewidth": 2.2, "solid_capstyle": "butt"}  # fmt: skip
_OPEN = {"markerfacecolor": "white"}
_SEEDS: dict[str, dict[str, Any]] = {
    TODAY: {"color": MUTED, "marker": "o", "markersize": 4, "linewidth": 0},
    FINAL: {"color": POOLED, "marker": "D", "markersize": 5, "linewidth": 0},
}
_GOAL: dict[str, Any] = {"color": "black", "marker": "|", "markersize": 12, "linewidth": 0, "markeredgewidth": 1.5}  # fmt: skip


@cache
def plan() -> dict[str, Any]:
    """The record of the design: scores of its runs, in percent, and the changes that were taken."""
    return read_record(FOLDER / "effects.json")


def effects(level: float = 0.95) -> dict[str, Interval]:
    """Change → its effect on the held-out images, in points, by least squares over the runs of the design.

    Args:
        level: coverage of each interval.
    """
    names, scores = list(plan()["factors"]), plan()["scores"]
    columns = [
        [1.0, *((name in label.split(", ")) - 0.5 for name in names)]
        for label in scores
    ]
    found = least_squares(np.array(columns), np.array(list(scores.values())), level)
    return dict(zip(names, found[1:], strict=True))


def together(names: Collection[str]) -> Interval:
    """The sum of several effects; their estimates are uncorrelated in this design, so that variances add."""
    found = [effects()[name] for name in names]
    mean = sum(effect.mean for effect in found)
    half = sum(effect.half_width**2 for effect in found) ** 0.5
    return Interval(mean, mean - half, mean + half, found[0].num_values)


@cache
def class_scores() -> Mapping[str, Mapping[str, Mapping[int, float]]]:
    """IoU on val, in percent: recipe → the mean and the classes of VOC-animals-7 → seed → score."""
    records = {
        TODAY: load_records(BOOK / "results", "voc-animals-lite2-seed*.json"),
        FINAL: load_records(FOLDER / "final" / "records"),
    }
    return {
        recipe: {
            name: {r["seed"]: _score(r, name) for r in found}
            for name in (MEAN, *get_spec("voc-animals").report_classes)
        }
        for recipe, found in records.items()
    }


def _score(record: Mapping[str, Any], name: str) -> float:
    scores = record["scores"]["single scale"]
    return 100 * float(scores["miou"] if name == MEAN else scores["iou"][name])


def lead() -> Interval:
    """The final recipe's mean mIoU less that of today's recipe; one variance, from the runs of both."""
    scores = {recipe: found[MEAN] for recipe, found in class_scores().items()}
    return two_way_differences(scores, TODAY, seed_effects=False)[FINAL]


def draw() -> Figure:
    """Left the effects of the changes on held-out images, right every seed of both recipes on val."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.6, 3.4), layout="constrained", width_ratios=(1, 1.1)
    )
    _draw_effects(left)
    _draw_seeds(right)
    marks = {
        "mean and 95 %, taken": _INTERVAL,
        "mean and 95 %, not taken": _INTERVAL | _OPEN,
        **{f"{recipe}, one seed": look for recipe, look in _SEEDS.items()},
        "goal": _GOAL,
    }
    handles = [Line2D([], [], **look) for look in marks.values()]
    figure.legend(handles, list(marks), loc="outside lower center", ncols=3)
    return figure


def _draw_effects(axes: Axes) -> None:
    for place, name in enumerate(CHANGES):
        effect = effects()[name]
        look = _INTERVAL | ({} if name in plan()["taken"] else _OPEN)
        axes.plot([effect.low, effect.high], [place] * 2, **(look | {"marker": ""}))
        axes.plot(effect.mean, place, **(look | {"linewidth": 0}))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(CHANGES)), list(CHANGES.values()))
    reach = 1.1 * max(abs(end) for found in effects().values() for end in found[1:3])
    axes.set(
        title="Effects, held-out images",
        xlabel="points of mIoU",
        xlim=(-reach, reach),
        ylim=(len(CHANGES) - 0.5, -0.5),
    )
    axes.grid(axis="x", alpha=0.25)


def _draw_seeds(axes: Axes) -> None:
    names = list(class_scores()[TODAY])
    for recipe, aside in ((TODAY, -0.15), (FINAL, 0.15)):
        for place, name in enumerate(names):
            values = list(class_scores()[recipe][name].values())
            axes.plot(values, [place + aside] * len(values), **_SEEDS[recipe])
    axes.plot(GOAL, names.index(MEAN), **_GOAL)
    axes.set_yticks(range(len(names)), names)
    axes.set(
        title="Scores, validation images",
        xlabel="IoU, %",
        xlim=(50, 95),
        ylim=(len(names) - 0.5, -0.5),
    )
    axes.grid(axis="x", alpha=0.25)
