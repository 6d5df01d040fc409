"""What the chapters on ablations share: the records of a study with its statistics, one kind of figure and table.

Records lie in ``results/studies/FAMILY/records``, one for each run, as `emalab study` writes them. The statistics are
those of `emalab study --summary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from emalab.studies import StudyFolder, load_studies
from emalab.studies.statistics import Interval, Scores, two_way_differences
from emalab.studies.summary import StudySummary, summarize
from lab import tables
from lab.style import METHODS, MUTED

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

BOOK = Path(__file__).parents[1]
RECORDS = BOOK / "results" / "studies"
STUDIES = load_studies(BOOK / "experiments" / "studies.py")

PAIRS, POOLED = MUTED, METHODS["EM"]  # colors of the differences
AGAIN: dict[str, Any] = {
    "color": POOLED, "marker": "D", "markersize": 4, "markerfacecolor": "white", "linewidth": 1.2
}  # fmt: skip


@cache
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
    records = _records(study.family, root)
    found = summarize(study, records, evaluation, family=family)
    return replace(
        found, rows=[row for row in found.rows if row.scores or row.diverged]
    )


@cache
def _records(family: str, root: Path) -> list[dict[str, Any]]:
    return StudyFolder(root / family).records(STUDIES[family])


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
    scores[base] = all_base_scores(study.family, root)
    found = two_way_differences(scores, base, level, seed_effects=False)
    own = {cell.label: study.recipe(cell).name for cell in study.cells}
    return {label: found[recipe] for label, recipe in own.items() if recipe in found}


@cache
def judged_by(family: str) -> Mapping[str, Interval]:
    """Cell → the difference from the family's baseline by which the chapters judge.

    It is pooled over all cells; on CamVid, where seeds have no effect of their own, it is from all runs of the baseline.
    A study that fixed its test in advance is judged by that: cityscapes-256 by differences paired by seed.
    """
    if family == "camvid":
        return from_more_seeds(family)
    found = findings(family)
    if found.study.test:
        return {row.label: row.difference for row in found.rows}
    return {row.label: row.pooled for row in found.rows}


def all_base_scores(family: str, root: Path = RECORDS) -> dict[int, float]:
    """Seed → mIoU in percent of the baseline of a family, the runs of FAMILY-again included."""
    first = findings(family, root=root).base.scores
    return first | findings(f"{family}-again", root=root).base.scores


def verdict_table(
    found: StudySummary,
    caption: str,
    names: Mapping[str, str] | None = None,
    *,
    differences: Mapping[str, Interval] | None = None,
    corrected: Mapping[str, Interval] | None = None,
    base_scores: Scores | None = None,
) -> Styler:
    """A study's verdicts, one row a cell: setting, seeds, mIoU, difference from the baseline with its interval, verdict.

    Args:
        found: the study.
        caption: says on which data, and which interval the table shows.
        names: of the cells in the table, by label; the label itself by default.
        differences: by label, where not those that are pooled over all cells.
        corrected: by label, the wider intervals that hold for all comparisons at once.
        base_scores: of the baseline, where not those of the study.
    """
    names = names or {}
    rows: list[dict[str, object]] = []
    bold = []
    for row in found.rows:
        is_base = row is found.base
        difference = (differences or {}).get(row.label, row.pooled)
        if difference.excludes_zero and not is_base:
            bold.append(len(rows))
        scores = base_scores if is_base and base_scores else row.scores
        shown = {
            "setting": names.get(row.label, row.label),
            "seeds": len(scores),
            "mIoU": float(np.mean(list(scores.values()))) if scores else None,
            "difference [95 %]": "" if is_base else interval_text(difference),
            "verdict": "baseline" if is_base else verdict_of(difference),
        }
        if row.label in (corrected or {}) and difference.excludes_zero:
            holds = corrected is not None and corrected[row.label].excludes_zero
            shown["verdict"] = (
                f"{verdict_of(difference)}, {'also' if holds else 'not'} if corrected"
            )
        if row.diverged:
            shown["diverged"] = len(row.diverged)
        rows.append(shown)
    return tables.show(rows, caption, formats={"mIoU": "{:.1f}"}, bold=bold)


def difference_row(title: str, difference: Interval) -> dict[str, object]:
    """A row of a table of differences between two cells of any kind."""
    return {
        "difference in mIoU": title,
        "seeds": difference.num_values,
        "points [95 %]": interval_text(difference),
        "verdict": verdict_of(difference),
    }


def difference_table(differences: Mapping[str, Interval], caption: str) -> Styler:
    """Differences between any two cells, by what they are; those whose interval excludes zero in bold."""
    bold = [i for i, found in enumerate(differences.values()) if found.excludes_zero]
    rows = [difference_row(*item) for item in differences.items()]
    return tables.show(rows, caption, bold=bold)


def verdict_of(difference: Interval) -> str:
    """In words what an interval says of a difference in mIoU."""
    if np.isnan(difference.low):
        return "no interval"
    if not difference.excludes_zero:
        return "no detectable difference"
    return "better" if difference.low > 0 else "worse"


def interval_text(found: Interval) -> str:
    """Mean and interval, such as "−0.15 [−1.53, +1.23]"; one decimal from ten points on."""
    form = "+.2f" if abs(found.mean) < 10 else "+.1f"
    mean, low, high = (
        f"{value:{form}}".replace("-", "−")
        for value in (found.mean, found.low, found.high)
    )
    return mean if np.isnan(found.low) else f"{mean} [{low}, {high}]"


def verdict(text: str) -> Markdown:
    """The answer of a chapter for its first screen, as an admonition.

    The cell has the metadata ``{"mystnb": {"markdown_format": "myst"}}``, and the text may have links and references.
    """
    return Markdown(f":::{{admonition}} Verdict\n:class: important\n\n{text}\n:::")


def origin(found: StudySummary) -> str:
    """Runs, commits and devices."""
    commits = sorted({str(record["commit"])[:7] for record in found.records})
    devices = sorted({record["device"] for record in found.records})
    return (
        f"{len(found.records)} runs, commit {', '.join(commits)}, {', '.join(devices)}"
    )


def _labels_of(studies: Sequence[StudySummary]) -> list[str]:
    """The cells that any of the studies compares with its baseline."""
    labels = dict.fromkeys(row.label for found in studies for row in found.rows)
    return [
        label for label in labels if any(_compared(found, label) for found in studies)
    ]


def difference_figure(
    panels: Mapping[str, StudySummary],
    names: Mapping[str, str] | None = None,
    more: Mapping[str, Mapping[str, Interval]] | None = None,
) -> Figure:
    """Differences from the baseline: a panel for each title, at most three side by side, on the same rows.

    An interval from few seeds leaves the panel where it is very wide; the legend below names the marks.

    Args:
        panels: title → study.
        names: of the cells in the figure, by label; the label itself by default.
        more: title → label → a second interval, from all runs of the baseline, see `from_more_seeds`.
    """
    names, more = names or {}, more or {}
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    studies = list(panels.values())
    beside = [studies[at : at + columns] for at in range(0, len(studies), columns)]
    shown = [_labels_of(row) for row in beside]
    heights = [0.7 + 0.28 * len(labels) for labels in shown]
    size = (1.8 + (2.2 if columns > 2 else 3) * columns, 0.5 + sum(heights))
    figure, axes = plt.subplots(
        len(beside),
        columns,
        figsize=size,
        sharey="row",
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for place, (title, found) in enumerate(panels.items()):
        axis, labels = axes.flat[place], shown[place // columns]
        for height, label in enumerate(labels):
            if _compared(found, label):
                _draw_difference(axis, found, label, height)
                if again := more.get(title, {}).get(label):
                    _draw_again(axis, again, height)
        _frame(axis, found, title, labels)
        axis.set_yticks(
            range(len(labels)), [names.get(label, label) for label in labels]
        )
    _explain_marks(figure, with_more=bool(more))
    return figure


def _frame(axis: Axes, found: StudySummary, title: str, labels: Sequence[str]) -> None:
    """Limits, title and the line at zero."""
    axis.axvline(0, color="black", linewidth=0.8)
    reach = 1.1 * max(_extent(found, label) for label in labels)
    axis.set(
        title=title,
        xlim=(-reach, reach),
        xlabel="points of mIoU",
        ylim=(len(labels) - 0.5, -0.5),
    )
    axis.grid(axis="x", alpha=0.25)


def _explain_marks(figure: Figure, with_more: bool) -> None:
    """The legend, below all panels."""
    marks: dict[str, dict[str, Any]] = {
        "one seed": {"color": PAIRS, "marker": "o", "markersize": 3.5, "linewidth": 0},
        "95 %, paired by seed": {"color": PAIRS, "linewidth": 1},
        "mean and 95 %, pooled over all cells": {
            "color": POOLED, "marker": "D", "markersize": 5, "linewidth": 2.2
        },
    }  # fmt: skip
    if with_more:
        marks["the same, all runs of the baseline"] = AGAIN
    handles = [Line2D([], [], **look) for look in marks.values()]
    columns = 2 if with_more else 3
    figure.legend(handles, list(marks), loc="outside lower center", ncols=columns)


def _draw_again(axis: Axes, found: Interval, height: int) -> None:
    """The interval from all runs of the baseline, below the other one."""
    axis.plot([found.low, found.high], [height + 0.28] * 2, color=POOLED, linewidth=1.2)
    axis.plot(found.mean, height + 0.28, **(AGAIN | {"linewidth": 0}))


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
