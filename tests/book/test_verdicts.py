"""What the book's chapters on ablations compute from the records of studies."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from lab import verdicts
from lab.verdicts import STUDIES

from emalab.studies import StudyFolder
from emalab.studies.statistics import Interval, student_interval


def test_differences_are_those_of_the_records() -> None:
    """The scores are the records', seed by seed, in percent."""
    found = verdicts.findings("shapes-maintenance")
    study = STUDIES["shapes-maintenance"]
    records = {
        (record["cell"], record["seed"]): record["scores"]["single scale"]["miou"]
        for record in StudyFolder(verdicts.RECORDS / study.family).records(study)
    }
    learned, base = found.row("learned"), found.base
    differences = []
    for seed in learned.scores:
        assert learned.scores[seed] == pytest.approx(100 * records["learned", seed])
        differences.append(learned.scores[seed] - base.scores[seed])
    assert learned.difference == student_interval(differences)
    assert base.difference.num_values == 0


def test_a_verdict_table_says_better_where_the_interval_excludes_zero() -> None:
    """A row for every cell; the baseline has no difference; the words and the bold rows follow the interval shown."""
    found = verdicts.findings("shapes-maintenance")
    html = verdicts.verdict_table(found, "scenes", {"learned": "by gradient"}).to_html()
    texts = [re.sub(r"<.*?>", "", row).split() for row in html.split("<tr>")[2:]]
    assert len(texts) == len(found.rows)
    (learned,) = (" ".join(text) for text in texts if text[:2] == ["by", "gradient"])
    assert f"5 {found.row('learned').mean.mean:.1f} {verdicts.interval_text(found.row('learned').pooled)}" in learned
    assert [text[-1] for text in texts].count("better") == 1
    assert [text[-1] for text in texts].count("baseline") == 1
    style = verdicts.verdict_table(found, "scenes", differences={"frozen": Interval(-2.0, -3.0, -1.0, 5)})
    bold = {row for (row, _), props in style._compute().ctx.items() if ("font-weight", "bold") in props}
    labels = [row.label for row in found.rows]
    assert bold == {labels.index("learned"), labels.index("frozen")}


@pytest.mark.parametrize(
    ("interval", "words", "text"),
    [
        (Interval(-0.15, -1.534, 1.23, 5), "no detectable difference", "−0.15 [−1.53, +1.23]"),
        (Interval(-13.76, -14.36, -13.16, 3), "worse", "−13.8 [−14.4, −13.2]"),
        (Interval(2.0, 1.0, 3.0, 3), "better", "+2.00 [+1.00, +3.00]"),
        (Interval(2.0, float("nan"), float("nan"), 1), "no interval", "+2.00"),
    ],
)
def test_words_of_an_interval(interval: Interval, words: str, text: str) -> None:
    assert verdicts.verdict_of(interval) == words
    assert verdicts.interval_text(interval) == text


def test_every_record_of_a_study_is_complete() -> None:
    """No record is of a recipe that the catalog does not have, none is damaged, and no shapes run is missing."""
    for family in sorted(path.name for path in verdicts.RECORDS.iterdir() if (path / "records").is_dir()):
        study, folder = STUDIES[family], StudyFolder(verdicts.RECORDS / family)
        names = {run.name for run in study.runs()}
        files = {path.stem for path in folder.root.glob("records/*.json")}
        assert files <= names, f"{family}: {sorted(files - names)[:3]} belong to no cell"
        assert len(folder.records(study)) == len(files)
        if family == "shapes":
            assert files == names


def test_repeated_runs_are_of_the_study() -> None:
    """Each has a record of the same recipe and seed in the study, from another commit."""
    folder = verdicts.RECORDS.parent
    repeated = json.loads((folder / "voc-animals-repeat.json").read_text())["records"]
    study = STUDIES["voc-animals"]
    records = {(r["recipe"]["name"], r["seed"]): r for r in StudyFolder(verdicts.RECORDS / study.family).records(study)}
    assert repeated
    for first in repeated:
        again = records[first["recipe"]["name"], first["seed"]]
        assert first["recipe"] == again["recipe"]
        assert first["device"] == again["device"]
        assert first["commit"] != again["commit"]


def test_figure_has_a_row_for_every_cell_but_the_base() -> None:
    found = verdicts.findings("shapes-maintenance")
    figure = verdicts.difference_figure({"scenes": found}, {"frozen": "left at random"})
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [
        "left at random" if row.label == "frozen" else row.label for row in found.rows if row != found.base
    ]


def test_more_seeds_of_the_base_count() -> None:
    """The mean of a cell less that of all runs of the base, the first ones once."""
    rows = {row.label: row.scores for row in verdicts.findings("camvid-heads").rows}
    base = rows["EMA"] | verdicts.findings("camvid-again").base.scores
    assert len(base) > len(rows["EMA"])
    found = verdicts.from_more_seeds("camvid-heads")
    assert found.keys() == rows.keys() - {"EMA"}
    for label, interval in found.items():
        expected = np.mean(list(rows[label].values())) - np.mean(list(base.values()))
        assert interval.mean == pytest.approx(expected)
        assert interval.num_values == len(rows[label])
