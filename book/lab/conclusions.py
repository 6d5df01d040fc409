"""What the studies of all data sets say of the same question: one row for each comparison, one column for each data set.

The interval of each data set is the one that its chapter judges by, see `lab.verdicts.judged_by`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from emalab.studies.statistics import Interval
from lab import tables
from lab.style import METHODS, MUTED
from lab.verdicts import interval_text, judged_by, verdict_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

__all__ = ["COMPARISONS", "DATA_SETS", "differences", "draw_all", "elsewhere", "table"]

DATA_SETS = {
    "generated scenes": "shapes",
    "VOC animals": "voc-animals",
    "CamVid": "camvid",
    "Cityscapes 256": "cityscapes-256",
}

COMPARISONS: dict[str, dict[str, str]] = {
    "head": {"non-local": "non-local head", "plain FCN": "FCN head"},
    "gradient": {
        "last": "gradient, last iteration",
        "unroll": "gradient, all iterations",
    },
    "bases": {
        "alpha=0.0": "α = 0",
        "alpha=0.5": "α = 0.5",
        "alpha=0.99": "α = 0.99",
        "learned": "bases learned",
        "frozen": "bases left at random",
        "per image": "bases from the image",
    },
    "iterations": {"T=1": "T = 1", "T=2": "T = 2", "T=6": "T = 6"},
    "number of bases": {"K=16": "K = 16", "K=32": "K = 32", "K=128": "K = 128"},
    "stride": {"stride": "stride 8, not 16"},
}
"""Group → label of the cell → what figures and tables call it."""


@cache
def differences(data: str) -> Mapping[str, Interval]:
    """Of every comparison's cell from the baseline, in points of mIoU, on one of `DATA_SETS`, by the cell's label.

    ``stride`` is stride 8 less stride 16, whichever of them is the baseline.
    """
    intervals = dict(judged_by(DATA_SETS[data]))
    if "trained at stride 8" in intervals:
        intervals["stride"] = intervals["trained at stride 8"]
    elif "trained at stride 16" in intervals:
        intervals["stride"] = _negated(intervals["trained at stride 16"])
    if (
        "last" not in intervals
    ):  # also the baseline of the learned λ, and called so in the whole family
        intervals["last"] = intervals["lambda=1, gradient last"]
    wanted = [label for cells in COMPARISONS.values() for label in cells]
    return {label: intervals[label] for label in wanted if label in intervals}


def _negated(found: Interval) -> Interval:
    return Interval(-found.mean, -found.high, -found.low, found.num_values)


def elsewhere(label: str, data: str) -> str:
    """In words what the other data sets say of a cell: on which it is better or worse than the baseline."""
    signs: dict[str, list[str]] = {}
    for other in DATA_SETS:
        found = differences(other).get(label)
        if other != data and found is not None and found.excludes_zero:
            signs.setdefault(verdict_of(found), []).append(other)
    said = [f"{verdict} on {', '.join(where)}" for verdict, where in signs.items()]
    return "; ".join(said) if said else "no detectable difference"


def table(data: str, caption: str, *groups: str) -> Styler:
    """The comparisons of some groups on one data set, and what the others say; a difference that shows is bold."""
    rows: list[dict[str, object]] = []
    bold = []
    for label, name in (
        item for group in groups for item in COMPARISONS[group].items()
    ):
        found = differences(data)[label]
        if found.excludes_zero:
            bold.append(len(rows))
        rows.append(
            {
                "setting": name,
                "points [95 %]": interval_text(found),
                "verdict": verdict_of(found),
                "elsewhere": elsewhere(label, data),
            }
        )
    return tables.show(rows, caption, bold=bold)


def draw_all(*data_sets: str) -> Figure:
    """Every comparison: a panel for each data set, a row for each setting, 95 % intervals."""
    rows = [
        (group, label, name)
        for group, cells in COMPARISONS.items()
        for label, name in cells.items()
    ]
    heights: list[float] = []
    for place, (group, _, _) in enumerate(rows):
        step = 0.0 if place == 0 else 1.0 if group == rows[place - 1][0] else 1.6
        heights.append((heights[-1] if heights else 0.0) + step)
    figure, panels = plt.subplots(
        1,
        len(data_sets),
        figsize=(8.6, 5.2),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axes, data in zip(panels, data_sets, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for height, (_, label, _) in zip(heights, rows, strict=True):
            if (found := differences(data).get(label)) is None:
                continue
            color = METHODS["EM"] if found.excludes_zero else MUTED
            axes.plot([found.low, found.high], [height] * 2, color=color, linewidth=2)
            axes.plot(found.mean, height, "D", color=color, markersize=4.5)
        axes.set(title=data, xlabel="points of mIoU")
        axes.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(heights, [name for _, _, name in rows])
    panels[0].invert_yaxis()
    looks = {"excludes zero": METHODS["EM"], "includes zero": MUTED}
    handles = [
        Line2D([], [], color=color, marker="D", markersize=4.5, linewidth=2)
        for color in looks.values()
    ]
    names = [f"mean and 95 % interval that {name}" for name in looks]
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure
