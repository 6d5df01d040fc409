"""Scores of a segmentation, from one confusion matrix over the whole data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emalab.data.spec import DatasetSpec

__all__ = ["SegmentationMetric", "SegmentationScores", "scores_from_confusion"]

_MATRIX_CLASSES = 1024  # up to which a metric keeps the confusion matrix, of 8 bytes a cell


@dataclass(frozen=True)
class SegmentationScores:
    """Scores in [0, 1] over a whole split, with the conventions of the VOC benchmark and the authors' code.

    A class that is predicted somewhere and labeled nowhere has IoU 0; a class that is neither has IoU NaN and is left
    out of ``miou``. A class that is labeled nowhere, predicted or not, is left out of ``mean_class_accuracy`` and has
    no weight in ``frequency_weighted_iou``; both are over all classes, whatever the headline's. Pixels with the ignored
    label count nowhere.
    """

    miou: float
    """Mean IoU over the benchmark's headline classes (``report_name`` of its spec)."""
    pixel_accuracy: float
    """Share of labeled pixels that got their label."""
    mean_class_accuracy: float
    """That share (recall) of each class, averaged over the classes that are labeled somewhere: mAcc."""
    frequency_weighted_iou: float
    """IoU of the classes, each weighted by its share of the labeled pixels: fIoU."""
    iou: dict[str, float]
    """Intersection over union of each class, NaN where it occurs in neither labels nor predictions."""
    report_name: str
    """What ``miou`` is called: "mIoU", or the named subset of classes."""
    images: int
    """Images counted."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, NaN as None."""

        def number(value: float) -> float | None:
            return None if math.isnan(value) else value

        iou = {name: number(value) for name, value in self.iou.items()}
        return {**self.__dict__, "miou": number(self.miou), "iou": iou}

    def __str__(self) -> str:
        """One line for people: headline score and pixel accuracy in percent."""
        return f"{self.report_name} {100 * self.miou:.2f}, pixel accuracy {100 * self.pixel_accuracy:.2f}"


def scores_from_confusion(confusion: Tensor, spec: DatasetSpec, images: int = 0) -> SegmentationScores:
    """IoU_c = TP_c / (TP_c + FP_c + FN_c), recall_c = TP_c / (TP_c + FN_c) and means, from counts (classes, classes).

    Rows of ``confusion`` are labels, columns are predictions.

    Raises:
        ValueError: a matrix of another size, or one that counts nothing.
    """
    if confusion.shape != (spec.num_classes, spec.num_classes):
        raise ValueError(f"{spec.name} has {spec.num_classes} classes; got a confusion matrix {tuple(confusion.shape)}")
    counts = confusion.cpu().double()  # Apple's GPUs have no float64
    return _scores(torch.stack([counts.diagonal(), counts.sum(1), counts.sum(0)]), spec, images)


def _scores(counts: Tensor, spec: DatasetSpec, images: int) -> SegmentationScores:
    """From float64 (3, classes): pixels of each class that are hit, labeled, predicted."""
    hits, labeled, predicted = counts
    total = labeled.sum()
    if not total > 0:
        raise ValueError(f"no labeled pixel of {spec.name} was counted; is every label {spec.ignore_index} (ignored)?")
    iou = hits / (predicted + labeled - hits)  # 0 / 0 = NaN: in neither labels nor predictions
    return SegmentationScores(
        miou=iou[list(spec.report_indices)].nanmean().item(),
        pixel_accuracy=(hits.sum() / total).item(),
        mean_class_accuracy=(hits / labeled).nanmean().item(),
        frequency_weighted_iou=((labeled / total) * iou).nansum().item(),
        iou=dict(zip(spec.classes, iou.tolist(), strict=True)),
        report_name=spec.report_name,
        images=images,
    )


class SegmentationMetric:
    """Counts predictions against labels, batch by batch, and over ranks when a process group is running.

    For up to 1024 classes it keeps the confusion matrix; for more, only what the scores need: how many pixels of each
    class are hit, labeled and predicted.

    Args:
        spec: the benchmark: its classes, its ignored label, its headline classes.
        device: where to count.
    """

    def __init__(self, spec: DatasetSpec, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self._images = 0
        rows = spec.num_classes if self._is_matrix else 3
        self._counts = torch.zeros(rows, spec.num_classes, dtype=torch.long, device=device)

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Count a batch: predicted labels (b, h, w) or logits (b, classes, h, w), against labels (b, h, w).

        Raises:
            ValueError: sizes that differ, a prediction of no class, or a label that is neither a class nor ignored.
        """
        predicted = prediction.shape[1] if prediction.ndim == 4 else int(prediction.max()) + 1
        if predicted > self.spec.num_classes:  # it would be counted as some other class
            raise ValueError(f"{self.spec.name} has {self.spec.num_classes} classes; got predictions of {predicted}")
        labels = prediction.argmax(1) if prediction.ndim == 4 else prediction
        if labels.shape != mask.shape:
            raise ValueError(f"predictions {tuple(labels.shape)} and labels {tuple(mask.shape)} differ in size")
        classes, mask = self.spec.num_classes, mask.long()
        counted = mask != self.spec.ignore_index
        unknown = counted & ((mask < 0) | (mask >= classes))
        if unknown.any():
            raise ValueError(
                f"label {mask[unknown][0].item()} is not in {self.spec.name}: its labels are 0 to "
                f"{classes - 1}, and {self.spec.ignore_index} for ignored pixels"
            )
        if self._is_matrix:
            cells = (classes * mask + labels)[counted]  # row by row
        else:
            mask, labels = mask[counted], labels[counted].long()
            cells = torch.cat([mask[mask == labels], classes + mask, 2 * classes + labels])
        counts = torch.bincount(cells, minlength=self._counts.numel())
        self._counts += counts.view_as(self._counts).to(self._counts.device)
        self._images += len(counted)

    @property
    def _is_matrix(self) -> bool:
        return self.spec.num_classes <= _MATRIX_CLASSES

    def confusion(self) -> Tensor:
        """Counts (classes, classes), rows labels and columns predictions, summed over ranks.

        Raises:
            ValueError: more than 1024 classes, whose matrix is not kept.
        """
        if not self._is_matrix:
            raise ValueError(
                f"{self.spec.name} has {self.spec.num_classes} classes; the confusion matrix is kept for up "
                f"to {_MATRIX_CLASSES}; take the scores of compute()"
            )
        return _over_ranks(self._counts)

    def compute(self) -> SegmentationScores:
        """The scores of everything counted so far; errors as in `scores_from_confusion`."""
        images = int(_over_ranks(torch.tensor(self._images, device=self._counts.device)))
        if self._is_matrix:
            return scores_from_confusion(self.confusion(), self.spec, images)
        return _scores(_over_ranks(self._counts).cpu().double(), self.spec, images)


def _over_ranks(count: Tensor) -> Tensor:
    """The sum over the processes of a group; without one, the count itself."""
    total = count.clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total
