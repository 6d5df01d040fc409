"""What the chapters on ablations share: the records of a study with its statistics, one kind of figure and table.

Records lie in ``results/studies/FAMILY/records``, one for each run, as `emalab study` writes them. The statistics are
those of `emalab study --summary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from emalab.studies import StudyFolder, load_studies
from emalab.studies.statistics import Interval, two_way_differences
from emalab.studies.summary import StudySummary, format_interval, summarize
from lab.style import METHODS, MUTED

BOOK = Path(__file__).parents[1]
RECORDS = BOOK / "results" / "studies"
STUDIES = load_studies(BOOK / "experiments" / "studies.py")

PAIRS, POOLED = MUTED, METHODS["EM"]  # colors of the differences


def findings(
    name: str, evaluation: str | None = None, root: Path = RECORDS
) -> StudySummary:
    """The summary of a study from the book's records: a row for every cell that has one, in the study's order.

    Args:
        name: of the study, as `emalab study --list` has it.
        evaluation: label of a further evaluation; single scale by default.
        root: folder of the families.
    """
    study = STUDIES[name]
    family = STUDIES[study.family]
    records = StudyFolder(root / study.family).records(family)
    found = summarize(study, records, evaluation, family=family)
    return replace(
        found, rows=[row for row in found.rows if row.scores or row.diverged]
    )


def from_more_seeds(
    name: str, level: float = 0.95, root: Path = RECORDS
) -> dict[str, Interval]:
    """Differences of a study's cells from all runs of the base, those of FAMILY-again included.

    The new seeds of the base no other cell has, so this fits no effects of seeds; see `two_way_differences`.
    """
    study = STUDIES[name]
    family = STUDIES[study.family]
    base = study.recipe(study.baseline).name
    recipes = {cell.label: family.recipe(cell).name for cell in family.cells}
    rows = findings(family.name, root=root).rows
    scores = {recipes[row.label]: row.scores for row in rows}
    again = findings(f"{study.family}-again", root=root)
    scores[base] = scores[base] | again.base.scores
    found = two_way_differences(scores, base, level, seed_effects=False)
    own = {cell.label: study.recipe(cell).name for cell in study.cells}
    return {label: found[recipe] for label, recipe in own.items() if recipe in found}


def table(found: StudySummary, names: Mapping[str, str] | None = None) -> str:
    """Aligned text: seeds, mean, difference from the base over pairs of seeds and with the scatter of all cells, each
    with half its 95 % interval; and where the numbers come from."""
    names = names or {}
    labels = [names.get(row.label, row.label) for row in found.rows]
    width = max(map(len, labels))
    lines = [f"{'':<{width}}  seeds   mIoU  − base, pairs  − base, all cells"]
    for label, row in zip(labels, found.rows, strict=True):
        line = f"{label:<{width}}  {len(row.scores):>5}  {row.mean.mean:5.2f}"
        if row.difference.num_values:
            line += f"  {format_interval(row.difference):<13}  {format_interval(row.pooled)}"
        lines.append(line + (f"  {len(row.diverged)} diverged" if row.diverged else ""))
    return "\n".join([*lines, origin(found)])


def origin(found: StudySummary) -> str:
    """Runs, commits and devices."""
    commits = sorted({str(record["commit"])[:7] for record in found.records})
    devices = sorted({record["device"] for record in found.records})
    return (
        f"{len(found.records)} runs, commit {', '.join(commits)}, {', '.join(devices)}"
    )


def difference_figure(
    panels: Mapping[str, StudySummary], names: Mapping[str, str] | None = None
) -> Figure:
    """Differences from the base: a panel for each title, all on the same rows.

    At most two panels stand side by side. An interval from few seeds leaves the panel where it is very wide; the
    legend below names the marks.
    """
    names = names or {}
    labels = list(
        dict.fromkeys(row.label for found in panels.values() for row in found.rows)
    )
    labels = [
        label
        for label in labels
        if any(_compared(found, label) for found in panels.values())
    ]
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.8 + 3.2 * columns, 0.5 + rows * (0.8 + 0.3 * len(labels))), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, found) in zip(axes.flat, panels.items(), strict=False):
        for height, label in enumerate(labels):
            if _compared(found, label):
                _draw_difference(axis, found, label, height)
        axis.axvline(0, color="black", linewidth=0.8)
        reach = 1.1 * max(_extent(found, label) for label in labels)
        axis.set(
            title=title,
            xlim=(-reach, reach),
            xlabel="mIoU − base, percentage points",
            ylim=(len(labels) - 0.5, -0.5),
        )
        axis.set_yticks(
            range(len(labels)), [names.get(label, label) for label in labels]
        )
        axis.grid(axis="x", alpha=0.25)
    handles = [
        Line2D([], [], color=PAIRS, marker="o", markersize=3.5, linewidth=0),
        Line2D([], [], color=PAIRS, linewidth=1),
        Line2D([], [], color=POOLED, marker="D", markersize=5, linewidth=2.2),
    ]
    meanings = ("one seed", "95 %, these seeds", "mean and 95 %, all cells")
    figure.legend(handles, meanings, loc="outside lower center", ncols=3)
    return figure


def _draw_difference(axis: Axes, found: StudySummary, label: str, height: int) -> None:
    """A row of a panel: the seeds, their own interval, and the pooled mean with its interval."""
    row, base = found.row(label), found.base.scores
    seeds = [row.scores[seed] - base[seed] for seed in row.scores if seed in base]
    axis.plot(seeds, [height] * len(seeds), "o", color=PAIRS, markersize=3.5)
    if row.difference.num_values > 1:
        own = row.difference.low, row.difference.high
        axis.plot(own, [height, height], color=PAIRS, linewidth=1)
    if np.isfinite(row.pooled.low):
        pooled = row.pooled.low, row.pooled.high
        axis.plot(pooled, [height, height], color=POOLED, linewidth=2.2)
    axis.plot(row.pooled.mean, height, "D", color=POOLED, markersize=5)


def _extent(found: StudySummary, label: str) -> float:
    """How far from zero the seeds' differences and the interval over all cells reach."""
    if not _compared(found, label):
        return 0.0
    row, base = found.row(label), found.base.scores
    pairs = [abs(row.scores[seed] - base[seed]) for seed in row.scores if seed in base]
    return float(np.nanmax([*pairs, abs(row.pooled.low), abs(row.pooled.high)]))


def _compared(found: StudySummary, label: str) -> bool:
    return any(row.label == label and row.difference.num_values for row in found.rows)
