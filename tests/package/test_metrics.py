"""Scores against a count by hand, the benchmark's conventions, and the authors' own scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from emalab.data import get_spec
from emalab.data.spec import DatasetSpec
from emalab.data.voc import voc_palette
from emalab.metrics import SegmentationMetric, scores_from_confusion

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "metric.npz")
Compare = Callable[..., None]
SPEC = DatasetSpec("abc", "ABC", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), ("val",), "made up")


def counted(prediction: Tensor, mask: Tensor, spec: DatasetSpec = SPEC) -> SegmentationMetric:
    metric = SegmentationMetric(spec)
    metric.update(prediction, mask)
    return metric


def labels(*rows: list[int]) -> Tensor:
    return torch.tensor([rows], dtype=torch.uint8)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 3))
def test_is_a_count_by_hand(seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 2, 255], (batch, 5, 7)).astype(np.uint8)
    mask[0, 0, :3] = 0, 1, 2
    prediction = rng.integers(3, size=mask.shape)
    scores = counted(torch.from_numpy(prediction), torch.from_numpy(mask)).compute()
    known = mask != 255
    iou = [
        ((prediction == c) & (mask == c)).sum() / (((prediction == c) & known) | (mask == c)).sum() for c in range(3)
    ]
    assert list(scores.iou.values()) == pytest.approx(iou)
    assert scores.miou == pytest.approx(np.mean(iou))
    assert scores.pixel_accuracy == pytest.approx((prediction == mask)[known].mean())
    assert scores.images == batch


def test_parity_with_the_authors_scores(compare: Compare) -> None:
    spec = get_spec("voc")
    metric = SegmentationMetric(spec)
    for prediction, mask in zip(REFERENCE["pred"], REFERENCE["label"], strict=True):
        metric.update(torch.from_numpy(prediction)[None], torch.from_numpy(mask)[None])
    scores = metric.compute()
    compare("metrics: confusion matrix", metric.confusion(), REFERENCE["hist"], 0)
    iou, expected = np.array(list(scores.iou.values())), REFERENCE["class_iou"]
    assert np.array_equal(np.isnan(iou), np.isnan(expected))
    compare("metrics: IoU of every class", iou[~np.isnan(iou)], expected[~np.isnan(expected)], 1e-12)
    for name, ours, theirs in (
        ("mIoU", scores.miou, "mIoU"),
        ("pixel accuracy", scores.pixel_accuracy, "pAcc"),
        ("mean class accuracy", scores.mean_class_accuracy, "mAcc"),
        ("frequency-weighted IoU", scores.frequency_weighted_iou, "fIoU"),
    ):
        compare(f"metrics: {name}", ours, REFERENCE[theirs], 1e-12)


class TestConventions:
    def test_absent_class_is_left_out(self) -> None:
        scores = counted(labels([0, 0, 1]), labels([0, 1, 1])).compute()
        assert math.isnan(scores.iou["c"])
        assert scores.miou == pytest.approx((1 / 2 + 1 / 2) / 2)
        assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["iou"]["c"] is None

    def test_class_that_is_predicted_only_counts_as_zero(self) -> None:
        scores = counted(labels([0, 2, 1]), labels([0, 1, 1])).compute()
        assert scores.iou["c"] == 0
        assert scores.miou == pytest.approx((1 + 1 / 2 + 0) / 3)
        assert scores.mean_class_accuracy == pytest.approx((1 + 1 / 2) / 2)  # labeled nowhere: left out
        assert scores.frequency_weighted_iou == pytest.approx(1 / 3 * 1 + 2 / 3 * 1 / 2)
        written = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
        assert written["mean_class_accuracy"] == scores.mean_class_accuracy
        assert written["frequency_weighted_iou"] == scores.frequency_weighted_iou

    def test_ignored_pixels_count_nowhere(self) -> None:
        scores = counted(labels([0, 1, 2]), labels([0, 1, 255])).compute()
        assert (scores.miou, scores.pixel_accuracy) == (1, 1)
        assert math.isnan(scores.iou["c"])

    def test_headline_averages_over_its_classes(self) -> None:
        spec = replace(SPEC, report_name="a and c", report_classes=("a", "c"))
        scores = counted(labels([0, 1, 1, 2]), labels([0, 1, 2, 2]), spec).compute()
        assert scores.iou == pytest.approx({"a": 1, "b": 1 / 2, "c": 1 / 2})
        assert scores.miou == pytest.approx(3 / 4)
        assert str(scores) == "a and c 75.00, pixel accuracy 75.00"

    def test_headline_without_any_of_its_classes_is_no_number(self) -> None:
        spec = replace(SPEC, report_classes=("c",))
        scores = counted(labels([0]), labels([0]), spec).compute()
        assert math.isnan(scores.miou)
        assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["miou"] is None


class TestManyClasses:
    SPEC = DatasetSpec(
        "many", "Many", tuple(f"c{i}" for i in range(1500)), voc_palette(1500), ("val",), "made up", ignore_index=65535
    )

    def random(self, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.randint(1500, (2, 40, 50), generator=generator, dtype=torch.int32)
        prediction = mask.where(torch.rand(mask.shape, generator=generator) < 0.5, (mask * 7 + 3) % 1500)
        return prediction, mask.masked_fill(torch.rand(mask.shape, generator=generator) < 0.1, 65535)

    def test_scores_are_those_of_the_matrix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which is not kept: it would grow with the square of their number."""
        metric, batches = SegmentationMetric(self.SPEC), [self.random(0), self.random(1)]
        monkeypatch.setattr("emalab.metrics._MATRIX_CLASSES", 1500)
        whole = SegmentationMetric(self.SPEC)
        for batch in batches:
            whole.update(*batch)
        expected = whole.compute().to_dict()
        monkeypatch.setattr("emalab.metrics._MATRIX_CLASSES", 1499)
        for batch in batches:
            metric.update(*batch)
        assert metric.compute().to_dict() == expected
        assert expected["images"] == 4
        assert metric._counts.numel() == 3 * 1500

    def test_the_matrix_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"many has 1500 classes; the confusion matrix is kept for up to 1024;"):
            SegmentationMetric(self.SPEC).confusion()

    def test_label_of_no_class(self) -> None:
        wrong = torch.tensor([[[1500]]], dtype=torch.int32)
        with pytest.raises(ValueError, match="label 1500 is not in many: its labels are 0 to 1499, and 65535 for"):
            counted(torch.zeros_like(wrong), wrong, self.SPEC)

    def test_nothing_to_count(self) -> None:
        ignored = torch.full((1, 2, 2), 65535, dtype=torch.int32)
        with pytest.raises(ValueError, match=r"no labeled pixel of many was counted; is every label 65535 \(ignored\)"):
            counted(torch.zeros_like(ignored), ignored, self.SPEC).compute()


def test_logits_are_labeled_by_their_largest() -> None:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    assert counted(logits, mask).compute() == counted(logits.argmax(1), mask).compute()


def test_batches_add_up() -> None:
    mask, prediction = (torch.randint(3, (4, 6, 6), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    whole, parts = counted(prediction, mask), SegmentationMetric(SPEC)
    parts.update(prediction[:1], mask[:1])
    parts.compute()  # a look in between changes nothing
    parts.update(prediction[1:], mask[1:])
    assert parts.compute() == whole.compute()


class TestErrors:
    def test_other_sizes(self) -> None:
        with pytest.raises(ValueError, match=r"predictions \(1, 1, 2\) and labels \(1, 1, 3\) differ in size"):
            counted(labels([0, 1]), labels([0, 1, 2]))

    def test_label_of_no_class(self) -> None:
        with pytest.raises(ValueError, match="label 7 is not in abc: its labels are 0 to 2, and 255 for ignored"):
            counted(labels([0, 1]), labels([0, 7]))

    @pytest.mark.parametrize("prediction", [labels([0, 3]), torch.zeros(1, 4, 1, 2)], ids=["labels", "logits"])
    def test_prediction_of_no_class(self, prediction: Tensor) -> None:
        """It would be counted as some other class."""
        with pytest.raises(ValueError, match="abc has 3 classes"):
            counted(prediction, labels([0, 1]))

    def test_nothing_to_count(self) -> None:
        with pytest.raises(ValueError, match=r"no labeled pixel of abc was counted; is every label 255 \(ignored\)"):
            counted(labels([0, 1]), labels([255, 255])).compute()

    def test_matrix_of_another_benchmark(self) -> None:
        with pytest.raises(ValueError, match=r"abc has 3 classes; got a confusion matrix \(2, 2\)"):
            scores_from_confusion(torch.eye(2), SPEC)
