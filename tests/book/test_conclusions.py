"""The comparisons over all data sets: which interval each data set contributes, and what is said of them."""

from __future__ import annotations

import pytest
from lab import conclusions, verdicts
from lab.conclusions import COMPARISONS, DATA_SETS, differences, elsewhere

from emalab.studies.statistics import Interval


def test_every_data_set_answers_as_its_chapter_does() -> None:
    assert differences("VOC animals")["T=1"] == verdicts.findings("voc-animals").row("T=1").pooled
    assert differences("CamVid")["frozen"] == verdicts.from_more_seeds("camvid")["frozen"]
    assert differences("Cityscapes 256")["K=16"] == verdicts.findings("cityscapes-256").row("K=16").difference
    for data, family in DATA_SETS.items():
        last = verdicts.findings(f"{family}-gradient").row("last")
        found = differences(data)["last"]
        assert found.mean == pytest.approx(
            (verdicts.from_more_seeds("camvid-gradient")["last"] if data == "CamVid" else last.pooled).mean
        )


def test_stride_8_is_compared_with_16_whichever_is_the_baseline() -> None:
    row = verdicts.findings("cityscapes-256").row("trained at stride 16").difference
    assert differences("Cityscapes 256")["stride"] == Interval(-row.mean, -row.high, -row.low, row.num_values)
    assert differences("CamVid")["stride"] == verdicts.from_more_seeds("camvid")["trained at stride 8"]
    assert "stride" not in differences("VOC animals")


def test_a_verdict_names_the_data_sets_whose_interval_excludes_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "generated scenes": {"last": Interval(2.0, 1.0, 3.0, 5)},
        "VOC animals": {"last": Interval(-1.0, -2.0, 0.5, 5)},
        "CamVid": {"last": Interval(-2.0, -3.0, -1.0, 5), "frozen": Interval(0.1, -1.0, 1.2, 5)},
        "Cityscapes 256": {"last": Interval(-2.0, -2.5, -1.5, 5)},
    }
    monkeypatch.setattr(conclusions, "differences", found.__getitem__)
    assert elsewhere("last", "Cityscapes 256") == "better on generated scenes; worse on CamVid"
    assert elsewhere("last", "CamVid") == "better on generated scenes; worse on Cityscapes 256"
    assert elsewhere("frozen", "Cityscapes 256") == "no detectable difference"


def test_every_comparison_is_on_the_third_data_set() -> None:
    """Else a row of the chapter's figure would be empty."""
    wanted = {label for cells in COMPARISONS.values() for label in cells}
    assert set(differences("Cityscapes 256")) == set(differences("CamVid")) == wanted


def test_the_study_was_run_as_it_was_fixed() -> None:
    found = verdicts.findings("cityscapes-256")
    assert {row.label: len(row.scores) for row in found.rows} == {cell.label: cell.seeds for cell in found.study.cells}
    for record in found.records:
        fixed = record["preregistered"]
        assert (fixed["question"], fixed["test"]) == (found.study.question, found.study.test)
        assert record["scores"]["single scale"]["report_name"] == "cityscapes-256-15"
