"""Every loss against its definition, or another library's; pixels without a label never count."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_recipe
from torch import Tensor

from emalab.losses import SegmentationLoss, hardest_pixels, lovasz, soft_dice
from emalab.optim import cross_entropy
from emalab.recipes import LossConfig, recipe_from_dict, recipe_to_dict

WEIGHTS = (0.5, 2.0, 0.0, 1.0, 3.0)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (3, 5, 4, 6) and labels, a fifth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 5, (3, 4, 6), generator=generator)
    masks[torch.rand(3, 4, 6, generator=generator) < 0.2] = 255
    logits = 3 * torch.randn(3, 5, 4, 6, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), masks.to(torch.uint8)


def value(config: LossConfig, logits: Tensor, masks: Tensor) -> Tensor:
    total, divisor, per_image = SegmentationLoss(config)(logits, masks)
    return total / divisor + per_image


def test_the_default_is_cross_entropy_bit_for_bit() -> None:
    logits, masks = batch()
    total, divisor, per_image = SegmentationLoss(LossConfig())(logits, masks)
    assert (total, divisor) == cross_entropy(logits, masks)
    assert per_image == 0


def test_class_weights_are_those_of_torch() -> None:
    logits, masks = batch()
    expected = F.cross_entropy(logits, masks.long(), torch.tensor(WEIGHTS, dtype=torch.float64), ignore_index=255)
    torch.testing.assert_close(value(LossConfig(class_weights=WEIGHTS), logits, masks), expected)


def test_focal_loss_by_hand() -> None:
    logits, masks = batch()
    labeled = masks != 255
    p = logits.softmax(1).gather(1, masks.long().where(labeled, 0)[:, None])[:, 0][labeled]
    for gamma in (1.0, 2.0, 2.5):
        expected = ((1 - p) ** gamma * -p.log()).mean()
        torch.testing.assert_close(value(LossConfig(focal_gamma=gamma), logits, masks), expected)


def test_a_focal_loss_has_a_gradient_where_a_pixel_is_certain() -> None:
    logits = torch.tensor([[200.0, 0.0]])[:, :, None, None].requires_grad_()
    for gamma in (1.0, 2.0):
        value(LossConfig(focal_gamma=gamma), logits, torch.zeros(1, 1, 1).long()).backward()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 1.0])
def test_the_hardest_pixels_of_each_image(part: float) -> None:
    logits, masks = batch()
    losses, labeled = torch.rand(3, 4, 6), masks != 255
    kept = hardest_pixels(losses, labeled, part)
    for of_image, valid, chosen in zip(losses, labeled, kept, strict=True):
        count = math.ceil(part * int(valid.sum()))
        assert sorted(of_image[chosen].tolist()) == sorted(of_image[valid].tolist())[-count:]
    each = F.cross_entropy(logits, masks.long(), ignore_index=255, reduction="none")
    expected = each[hardest_pixels(each, labeled, part)].mean()
    torch.testing.assert_close(value(LossConfig(hardest=part), logits, masks), expected)


def test_dice_by_hand() -> None:
    """Two classes present: one found in half of its pixels, the other in all and half as many again."""
    masks = torch.tensor([[[0, 0, 1, 255]], [[255] * 4]])
    logits = torch.full((2, 3, 1, 4), -1e4)
    for pixel, label in enumerate((0, 1, 1, 2)):
        logits[:, label, 0, pixel] = 1e4
    dice = soft_dice(logits, masks.where(masks != 255, 0), masks != 255)
    torch.testing.assert_close(dice, torch.tensor((1 / 3 + 1 / 3) / 2 / 2))


@pytest.mark.parametrize("seed", range(5))
def test_dice_is_that_of_segmentation_models_pytorch(seed: int) -> None:
    """Theirs is of one image here, and a mean over all classes, those that an image lacks counted as 0."""
    smp = pytest.importorskip("segmentation_models_pytorch", reason="its Dice loss is not installed")
    theirs = smp.losses.DiceLoss("multiclass", ignore_index=255)
    logits, masks = batch(seed)
    expected = [
        theirs(of_image[None], mask[None].long()) * 5 / len(mask[mask != 255].unique())
        for of_image, mask in zip(logits, masks, strict=True)
    ]
    plain, with_dice = (value(LossConfig(dice_weight=weight), logits, masks) for weight in (0.0, 0.7))
    torch.testing.assert_close(with_dice - plain, 0.7 * torch.stack(expected).mean())


def lost_iou(wrong: set[int], pixels: set[int]) -> float:
    """1 − IoU of a class with these pixels, if those in ``wrong`` are predicted wrongly: Δ, a function of sets."""
    return len(wrong) / len(pixels | wrong)


def extended_by_levels(errors: list[float], pixels: set[int]) -> float:
    """The Lovász extension of Δ as an integral over thresholds t of Δ({i: m_i ≥ t})."""
    levels = [0.0, *sorted(set(errors))]
    return sum(
        (high - low) * lost_iou({i for i, error in enumerate(errors) if error >= high}, pixels)
        for low, high in pairwise(levels)
    )


def extended_by_orders(errors: list[float], pixels: set[int]) -> float:
    """The same for a submodular Δ: the largest value over all orders in which pixels are added."""
    values = []
    for order in permutations(range(len(errors))):
        grown = [lost_iou(set(order[:count]), pixels) for count in range(len(order) + 1)]
        values.append(
            sum(errors[i] * (after - before) for i, (before, after) in zip(order, pairwise(grown), strict=True))
        )
    return max(values)


def errors_by_hand(logits: Tensor, label: int, of_class: int, kind: str) -> float:
    """Of one pixel with logits (classes), for one class."""
    if kind == "softmax":
        p = logits.softmax(0)[of_class].item()
        return 1 - p if label == of_class else p
    margin = (logits[of_class] - max(z for c, z in enumerate(logits) if c != of_class)).item()
    return max(0.0, 1 - margin if label == of_class else 1 + margin)


@pytest.mark.parametrize("kind", ["softmax", "hinge"])
@pytest.mark.parametrize("classes", [2, 3])
def test_lovasz_is_the_extension_of_the_lost_iou(kind: Literal["softmax", "hinge"], classes: int) -> None:
    """Of 40 images of six pixels: against two other definitions of the extension, computed with sets."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        logits = 2 * torch.randn(1, classes, 2, 3, generator=generator, dtype=torch.float64)
        targets = torch.randint(0, classes, (1, 2, 3), generator=generator)
        labeled = torch.rand(1, 2, 3, generator=generator) < 0.8
        labels = targets[labeled].tolist()
        pixels = list(logits.movedim(1, -1)[labeled])
        expected = []
        for of_class in sorted(set(labels)):
            errors = [errors_by_hand(z, label, of_class, kind) for z, label in zip(pixels, labels, strict=True)]
            own = {i for i, label in enumerate(labels) if label == of_class}
            expected.append(extended_by_levels(errors, own))
            assert extended_by_orders(errors, own) == pytest.approx(expected[-1])
        found = lovasz(logits, targets, labeled, kind).item()
        assert found == pytest.approx(sum(expected) / max(len(expected), 1))


def test_lovasz_of_certain_predictions_is_one_minus_iou() -> None:
    """Class 0 is found in one of two pixels, class 1 in its one pixel and one more; the fourth has no label."""
    targets = torch.tensor([[[0, 0, 1, 9]]])
    logits = torch.full((1, 3, 1, 4), -1e4)
    for pixel, label in enumerate((0, 1, 1, 2)):
        logits[0, label, 0, pixel] = 1e4
    torch.testing.assert_close(lovasz(logits, targets, targets != 9), torch.tensor((1 / 2 + 1 / 2) / 2))


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_is_that_of_segmentation_models_pytorch(seed: int) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="its Lovász loss is not installed")
    logits, masks = batch(seed)
    logits = logits.float()  # theirs takes no other
    labeled, targets = masks != 255, masks.long()
    expected = smp.losses.LovaszLoss("multiclass", per_image=True, ignore_index=255)(logits, targets)
    torch.testing.assert_close(lovasz(logits, targets, labeled), expected)
    two = logits[:, :2]
    binary = smp.losses.LovaszLoss("binary", per_image=True, ignore_index=255)
    sides = [
        binary(sign * (two[:, 1] - two[:, 0]), torch.where(labeled, targets % 2 == side, 255))
        for side, sign in ((1, 1), (0, -1))
    ]
    torch.testing.assert_close(lovasz(two, targets % 2, labeled, "hinge"), torch.stack(sides).mean())


def test_lovasz_has_a_gradient_where_a_pixel_is_certain_and_wrong() -> None:
    for kind in ("softmax", "hinge"):
        logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]]).T[None, :, None].bfloat16().requires_grad_()
        lovasz(logits, torch.tensor([[[1, 1]]]), torch.ones(1, 1, 2).bool(), kind).backward()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(class_weights=WEIGHTS),
        LossConfig(focal_gamma=2),
        LossConfig(hardest=0.3),
        LossConfig(dice_weight=1),
        LossConfig(lovasz_weight=1),
        LossConfig(lovasz_weight=1, lovasz="hinge"),
        LossConfig(class_weights=WEIGHTS, focal_gamma=2, hardest=0.5, dice_weight=1, lovasz_weight=0.5),
    ],
    ids=str,
)
class TestEvery:
    def test_ignored_pixels_have_no_gradient(self, config: LossConfig) -> None:
        logits, masks = batch()
        value(config, logits, masks).backward()
        assert (logits.grad.movedim(1, -1)[masks == 255] == 0).all()
        assert logits.grad.isfinite().all()
        assert (logits.grad != 0).any()

    def test_parts_of_a_batch_add_up(self, config: LossConfig) -> None:
        """As ranks do it: sums are added, means of equally many images averaged."""
        logits, masks = batch()
        whole = SegmentationLoss(config)(logits, masks)
        parts = [SegmentationLoss(config)(logits[i : i + 1], masks[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(torch.stack([part.total for part in parts]).sum(), whole.total)
        torch.testing.assert_close(torch.stack([part.divisor for part in parts]).sum(), whole.divisor)
        torch.testing.assert_close(torch.stack([part.per_image for part in parts]).mean(), whole.per_image)

    def test_nothing_labeled_is_no_loss(self, config: LossConfig) -> None:
        logits, masks = batch()
        total, divisor, per_image = SegmentationLoss(config)(logits, torch.full_like(masks, 255))
        assert (total, divisor, per_image) == (0, 0, 0)

    def test_survives_a_file(self, config: LossConfig) -> None:
        recipe = tiny_recipe(optim={"loss": config})
        assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": (1.0, -1.0)}, r"class_weights must be at least 0, and not all 0; got \(1.0, -1.0\)"),
        ({"class_weights": (0.0, 0.0)}, "not all 0"),
        ({"class_weights": (math.nan, 1.0)}, "class_weights must be at least 0"),
        ({"focal_gamma": 0.5}, "focal_gamma must be 0, or 1 or more; got 0.5"),
        ({"focal_gamma": math.inf}, "focal_gamma"),
        ({"hardest": 0.0}, "hardest must be above 0 and at most 1; got 0.0"),
        ({"hardest": 1.5}, "hardest"),
        ({"dice_weight": -1.0}, "dice_weight must be at least 0; got -1.0"),
        ({"lovasz_weight": math.inf}, "lovasz_weight must be at least 0; got inf"),
    ],
)
def test_settings_that_are_none(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=rf"optim\.loss\..*{message}"):
        LossConfig(**settings)


def test_a_weight_for_each_class() -> None:
    with pytest.raises(ValueError, match="class_weights has 2 numbers for 5 classes; give one for each"):
        tiny_recipe(optim={"loss": LossConfig(class_weights=(1.0, 2.0))})
