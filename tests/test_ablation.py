"""What the book's chapters on ablations compute from the records of studies."""

from __future__ import annotations

import ablation
import numpy as np
import pytest
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


def test_figure_has_a_row_for_every_cell_but_the_base() -> None:
    found = ablation.findings("shapes-maintenance")
    figure = ablation.difference_figure({"scenes": found}, {"frozen": "left at random"})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [
        "left at random" if row.label == "frozen" else row.label for row in found.rows if row != found.base
    ]
