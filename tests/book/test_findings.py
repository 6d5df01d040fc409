"""What the landing page shows as found: its numbers are those of the records, and its sentences follow from them."""

from __future__ import annotations

import pytest
from lab import findings, verdicts
from lab.findings import FINDINGS, Estimate, Finding


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    return {name: make() for name, make in FINDINGS.items()}


def signs(finding: Finding) -> list[int]:
    """Of the estimates: 0 where the interval includes zero."""
    return [(1 if each.mean > 0 else -1) * each.excludes_zero for each in finding.estimates]


def test_numbers_are_those_of_the_studies(found: dict[str, Finding]) -> None:
    row = verdicts.findings("shapes").row("unroll").pooled
    assert found["gradient"].estimates[0] == Estimate("generated scenes", row.mean, row.low, row.high)
    row = verdicts.findings("cityscapes-256").row("non-local").difference
    assert found["heads"].estimates[4] == Estimate("Cityscapes, short", -row.mean, -row.high, -row.low)


def test_numbers_on_camvid_are_those_of_the_chapters(found: dict[str, Finding]) -> None:
    row = verdicts.from_more_seeds("camvid-gradient")["unroll"]
    shown = found["gradient"].estimates[2]
    assert shown.label == "CamVid"
    assert [shown.mean, shown.low, shown.high] == pytest.approx([row.mean, row.low, row.high])


def test_sentences_follow_from_the_numbers(found: dict[str, Finding]) -> None:
    assert signs(found["heads"]) == [-1, 1, 0, 1, 1]
    assert signs(found["gradient"]) == [1, 0, -1, -1]
    assert signs(found["bases"]) == [0, 0, 0, 0]
    assert signs(found["iterations"]) == [0, 0, 0, 0]
    assert signs(found["corners"]) == [-1, -1]
    *others, stride = found["stride"].estimates
    assert all(abs(stride.mean) > 4 * abs(other.mean) for other in others)
    fused, loop, flash = (each.mean for each in found["speed"].estimates)
    assert fused < loop < flash
    first, later = found["seeds"].estimates
    assert first.mean > later.mean


def test_every_finding_has_a_chapter(found: dict[str, Finding]) -> None:
    for finding in found.values():
        assert (verdicts.BOOK / f"{finding.page}.ipynb").exists()


def test_an_interval_that_touches_zero_shows_no_difference() -> None:
    assert Estimate("", 1.0, 0.5, 1.5).excludes_zero
    assert Estimate("", -1.0, -1.5, -0.5).excludes_zero
    assert not Estimate("", 0.5, -0.5, 1.5).excludes_zero
    assert not Estimate("", 0.5).excludes_zero
    assert set(findings.__all__) == {"FINDINGS", "Estimate", "Finding"}
