"""What was found, as the landing page shows it: each finding with its numbers, computed from the book's records."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from emalab.results import load_records
from emalab.studies.statistics import Interval, paired_difference, student_interval
from emalab.studies.summary import StudySummary
from lab import verdicts

__all__ = ["FINDINGS", "Estimate", "Finding"]

DATA_SETS = {
    "shapes": "generated scenes",
    "voc-animals": "animals",
    "camvid": "CamVid",
    "cityscapes-256": "Cityscapes",
}


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, if it has one."""

    label: str
    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        return (
            self.low is not None and self.high is not None and self.low * self.high > 0
        )


@dataclass(frozen=True)
class Finding:
    """What a chapter has found: a sentence, the numbers behind it, and what they are."""

    title: str
    page: str
    """The chapter, without its folder and ending."""
    quantity: str
    """Of the numbers, with their unit."""
    estimates: Sequence[Estimate]


@cache
def _study(name: str) -> StudySummary:
    return verdicts.findings(name)


def _estimate(label: str, found: Interval, sign: int = 1) -> Estimate:
    """An interval under its label; ``sign`` −1 turns the difference round."""
    low, high = sorted((sign * found.low, sign * found.high))
    return Estimate(label, sign * found.mean, low, high)


def _difference(study: str, cell: str, label: str, sign: int = 1) -> Estimate:
    """Of a cell from the study's base; ``sign`` −1 subtracts the cell from the base."""
    return _estimate(label, verdicts.judged_by(study)[cell], sign)


def _on_all(cell: str) -> list[Estimate]:
    return [_difference(study, cell, label) for study, label in DATA_SETS.items()]


def _heads_of(folder: Path, pattern: str) -> Interval:
    """EM − non-local, paired by seed, from the records of single runs."""
    scores: dict[str, dict[int, float]] = {}
    for record in load_records(folder, pattern):
        head = record["recipe"]["model"]["context"]
        score = 100 * record["scores"]["single scale"]["miou"]
        scores.setdefault(head, {})[record["seed"]] = score
    return paired_difference(scores["ema"], scores["non_local"])


def heads() -> Finding:
    planned = verdicts.RECORDS / "voc-animals-heads" / "heads" / "records"
    final = verdicts.BOOK / "results"
    return Finding(
        "On photographs EM attention scores like non-local attention or slightly higher",
        "third_data_set",
        "EM − non-local, points of mIoU; each head at its own rate",
        [
            _difference("shapes", "non-local", "generated scenes", sign=-1),
            _estimate("animals", _heads_of(planned, "*.json")),
            _estimate("CamVid, stride 8", _heads_of(final, "camvid-lite2*-seed*.json")),
            _difference("camvid", "non-local", "CamVid, short", sign=-1),
            _difference("cityscapes-256", "non-local", "Cityscapes, short", sign=-1),
        ],
    )


def gradient() -> Finding:
    return Finding(
        "A gradient through EM helps on generated scenes and hurts on street scenes",
        "gradient_study",
        "gradient through all iterations − none, points of mIoU",
        _on_all("unroll"),
    )


def bases() -> Finding:
    return Finding(
        "Bases that are never updated score like those that follow the features",
        "keeping_bases",
        "frozen − moving average, points of mIoU",
        _on_all("frozen"),
    )


def iterations() -> Finding:
    return Finding(
        "One iteration of EM scores like three",
        "how_many",
        "T = 1 − T = 3, points of mIoU",
        _on_all("T=1"),
    )


def stride() -> Finding:
    cells = {
        "one iteration": "T=1",
        "16 bases": "K=16",
        "twice the concentration λ": "lambda=2.0",
        "output stride 8": "trained at stride 8",
    }
    return Finding(
        "The output stride matters more than T, K and λ",
        "how_many",
        "change − default (T = 3, K = 64, λ = 1, stride 16), points of mIoU on street scenes",
        [_difference("camvid", cell, label) for label, cell in cells.items()],
    )


def corners() -> Finding:
    return Finding(
        "Aligned corners on crops of the wrong size cost points, and raise no error",
        "reproductions",
        "aligned corners − default, points of mIoU",
        [
            _difference("voc-animals", "aligned corners", "animals"),
            _difference("camvid", "aligned corners", "CamVid"),
        ],
    )


def seeds() -> Finding:
    scores = _study("camvid-again").base.scores
    first = [score for seed, score in scores.items() if seed < 5]
    later = [score for seed, score in scores.items() if seed >= 5]

    def estimate(label: str, values: list[float]) -> Estimate:
        found = student_interval(values)
        return Estimate(label, found.mean, found.low, found.high)

    return Finding(
        "Five seeds can mislead: the baseline's first five scored above the next nine",
        "how_many",
        "mean mIoU of the same recipe on street scenes",
        [
            estimate("seeds 0 to 4", first),
            estimate(f"the next {len(later)}", later),
        ],
    )


def speed() -> Finding:
    path = verdicts.BOOK / "results" / "bench-cards-h200.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    size = {
        "b": 16,
        "n": 65**2,
        "k": 64,
        "c": 512,
        "iterations": 3,
        "dtype": "bfloat16",
    }
    found = {
        row["method"]: 1000 * median(row["replayed"])
        for row in rows
        if row["size"] == size
    }
    methods = {
        "EM, one fused kernel": "em-fused",
        "EM, the package's loop": "em-torch",
        "non-local, FlashAttention": "non-local-flash",
    }
    return Finding(
        "EM attention is faster than FlashAttention, most of all as one fused kernel",
        "cost",
        "milliseconds, forward: 16 images of 65 × 65 positions, bfloat16, H200, CUDA graph",
        [Estimate(label, found[method]) for label, method in methods.items()],
    )


FINDINGS: dict[str, Callable[[], Finding]] = {
    "heads": heads,
    "gradient": gradient,
    "bases": bases,
    "iterations": iterations,
    "stride": stride,
    "corners": corners,
    "speed": speed,
    "seeds": seeds,
}
