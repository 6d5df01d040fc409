"""What the records of a study say: means over seeds, their intervals, and paired differences from the base."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from emalab.studies.config import Study

__all__ = [
    "SINGLE_SCALE",
    "CellSummary",
    "Interval",
    "bootstrap_interval",
    "format_summary",
    "paired_difference",
    "score",
    "scores_by_seed",
    "summarize",
    "summary_to_dict",
]

SINGLE_SCALE = "single scale"


class Interval(NamedTuple):
    """A mean with its bootstrap interval; NaN where there are too few values."""

    mean: float
    low: float
    high: float
    num_values: int


@dataclass(frozen=True)
class CellSummary:
    """One cell over its seeds. Scores are mean IoU in [0, 1]."""

    label: str
    scores: dict[int, float]
    """By seed."""
    mean: Interval
    difference: Interval
    """From the base, over the seeds that both have; of the base itself, nothing."""
    missing: list[int]
    """Seeds without a record."""
    diverged: list[int]
    """Seeds whose loss became infinite or NaN."""
    failed: list[int]
    """Seeds without a record whose last attempt ended in an error."""


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of ``values`` and its percentile bootstrap interval (Efron & Tibshirani, 1993, §13.3).

    Over the few seeds of a study it is too narrow: with n normal values it is about √((n−1)/n) · 1.96/t times as wide
    as Student's interval, t its quantile: 0.37 for 3 values, 0.63 for 5.

    Args:
        values: independent ones; one or none has no interval.
        level: coverage aimed at.
        resamples: how many samples, of as many values, to draw with replacement.
        seed: of the draws; the interval is a function of its arguments alone.
    """
    count = len(values)
    if count < 2:
        return Interval(float(values[0]) if count else np.nan, np.nan, np.nan, count)
    array = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    low, high = np.quantile(array[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high), count)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float], **options: Any) -> Interval:
    """Mean of ours − theirs over the seeds that both have, with the interval of `bootstrap_interval`."""
    common = sorted(ours.keys() & theirs.keys())
    return bootstrap_interval([ours[seed] - theirs[seed] for seed in common], **options)


def score(record: Mapping[str, Any], evaluation: str | None = None) -> float | None:
    """Mean IoU of a record: single scale, or that of a further evaluation; None where there is none.

    A run that diverged has none, nor has one that was not scored in that way.
    """
    if "diverged" in record:
        return None
    found = record["scores"].get(SINGLE_SCALE) if evaluation is None else record["evaluations"].get(evaluation)
    return None if found is None or found["miou"] is None else float(found["miou"])


def scores_by_seed(records: Iterable[Mapping[str, Any]], name: str, evaluation: str | None = None) -> dict[int, float]:
    """Seed → score of the records of the recipe called ``name``."""
    found = {record["seed"]: score(record, evaluation) for record in records if record["recipe"]["name"] == name}
    return {seed: value for seed, value in sorted(found.items()) if value is not None}


def summarize(
    study: Study,
    records: Sequence[Mapping[str, Any]],
    evaluation: str | None = None,
    failed: Collection[str] = (),
) -> list[CellSummary]:
    """A summary of every cell, in the study's order; with ``evaluation``, of those that are scored in that way.

    Args:
        study: whose cells to look for.
        records: of its family, in any order; others are ignored.
        evaluation: label of a further evaluation; single scale by default.
        failed: names of runs that failed, see `StudyFolder.failed`.

    Raises:
        ValueError: no cell is evaluated in that way.
    """
    if evaluation is not None and evaluation not in study.evaluations:
        known = ", ".join(study.evaluations) or "none beside single scale"
        raise ValueError(f"study {study.name} has no evaluation {evaluation!r}; there are: {known}")
    base = scores_by_seed(records, study.recipe(study.baseline).name, evaluation)
    summaries = []
    for cell in study.cells:
        if evaluation is not None and evaluation not in cell.evaluations:
            continue
        name = study.recipe(cell).name
        scores = scores_by_seed(records, name, evaluation)
        own = {record["seed"]: record for record in records if record["recipe"]["name"] == name}
        summaries.append(
            CellSummary(
                cell.label,
                scores,
                bootstrap_interval(list(scores.values())),
                bootstrap_interval([]) if cell == study.baseline else paired_difference(scores, base),
                missing=[seed for seed in range(cell.seeds) if seed not in own],
                diverged=sorted(seed for seed, record in own.items() if "diverged" in record),
                failed=[seed for seed in range(cell.seeds) if seed not in own and f"{name}-seed{seed}" in failed],
            )
        )
    return summaries


def summary_to_dict(study: Study, records: Sequence[Mapping[str, Any]], failed: Collection[str] = ()) -> dict[str, Any]:
    """Plain values for JSON: every way of scoring → its cells, and where the numbers come from. NaN as None."""

    def interval(of: Interval) -> dict[str, float | int | None]:
        return {key: None if value != value else value for key, value in of._asdict().items()}

    def cells(evaluation: str | None) -> list[dict[str, Any]]:
        return [
            {**vars(cell), "mean": interval(cell.mean), "difference": interval(cell.difference)}
            for cell in summarize(study, records, evaluation, failed)
        ]

    return {
        "study": study.name,
        "runs": len(study.runs()),
        "records": len(records),
        "commits": sorted({str(record["commit"]) for record in records}),
        "devices": sorted({record["device"] for record in records}),
        "scores": {SINGLE_SCALE: cells(None), **{label: cells(label) for label in study.evaluations}},
    }


def format_summary(summaries: Sequence[CellSummary]) -> str:
    """An aligned table in percent: mean, interval, difference from the base with its interval, and what is amiss."""
    rows = [("cell", "seeds", "mIoU", "95 % interval", "− base", "95 % interval", "")]
    for cell in summaries:
        amiss = [
            f"{what}: seed {', '.join(map(str, seeds))}"
            for what, seeds in (
                ("diverged", cell.diverged),
                ("failed", cell.failed),
                ("missing", [seed for seed in cell.missing if seed not in cell.failed]),
            )
            if seeds
        ]
        mean, difference = (_in_percent(of, sign) for of, sign in ((cell.mean, ""), (cell.difference, "+")))
        rows.append((cell.label, str(len(cell.scores)), *mean, *difference, "; ".join(amiss)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{text:<{width}}" if i in (0, 6) else f"{text:>{width}}" for i, (text, width) in
                  enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )  # fmt: skip


def _in_percent(of: Interval, sign: str) -> tuple[str, str]:
    mean = "" if of.mean != of.mean else f"{100 * of.mean:{sign}.2f}"
    ends = "" if of.low != of.low else f"{100 * of.low:{sign}.2f} … {100 * of.high:{sign}.2f}"
    return mean, ends
