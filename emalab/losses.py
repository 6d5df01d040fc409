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
from emalab.recipes.config import LovaszErrors

__all__ = ["LossTerms", "SegmentationLoss", "hardest_pixels", "lovasz", "soft_dice"]


class LossTerms(NamedTuple):
    """The loss is ``total / divisor + per_image``."""

    total: Tensor  # of pixels, summed
    divisor: Tensor  # labeled pixels that count, or the sum of their class weights
    per_image: Tensor  # the mean over images of what is a mean in each


class SegmentationLoss(nn.Module):
    """The loss that a recipe's ``optim.loss`` describes: logits (b, classes, h, w), labels (b, h, w) → `LossTerms`.

    A labeled pixel of class y, whose probability the network gives as p, adds w_y (1 − p)^γ (−ln p) to ``total`` and
    w_y to ``divisor``: weighted cross-entropy (`torch.nn.CrossEntropyLoss`) for γ = 0, the focal loss of Lin et al.,
    ICCV 2017, otherwise. ``per_image`` is the sum of `soft_dice` and `lovasz`, each times its weight.

    Args:
        config: class weights, γ, the part of pixels that count, the weights of Dice and of the Lovász loss.
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
        per_image = nothing
        if config.dice_weight:
            per_image = per_image + config.dice_weight * soft_dice(logits, targets, labeled)
        if config.lovasz_weight:
            per_image = per_image + config.lovasz_weight * lovasz(logits, targets, labeled, config.lovasz)
        return LossTerms(losses.sum(), weights.sum(), per_image)

    def divisor(self, masks: Tensor) -> Tensor:
        """The ``divisor`` of `forward`, from labels (b, h, w) alone.

        It does not apply to class weights together with hard pixels, whose divisor depends on the logits.
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
    """How many pixels of each image count, rounded up: (b, h, w) → (b,)."""
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


def lovasz(logits: Tensor, targets: Tensor, labeled: Tensor, errors: LovaszErrors = "softmax") -> Tensor:
    """The Lovász extension of 1 − IoU of each class in each image, averaged. Berman et al., CVPR 2018.

    If the pixels M are wrong about class c, whose pixels are Y, 1 − IoU is Δ(M) = #M / #(Y ∪ M), where # counts
    pixels. The extension of Δ to errors m ≥ 0 of pixels is Σ m_i (Δ(the i largest) − Δ(the i − 1 largest)), with m in
    falling order (equations 8 and 9 of the paper). The mean is over the classes that an image has, then over the
    images; an image without labels adds 0.

    Args:
        logits: (b, classes, h, w), of at least two classes.
        targets: classes (b, h, w), int64, of any value where not labeled.
        labeled: (b, h, w), bool.
        errors: "softmax" takes 1 − p_c on pixels of class c and p_c on others, with probabilities p. "hinge" takes
            max(0, 1 − f_c) and max(0, 1 + f_c), where the margin f_c is the logit of c minus the largest other one.
            With two classes this is the paper's binary hinge, averaged over both.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    valid = labeled.flatten(1)[:, None]
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None]
    truth = (targets.flatten(1)[:, None] == classes) & valid  # b classes n
    if errors == "softmax":
        wrong = (truth.to(logits.dtype) - logits.softmax(1).flatten(2)).abs()
    else:
        margins = _margins(logits).flatten(2)
        wrong = (1 - margins.where(truth, -margins)).relu()
    order = wrong.detach().masked_fill(~valid, -1).argsort(2, descending=True)  # pixels without a label come last,
    wrong = wrong.masked_fill(~valid, 0).gather(2, order)  # with no error
    of_class = truth.gather(2, order).to(wrong.dtype)
    pixels = of_class.sum(2, keepdim=True)
    delta = 1 - (pixels - of_class.cumsum(2)) / (pixels + (1 - of_class).cumsum(2)).clamp(min=1)
    losses = (wrong * delta.diff(dim=2, prepend=torch.zeros_like(pixels))).sum(2)
    present = pixels[..., 0] > 0
    return ((losses * present).sum(1) / present.sum(1).clamp(min=1)).mean()


def _margins(logits: Tensor) -> Tensor:
    """Each logit minus the largest of the others: (b, classes, h, w)."""
    values, places = logits.topk(2, dim=1)
    others = values[:, :1].expand_as(logits).scatter(1, places[:, :1], values[:, 1:])
    return logits - others
