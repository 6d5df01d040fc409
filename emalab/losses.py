"""The loss of a training step: cross-entropy, and what is often asked for beside it.

Everything is a sum over pixels or a mean over images, so that processes which share a batch can add up their parts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emalab.optim import cross_entropy
from emalab.recipes import LossConfig

__all__ = ["LossTerms", "SegmentationLoss", "hardest_pixels", "soft_dice"]


class LossTerms(NamedTuple):
    """The loss is ``total / divisor + per_image``."""

    total: Tensor  # of pixels, summed
    divisor: Tensor  # labeled pixels that count, or the sum of their class weights
    per_image: Tensor  # the mean over images of what is a mean in each


class SegmentationLoss(nn.Module):
    """The loss that a recipe's ``optim.loss`` describes: logits (b, classes, h, w), labels (b, h, w) → `LossTerms`.

    A labeled pixel of class y, whose probability the network gives as p, adds w_y (1 − p)^γ (−ln p) to ``total`` and
    w_y to ``divisor``: weighted cross-entropy (`torch.nn.CrossEntropyLoss`) for γ = 0, the focal loss of Lin et al.,
    ICCV 2017, otherwise. ``per_image`` is `soft_dice` times its weight.

    Args:
        config: class weights, γ, the part of pixels that count, the weight of Dice.
        ignore_index: label that does not count.
    """

    class_weights: Tensor | None

    def __init__(self, config: LossConfig, ignore_index: int = 255) -> None:
        super().__init__()
        self.config, self.ignore_index = config, ignore_index
        weights = torch.tensor(config.class_weights) if config.class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, masks: Tensor) -> LossTerms:
        """The three terms; see the class."""
        config, nothing = self.config, logits.new_zeros(())
        if config == LossConfig():
            return LossTerms(*cross_entropy(logits, masks, self.ignore_index), nothing)
        masks = masks.long()
        labeled = masks != self.ignore_index
        targets = masks.where(labeled, 0)
        losses = F.cross_entropy(logits, masks, ignore_index=self.ignore_index, reduction="none")
        if config.focal_gamma:
            losses = (-torch.expm1(-losses)) ** config.focal_gamma * losses
        weights = labeled.to(losses.dtype)
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(losses.dtype)[targets]
        losses = weights * losses
        if config.hardest < 1:
            kept = hardest_pixels(losses, labeled, config.hardest)
            losses, weights = losses * kept, weights * kept
        dice = config.dice_weight * soft_dice(logits, targets, labeled) if config.dice_weight else nothing
        return LossTerms(losses.sum(), weights.sum(), dice)

    def divisor(self, masks: Tensor) -> Tensor:
        """The ``divisor`` of `forward`, from labels (b, h, w) alone.

        With class weights and hard pixels together it depends on the logits; for those it is not this.
        """
        labeled = masks != self.ignore_index
        if self.config.hardest < 1:
            return _number_of_hardest(labeled, self.config.hardest).sum()
        if self.class_weights is None:
            return labeled.sum()
        return (self.class_weights[masks.long().where(labeled, 0)] * labeled).sum()


def hardest_pixels(losses: Tensor, labeled: Tensor, part: float) -> Tensor:
    """Which labeled pixels of an image are among the ``part`` with the largest loss: (b, h, w), bool.

    Online hard example mining (Shrivastava et al., CVPR 2016), for the pixels of each image; the number is rounded up.
    """
    of_images, valid = losses.detach().flatten(1), labeled.flatten(1)
    order = of_images.masked_fill(~valid, -1).argsort(dim=1, descending=True, stable=True)
    first = torch.arange(order.shape[1], device=order.device) < _number_of_hardest(labeled, part)[:, None]
    return torch.zeros_like(valid).scatter(1, order, first).view_as(labeled)


def _number_of_hardest(labeled: Tensor, part: float) -> Tensor:
    """Of each image, (b,), rounded up."""
    return (part * labeled.flatten(1).sum(1)).ceil()


def soft_dice(logits: Tensor, targets: Tensor, labeled: Tensor) -> Tensor:
    """1 − Dice of each class in each image, with probabilities for the prediction, averaged. V-Net, 3DV 2016.

    Dice is 2 Σ p_c [y = c] / (Σ p_c + Σ [y = c]) over the labeled pixels. The mean is over the classes that an image
    has, then over the images; an image without labels adds 0.

    Args:
        logits: (b, classes, h, w).
        targets: classes (b, h, w), int64, of any value where not labeled.
        labeled: (b, h, w), bool.
    """
    probabilities = logits.softmax(1) * labeled[:, None]
    of_image, size = targets.flatten(1), logits.shape[:2]
    right = probabilities.gather(1, targets[:, None]).flatten(1)
    common = right.new_zeros(size).scatter_add(1, of_image, right)
    counts = right.new_zeros(size).scatter_add(1, of_image, labeled.flatten(1).to(right.dtype))
    dice = 2 * common / (probabilities.sum((2, 3)) + counts).clamp(min=torch.finfo(right.dtype).eps)
    present = counts > 0
    return (((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)).mean()
