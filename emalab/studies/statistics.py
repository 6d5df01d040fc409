"""Means over seeds, their intervals, and differences between settings: what summaries and the book's chapters compute.

All intervals are Student's. They assume that runs scatter normally and independently around the mean of their setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Interval", "Scores", "least_squares", "paired_difference", "student_interval", "two_way_differences"]

Scores = Mapping[int, float]  # seed → score


class Interval(NamedTuple):
    """A mean with its confidence interval; NaN where there are too few values for either."""

    mean: float
    low: float
    high: float
    num_values: int

    @property
    def half_width(self) -> float:
        """Distance from the mean to either end."""
        return self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Whether all values in the interval have one sign; False where there is no interval."""
        return self.low > 0 or self.high < 0


def student_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values and Student's interval, mean ± t·s/√n; no interval for one value.

    Args:
        values: n of them; s is their standard deviation with divisor n − 1.
        level: coverage.

    Raises:
        ValueError: ``level`` is not between 0 and 1.
    """
    count = len(values)
    if count < 2:
        return Interval(float(values[0]) if count else np.nan, np.nan, np.nan, count)
    mean = float(np.mean(values))
    half = _quantile(level, count - 1) * float(np.std(values, ddof=1)) / count**0.5
    return Interval(mean, mean - half, mean + half, count)


def paired_difference(ours: Scores, theirs: Scores, level: float = 0.95) -> Interval:
    """Mean of ours − theirs over the seeds that both have, with Student's interval of these differences."""
    common = sorted(ours.keys() & theirs.keys())
    return student_interval([ours[seed] - theirs[seed] for seed in common], level)


def two_way_differences(
    scores: Mapping[str, Scores], base: str, level: float = 0.95, *, seed_effects: bool = True
) -> dict[str, Interval]:
    """Differences of all cells from one, with a variance that is pooled over all cells.

    The standard deviation of three runs is hardly known. Least squares fits score = cell + seed + noise to all runs;
    the residuals of all cells give one variance, with so many degrees of freedom that Student's t is near 2 (the
    two-way layout of Montgomery, Design and Analysis of Experiments, ch. 4). The fit assumes that the noise has the
    same variance in every cell. With two cells, it equals `paired_difference`.

    Args:
        scores: cell → seed → score; cells may lack seeds.
        base: cell that all others are compared with.
        level: coverage of each interval.
        seed_effects: False fits score = cell + noise, for cells that share no seeds.

    Returns:
        Cell → its difference from ``base``, for every other cell with a score. NaN for a difference that the runs do
        not determine (no chain of shared seeds leads to the base), and no interval without degrees of freedom.
    """
    cells = [cell for cell, by_seed in scores.items() if by_seed]
    if base not in cells:
        return {}
    seeds = sorted({seed for cell in cells for seed in scores[cell]})
    runs = [(cell, seed) for cell in cells for seed in scores[cell]]
    columns = seeds[1:] if seed_effects else []
    design = np.array([[cell == c for c in cells] + [seed == s for s in columns] for cell, seed in runs], dtype=float)
    observed = np.array([scores[cell][seed] for cell, seed in runs])
    inverse = np.linalg.pinv(design)
    effects = inverse @ observed
    freedom = len(runs) - int(np.linalg.matrix_rank(design))
    variance = float(np.sum((observed - design @ effects) ** 2)) / freedom if freedom else np.nan
    quantile = _quantile(level, freedom) if freedom else np.nan
    found = {}
    for index, cell in enumerate(cells):
        contrast = np.zeros(design.shape[1])
        contrast[index], contrast[cells.index(base)] = 1, -1
        weights = contrast @ inverse  # of the runs in the estimated difference
        determined = np.allclose(weights @ design, contrast)
        mean = float(contrast @ effects) if determined else np.nan
        half = quantile * (variance * float(weights @ weights)) ** 0.5
        if cell != base:
            found[cell] = Interval(mean, mean - half, mean + half, len(scores[cell]))
    return found


def least_squares(design: np.ndarray, scores: np.ndarray, level: float = 0.95) -> list[Interval]:
    """Coefficients b of scores ≈ design b, each with Student's interval; all runs scatter with one variance.

    Args:
        design: (runs, coefficients), one row for each run.
        scores: (runs,).
        level: coverage of each interval.

    Raises:
        ValueError: the runs do not determine all coefficients.
    """
    runs, coefficients = design.shape
    if np.linalg.matrix_rank(design) < coefficients:
        raise ValueError(f"{runs} runs do not determine {coefficients} coefficients; make more of them")
    inverse, freedom = np.linalg.pinv(design), runs - coefficients
    means = inverse @ scores
    variance = float(np.sum((scores - design @ means) ** 2)) / freedom if freedom else np.nan
    quantile = _quantile(level, freedom) if freedom else np.nan
    halves = quantile * (variance * (inverse**2).sum(1)) ** 0.5
    return [
        Interval(mean, mean - half, mean + half, runs)
        for mean, half in zip(means.tolist(), halves.tolist(), strict=True)
    ]


def _quantile(level: float, freedom: int) -> float:
    """Student's t that a two-sided interval of coverage ``level`` takes."""
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"the level of an interval is {level}; it must be between 0 and 1")
    return float(stdtrit(freedom, (1 + level) / 2))
