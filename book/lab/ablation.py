"""What the chapters on ablations share: the records of a study, Student's intervals, one kind of figure and table.

Records lie in ``results/studies/FAMILY/records``, one for each run, as `emalab study` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from emalab.studies import Study, StudyFolder
from emalab.studies.catalog import get_study
from emalab.studies.summary import Interval, scores_by_seed

STUDIES = Path(__file__).parents[1] / "results" / "studies"


@dataclass(frozen=True)
class Row:
    """One cell of a study. Scores are mean IoU in percent."""

    label: str
    scores: dict[int, float]
    """By seed."""
    mean: Interval
    difference: Interval
    """From the base, over the seeds that both have; the interval is that of these few pairs alone."""
    pooled: Interval
    """From the base, with the scatter of all cells of the family; see `two_way`."""
    diverged: int
    """Runs whose loss became infinite or NaN."""


@dataclass(frozen=True)
class Findings:
    """What the records of a study say."""

    study: Study
    records: list[dict[str, Any]]
    rows: list[Row]

    @property
    def base(self) -> Row:
        """The row that all others are compared with."""
        return next(row for row in self.rows if row.label == self.study.baseline.label)

    def row(self, label: str) -> Row:
        """The row of a cell."""
        return next(row for row in self.rows if row.label == label)


def student(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and Student's interval, which knows how few values there are; no interval for one value."""
    count = len(values)
    if count < 2:
        return Interval(values[0] if count else np.nan, np.nan, np.nan, count)
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = error * float(stats.t.ppf((1 + level) / 2, count - 1))
    return Interval(mean, mean - half, mean + half, count)


def two_way(
    scores: Mapping[str, Mapping[int, float]],
    base: str,
    level: float = 0.95,
    *,
    seeds_matter: bool = True,
) -> dict[str, Interval]:
    """Differences of all cells from one, with the scatter that they have in common.

    Three seeds hardly know their own scatter. Least squares fits score = cell + seed + noise to all runs, seeds as
    effects of their own; the noise of all cells gives one variance, and so many degrees of freedom that Student's t is
    near 2 (the two-way layout of Montgomery, Design and Analysis of Experiments, ch. 4). It assumes that all cells
    scatter alike.

    Args:
        scores: cell → seed → score; cells may lack seeds.
        base: cell that all others are compared with.
        level: of the intervals.
        seeds_matter: off, all seeds are equally good, and the fit is score = cell + noise. Then runs of a cell count
            whether or not another cell has their seed.
    """
    cells = [cell for cell, by_seed in scores.items() if by_seed]
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed})
    others = seeds[1:] if seeds_matter else []
    runs = [(cell, seed) for cell in cells for seed in scores[cell]]
    design = np.array(
        [
            [cell == c for c in cells] + [seed == s for s in others]
            for cell, seed in runs
        ],
        dtype=float,
    )
    observed = np.array([scores[cell][seed] for cell, seed in runs])
    effects, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)
    freedom = len(runs) - int(rank)
    found = {}
    for index, cell in enumerate(cells):
        if cell == base or base not in cells:
            continue
        contrast = np.zeros(design.shape[1])
        contrast[index], contrast[cells.index(base)] = 1, -1
        mean, half = float(contrast @ effects), np.nan
        if freedom:
            noise = np.sum((observed - design @ effects) ** 2) / freedom
            variance = noise * contrast @ np.linalg.pinv(design.T @ design) @ contrast
            half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
        found[cell] = Interval(mean, mean - half, mean + half, len(scores[cell]))
    return found


def findings(
    name: str, evaluation: str | None = None, root: Path = STUDIES
) -> Findings:
    """Means and paired differences of all cells of a study that have a record, in the study's order.

    Args:
        name: of the study, as `emalab study --list` has it.
        evaluation: label of a further evaluation; single scale by default.
        root: folder of the families.
    """
    study = get_study(name)
    folder = StudyFolder(root / study.family)
    records = folder.records(study)
    family = get_study(study.family)
    everything = folder.records(family)
    pooled = two_way(
        {
            family.recipe(cell).name: _scores(
                family, everything, cell.label, evaluation
            )
            for cell in family.cells
        },
        study.recipe(study.baseline).name,
    )
    base = _scores(study, records, study.baseline.label, evaluation)
    rows = []
    for cell in study.cells:
        scores = _scores(study, records, cell.label, evaluation)
        recipe = study.recipe(cell).name
        diverged = sum(
            "diverged" in record
            for record in records
            if record["recipe"]["name"] == recipe
        )
        if not scores and not diverged:
            continue
        common = sorted(scores.keys() & base.keys()) if cell != study.baseline else []
        difference = student([scores[seed] - base[seed] for seed in common])
        rows.append(
            Row(
                cell.label,
                scores,
                student(list(scores.values())),
                difference,
                pooled.get(recipe, student([])),
                diverged,
            )
        )
    return Findings(study, records, rows)


def from_more_seeds(
    name: str, level: float = 0.95, root: Path = STUDIES
) -> dict[str, Interval]:
    """Differences of a study's cells from all runs of the base, those of FAMILY-again included.

    The new seeds of the base no other cell has, so this takes all seeds for equally good; see `two_way`.
    """
    study = get_study(name)
    family = get_study(study.family)
    base = study.recipe(study.baseline).name
    named = {cell.label: family.recipe(cell).name for cell in family.cells}
    rows = findings(family.name, root=root).rows
    scores = {named[row.label]: row.scores for row in rows}
    again = findings(f"{study.family}-again", root=root)
    scores[base] = scores[base] | again.base.scores
    found = two_way(scores, base, level, seeds_matter=False)
    recipes = {cell.label: study.recipe(cell).name for cell in study.cells}
    return {
        label: found[recipe] for label, recipe in recipes.items() if recipe in found
    }


def _scores(
    study: Study, records: list[dict[str, Any]], label: str, evaluation: str | None
) -> dict[int, float]:
    cell = next(cell for cell in study.cells if cell.label == label)
    found = scores_by_seed(records, study.recipe(cell).name, evaluation)
    return {seed: 100 * value for seed, value in found.items()}


def table(found: Findings, names: Mapping[str, str] | None = None) -> str:
    """Aligned text: seeds, mean, difference from the base over pairs of seeds and with the scatter of all cells, each
    with half its 95 % interval; and where the numbers come from."""
    names = names or {}
    labels = [names.get(row.label, row.label) for row in found.rows]
    width = max(map(len, labels))
    lines = [f"{'':<{width}}  seeds   mIoU  − base, pairs  − base, all cells"]
    for label, row in zip(labels, found.rows, strict=True):
        line = f"{label:<{width}}  {len(row.scores):>5}  {row.mean.mean:5.2f}"
        if row.difference.num_values:
            line += f"  {_with_half(row.difference):<13}  {_with_half(row.pooled)}"
        lines.append(line + (f"  {row.diverged} diverged" if row.diverged else ""))
    return "\n".join([*lines, origin(found)])


def _with_half(interval: Interval) -> str:
    """Mean ± half of a symmetric interval, where there is one."""
    half = interval.high - interval.mean
    return f"{interval.mean:+.2f}" + (f" ± {half:.2f}" if np.isfinite(half) else "")


def origin(found: Findings) -> str:
    """Runs, commits and devices."""
    commits = sorted({str(record["commit"])[:7] for record in found.records})
    devices = sorted({record["device"] for record in found.records})
    return (
        f"{len(found.records)} runs, commit {', '.join(commits)}, {', '.join(devices)}"
    )


def difference_figure(
    panels: Mapping[str, Findings], names: Mapping[str, str] | None = None
) -> Figure:
    """Differences from the base: a panel for each title, all on the same rows.

    Blue, with the scatter of all cells; gray, each pair of seeds and the interval of these pairs alone, which leaves
    the panel where it is very wide.
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
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.8 + 3.2 * len(panels), 0.7 + 0.3 * len(labels)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (title, found) in zip(axes[0], panels.items(), strict=True):
        for height, label in enumerate(labels):
            if not _compared(found, label):
                continue
            row = found.row(label)
            seeds = [
                row.scores[seed] - found.base.scores[seed]
                for seed in row.scores
                if seed in found.base.scores
            ]
            axis.plot(
                seeds, [height] * len(seeds), "o", color="#9aa7b5", markersize=3.5
            )
            if row.difference.num_values > 1:
                low, high = row.difference.low, row.difference.high
                axis.plot([low, high], [height, height], color="#9aa7b5", linewidth=1)
            if np.isfinite(row.pooled.low):
                low, high = row.pooled.low, row.pooled.high
                axis.plot([low, high], [height, height], color="#1f5fa8", linewidth=2.2)
            axis.plot(row.pooled.mean, height, "D", color="#1f5fa8", markersize=5)
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
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _extent(found: Findings, label: str) -> float:
    """How far from zero the seeds' differences and the interval over all cells reach."""
    if not _compared(found, label):
        return 0.0
    row, base = found.row(label), found.base.scores
    pairs = [abs(row.scores[seed] - base[seed]) for seed in row.scores if seed in base]
    return float(np.nanmax([*pairs, abs(row.pooled.low), abs(row.pooled.high)]))


def _compared(found: Findings, label: str) -> bool:
    return any(row.label == label and row.difference.num_values for row in found.rows)
