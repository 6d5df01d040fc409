"""What the book's chapters on ablations compute from the records of studies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lab import ablation
from scipy import stats

from emalab.studies import StudyFolder
from emalab.studies.catalog import get_study


def test_students_interval() -> None:
    values = [1.0, 2.5, 2.0, 4.0]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    found = ablation.student(values)
    assert (found.mean, found.num_values) == (2.375, 4)
    np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high))
    assert np.isnan(ablation.student([3.0]).low)


class TestTwoWay:
    def test_two_cells_are_a_paired_comparison(self) -> None:
        scores = {"base": {0: 1.0, 1: 2.5, 2: 2.0}, "other": {0: 1.5, 1: 4.0, 2: 2.25}}
        found = ablation.two_way(scores, "base")
        assert list(found) == ["other"]
        np.testing.assert_allclose(found["other"], ablation.student([0.5, 1.5, 0.25]))

    def test_without_seeds_every_run_counts(self) -> None:
        """Two cells of four and three runs: Student's test of two samples."""
        base, other = {0: 1.0, 1: 2.5, 2: 2.0, 7: 3.0}, {0: 1.5, 1: 4.0, 2: 2.25}
        found = ablation.two_way({"base": base, "other": other}, "base", seeds_matter=False)["other"]
        samples = list(other.values()), list(base.values())
        expected = stats.ttest_ind(*samples).confidence_interval()
        assert found.mean == pytest.approx(np.mean(samples[0]) - np.mean(samples[1]))
        np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high))

    def test_a_missing_run_does_not_tilt_the_comparison(self) -> None:
        """The base lacks the seed on which everything scores high."""
        seeds, cells = {0: 0.0, 1: 1.0, 2: 10.0}, {"base": 50.0, "a": 52.0, "b": 47.0}
        scores = {cell: {seed: level + effect for seed, effect in seeds.items()} for cell, level in cells.items()}
        del scores["base"][2]
        found = ablation.two_way(scores, "base")
        assert found["a"][:3] == pytest.approx((2, 2, 2))
        assert found["b"][:3] == pytest.approx((-3, -3, -3))

    def test_intervals_hold_what_they_promise(self) -> None:
        """Of 400 studies whose cells differ in nothing but noise, 95 % cover the true difference, 0."""
        generator = np.random.default_rng(0)
        covered = 0
        for _ in range(400):
            noise = generator.normal(size=(6, 3)) + generator.normal(size=3)
            scores = {str(cell): dict(enumerate(map(float, row))) for cell, row in enumerate(noise)}
            interval = ablation.two_way(scores, "0")["1"]
            covered += interval.low < 0 < interval.high
        assert 0.92 < covered / 400 < 0.98

    def test_one_seed_has_no_interval(self) -> None:
        found = ablation.two_way({"base": {0: 1.0}, "other": {0: 3.0}, "none": {}}, "base")
        assert list(found) == ["other"]
        assert found["other"].mean == pytest.approx(2)
        assert np.isnan(found["other"].low)


def test_differences_are_those_of_the_records() -> None:
    """The scores are the records', seed by seed, in percent."""
    found = ablation.findings("shapes-maintenance")
    study = get_study("shapes-maintenance")
    records = {
        (record["cell"], record["seed"]): record["scores"]["single scale"]["miou"]
        for record in StudyFolder(ablation.STUDIES / study.family).records(study)
    }
    learned, base = found.row("learned"), found.base
    differences = []
    for seed in learned.scores:
        assert learned.scores[seed] == pytest.approx(100 * records["learned", seed])
        differences.append(learned.scores[seed] - base.scores[seed])
    assert learned.difference == ablation.student(differences)
    assert base.difference.num_values == 0
    text = ablation.table(found, {"learned": "by gradient"})
    (line,) = (line for line in text.splitlines() if line.startswith("by gradient"))
    assert line.split()[2:5] == ["5", f"{learned.mean.mean:.2f}", f"{learned.difference.mean:+.2f}"]
    assert f"{len(found.records)} runs" in text


def test_every_record_of_a_study_is_complete() -> None:
    """No record is of a recipe that the catalog does not have, none is damaged, and no shapes run is missing."""
    for family in sorted(path.name for path in ablation.STUDIES.iterdir()):
        study, folder = get_study(family), StudyFolder(ablation.STUDIES / family)
        names = {run.name for run in study.runs()}
        files = {path.stem for path in folder.root.glob("records/*.json")}
        assert files <= names, f"{family}: {sorted(files - names)[:3]} belong to no cell"
        assert len(folder.records(study)) == len(files)
        if family == "shapes":
            assert files == names


def test_repeated_runs_are_of_the_study() -> None:
    """Each has a record of the same recipe and seed in the study, from another commit."""
    folder = ablation.STUDIES.parent
    repeated = json.loads((folder / "voc-animals-repeat.json").read_text())["records"]
    study = get_study("voc-animals")
    records = {(r["recipe"]["name"], r["seed"]): r for r in StudyFolder(ablation.STUDIES / study.family).records(study)}
    assert repeated
    for first in repeated:
        again = records[first["recipe"]["name"], first["seed"]]
        assert first["recipe"] == again["recipe"]
        assert first["device"] == again["device"]
        assert first["commit"] != again["commit"]


def test_figure_has_a_row_for_every_cell_but_the_base() -> None:
    found = ablation.findings("shapes-maintenance")
    figure = ablation.difference_figure({"scenes": found}, {"frozen": "left at random"})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [
        "left at random" if row.label == "frozen" else row.label for row in found.rows if row != found.base
    ]


def test_more_seeds_of_the_base_count() -> None:
    """The mean of a cell less that of all runs of the base, the first ones once."""
    rows = {row.label: row.scores for row in ablation.findings("camvid-heads").rows}
    base = rows["EMA"] | ablation.findings("camvid-again").base.scores
    assert len(base) > len(rows["EMA"])
    found = ablation.from_more_seeds("camvid-heads")
    assert found.keys() == rows.keys() - {"EMA"}
    for label, interval in found.items():
        expected = np.mean(list(rows[label].values())) - np.mean(list(base.values()))
        assert interval.mean == pytest.approx(expected)
        assert interval.num_values == len(rows[label])
