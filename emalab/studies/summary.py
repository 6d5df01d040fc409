"""The summary of a study's records: means over seeds, differences from the base, what is missing, what is mixed.

Scores are mean IoU in percent. Two differences are computed: paired by seed, from the runs of the two cells alone, and
pooled, with the variance of all cells of the family (`two_way_differences`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emalab.studies.config import Cell, Study
from emalab.studies.statistics import Interval, paired_difference, student_interval, two_way_differences
from emalab.tables import aligned

__all__ = [
    "SINGLE_SCALE",
    "CellSummary",
    "StudySummary",
    "format_summary",
    "provenance",
    "score",
    "scores_by_seed",
    "summarize",
    "summary_to_dict",
]

SINGLE_SCALE = "single scale"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class CellSummary:
    """One cell over its seeds. Scores are mean IoU in percent."""

    label: str
    scores: dict[int, float]
    """By seed."""
    mean: Interval
    difference: Interval
    """From the base, paired by seed; without values for the base itself."""
    pooled: Interval
    """From the base, with the variance of all cells; without values for the base itself."""
    missing: list[int]
    """Seeds without a record."""
    diverged: list[int]
    """Seeds whose loss became infinite or NaN."""
    failed: list[int]
    """Seeds without a record whose last attempt ended in an error."""


@dataclass(frozen=True)
class StudySummary:
    """A study, the records of its runs, and a row for each cell, in the study's order."""

    study: Study
    records: list[Record]
    rows: list[CellSummary]

    @property
    def base(self) -> CellSummary:
        """The row that all others are compared with."""
        return self.row(self.study.baseline.label)

    def row(self, label: str) -> CellSummary:
        """The row of a cell.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(f"the summary of {self.study.name} has no cell {label!r}")


def score(record: Record, evaluation: str | None = None) -> float | None:
    """Mean IoU of a record in percent: single scale, or that of a further evaluation; None where there is none.

    A run that diverged has none, nor has one that was not scored in that way.
    """
    if "diverged" in record:
        return None
    found = record["scores"].get(SINGLE_SCALE) if evaluation is None else record["evaluations"].get(evaluation)
    return None if found is None or found["miou"] is None else 100 * float(found["miou"])


def scores_by_seed(records: Iterable[Record], name: str, evaluation: str | None = None) -> dict[int, float]:
    """Seed → score, in percent, of the records of the recipe called ``name``."""
    found = {record["seed"]: score(record, evaluation) for record in records if record["recipe"]["name"] == name}
    return {seed: value for seed, value in sorted(found.items()) if value is not None}


def summarize(
    study: Study,
    records: Sequence[Record],
    evaluation: str | None = None,
    failed: Collection[str] = (),
    family: Study | None = None,
) -> StudySummary:
    """A row for every cell, in the study's order; with ``evaluation``, for those that are scored in that way.

    Args:
        study: whose cells to look for.
        records: of its family, in any order; others are ignored.
        evaluation: label of a further evaluation; single scale by default.
        failed: names of runs that failed, see `StudyFolder.failed`.
        family: study whose cells give the pooled variance; ``study`` itself by default.

    Raises:
        ValueError: no cell is evaluated in that way.
    """
    if evaluation is not None and evaluation not in study.evaluations:
        known = ", ".join(study.evaluations) or "none beside single scale"
        raise ValueError(f"study {study.name} has no evaluation {evaluation!r}; there are: {known}")
    names = {cell.label: study.recipe(cell).name for cell in study.cells}
    pool = family or study
    recipes = dict.fromkeys([*names.values(), *(pool.recipe(cell).name for cell in pool.cells)])
    scores = {name: scores_by_seed(records, name, evaluation) for name in recipes}
    base = names[study.baseline.label]
    pooled = two_way_differences(scores, base)

    def row(cell: Cell) -> CellSummary:
        name = names[cell.label]
        own = {record["seed"]: record for record in records if record["recipe"]["name"] == name}
        missing = [seed for seed in range(cell.seeds) if seed not in own]
        return CellSummary(
            cell.label,
            scores[name],
            student_interval(list(scores[name].values())),
            student_interval([]) if name == base else paired_difference(scores[name], scores[base]),
            pooled.get(name, student_interval([])),
            missing,
            diverged=sorted(seed for seed, record in own.items() if "diverged" in record),
            failed=[seed for seed in missing if f"{name}-seed{seed}" in failed],
        )

    rows = [row(cell) for cell in study.cells if evaluation is None or evaluation in cell.evaluations]
    return StudySummary(study, [record for record in records if record["recipe"]["name"] in names.values()], rows)


def provenance(records: Sequence[Record]) -> list[str]:
    """A line for everything that records should have in common and do not, and for those without a checksum.

    Scores of one cell, or of two that are compared, may then differ by more than the setting.
    """
    lines = []
    for title, values in _origins(records).items():
        if len(values) > 1:
            parts = ", ".join(f"{value} ({count} runs)" for value, count in sorted(values.items()))
            lines.append(f"these records mix {len(values)} {title}: {parts}")
    if unchecked := sum("checksum" not in record for record in records):
        lines.append(f"{unchecked} of {len(records)} records are from before checksums, so edits would not show")
    return lines


def _origins(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """What → value → number of records; a value that an older record lacks is "unknown"."""
    read = {
        "commits": lambda record: str(record.get("commit"))[:7],
        "devices": lambda record: str(record.get("device", "unknown")),
        "versions of torch": lambda record: str(record.get("versions", {}).get("torch", "unknown")),
        "programs": lambda record: str(record.get("program", "unknown")),
    }
    found: dict[str, dict[str, int]] = {what: {} for what in read}
    for record in records:
        for what, value_of in read.items():
            value = value_of(record)
            found[what][value] = found[what].get(value, 0) + 1
    return found


def summary_to_dict(
    study: Study, records: Sequence[Record], failed: Collection[str] = (), family: Study | None = None
) -> dict[str, Any]:
    """Plain values for JSON: every way of scoring → its cells, and where the numbers come from. NaN as None."""

    def plain(row: CellSummary) -> dict[str, Any]:
        intervals = {key: getattr(row, key)._asdict() for key in ("mean", "difference", "pooled")}
        finite = {
            key: {name: None if value != value else value for name, value in interval.items()}
            for key, interval in intervals.items()
        }
        return {**vars(row), **finite}

    def rows(evaluation: str | None) -> list[dict[str, Any]]:
        return [plain(row) for row in summarize(study, records, evaluation, failed, family).rows]

    return {
        "study": study.name,
        "question": study.question,
        "test": study.test,
        "unit": "mean IoU in percent",
        "runs": len(study.runs()),
        "records": len(summarize(study, records).records),
        **{what.replace(" ", "_"): sorted(values) for what, values in _origins(records).items()},
        "scores": {SINGLE_SCALE: rows(None), **{label: rows(label) for label in study.evaluations}},
    }


def format_summary(rows: Sequence[CellSummary]) -> str:
    """An aligned table: mean, differences from the base with half their 95 % intervals, and what is missing."""
    lines = [("cell", "seeds", "mIoU", "− base, paired", "− base, pooled", "")]
    for row in rows:
        gaps = {
            "diverged": row.diverged,
            "failed": row.failed,
            "missing": [seed for seed in row.missing if seed not in row.failed],
        }
        notes = [f"{what}: seed {', '.join(map(str, seeds))}" for what, seeds in gaps.items() if seeds]
        numbers = (format_interval(row.mean, ""), format_interval(row.difference), format_interval(row.pooled))
        lines.append((row.label, str(len(row.scores)), *numbers, "; ".join(notes)))
    return "\n".join(aligned(lines, right={1, 2, 3, 4}))


def format_interval(interval: Interval, sign: str = "+") -> str:
    """Mean ± half of the interval, where there are any."""
    if interval.mean != interval.mean:
        return ""
    half = interval.half_width
    return f"{interval.mean:{sign}.2f}" + ("" if half != half else f" ± {half:.2f}")
