"""Studies on cityscapes-256: the axes that conclusions hang on, learning rates, gradient and pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from emalab.recipes import Recipe, get_recipe
from emalab.studies.config import Cell, Study, family
from experiments.study_axes import (
    HEADLINE,
    Axes,
    cells_by_value,
    head_cells,
    maintenance_cells,
    stride_cells,
)

__all__ = ["STREET_SCENES"]

# Chosen by the study cityscapes-256-rates, on a part of train that was held out; with the gradient through all
# iterations the best rate of EMA is the same.
_CITYSCAPES_LR = {"none": 1e-3, "non_local": 1e-3, "ema": 2e-3}


def _cityscapes() -> Recipe:
    base = get_recipe("camvid-lite2")
    return replace(
        base,
        name="cityscapes-256-study",
        summary="EMANet head, 256×256, stride 8, 600 iterations, train → val",
        data=replace(
            base.data,
            name="cityscapes-256",
            train_split="train",
            eval_split="val",
            crop_size=(256, 256),
        ),
        model=replace(base.model, num_classes=19),
        optim=replace(base.optim, lr=_CITYSCAPES_LR["ema"], iterations=600),
        evaluation=replace(
            base.evaluation, every=0, batch_size=20, scales=(1.0,), flip=False
        ),
    )


def _street_scenes() -> list[Study]:
    """The third data set: the axes that conclusions hang on, as photographs of a whole split can tell them apart."""
    question = "which conclusions about heads, gradient, ways to keep the bases, T, K and stride hold on a third data set?"
    test = (
        "Student's interval of the mean difference of cityscapes-256-15 from the base, paired by seed, two-sided at "
        "95 %, for every cell. A conclusion holds here where the interval lies on its side of zero. The comparisons "
        "that count are non-local, plain FCN, last and unroll, with ten seeds; the others have five and are not "
        "corrected for their number. All runs count; a run that diverges is reported; nothing is added afterwards."
    )
    base, ema = _cityscapes(), "model.ema."
    ten, five = 2 * HEADLINE, HEADLINE
    gradient = [
        Cell("stop", seeds=ten),
        Cell("last", {ema + "grad": "last"}, seeds=ten),
        Cell("unroll", {ema + "grad": "unroll"}, seeds=ten),
    ]
    kept = [
        replace(cell, seeds=five)
        for cell in maintenance_cells()
        if "normalized" not in cell.label
    ]
    axes: Axes = {
        "heads": (
            "the context head, each at its own learning rate",
            [replace(cell, seeds=ten) for cell in head_cells(_CITYSCAPES_LR)[:3]],
        ),
        "gradient": ("where the gradient goes", gradient),
        "maintenance": ("how the initial bases live from batch to batch", kept),
        "iterations": (
            "T in training",
            cells_by_value(ema + "num_iters", "T", (1, 2, 3, 6), seeds=five),
        ),
        "bases": (
            "the number of bases K",
            cells_by_value(ema + "num_bases", "K", (16, 32, 64, 128), seeds=five),
        ),
        "stride": (
            "output stride in training and, with the same weights, at test",
            [replace(cell, seeds=five) for cell in stride_cells()],
        ),
    }
    studies = family("cityscapes-256", "the axes that conclusions hang on", base, axes)
    return [replace(study, question=question, test=test) for study in studies]


def _street_scene_rates() -> Study:
    """Equal effort for every head, and for the gradient through all iterations, on a part of train held out."""
    base = _cityscapes()
    data = replace(base.data, train_split="train/kept", eval_split="train/held-out")
    base = replace(
        base,
        name="cityscapes-256-rates",
        data=data,
        optim=replace(base.optim, lr=1e-3),
    )
    settings: dict[str, dict[str, Any]] = {
        "EMA": {},
        "non-local": {"model.context": "non_local"},
        "plain FCN": {"model.context": "none"},
        "EMA, unroll": {"model.ema.grad": "unroll"},
    }
    cells = [
        Cell(f"{setting} at {rate:g}", changes | {"optim.lr": rate}, seeds=2)
        for setting, changes in settings.items()
        for rate in (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
    ]
    return Study(
        base.name,
        "the learning rate of each setting, on images of train held out",
        base,
        tuple(cells),
        question="at which rate does each setting score highest after 600 iterations?",
        test="The rate with the highest mean of two seeds is taken; val is not looked at. Should it be the lowest or "
        "the highest, it is taken all the same, and the chapter says so.",
    )


def _gradient_and_pretraining() -> Study:
    """Why the gradient through all iterations costs points on photographs: pre-training, step size, or length."""
    base = replace(_cityscapes(), name="gradient-pretraining")
    starts: dict[str, tuple[dict[str, Any], Sequence[float]]] = {
        "pre-trained": ({}, (1e-3, 2e-3, 4e-3)),
        "from scratch": ({"model.backbone_weights": None}, (3e-3, 1e-2, 3e-2)),
    }
    cells = [
        Cell(
            f"{start}, {grad}, {length} iterations, rate {rate:g}",
            {
                **changes,
                "model.ema.grad": grad,
                "optim.iterations": length,
                "optim.lr": rate,
            },
            seeds=HEADLINE,
        )
        for length in (600, 1800)
        for start, (changes, rates) in starts.items()
        for rate in rates
        for grad in ("stop", "unroll")
    ]
    return Study(
        base.name,
        "the gradient with and without pre-training, at three rates and two lengths",
        base,
        tuple(cells),
        question="does the gradient through all iterations cost points because it changes pre-trained features, because "
        "its rate does not suit it, or because 600 iterations are too few?",
        test="For each start and length, each gradient counts at that of its three rates with the highest mean of five "
        "seeds; unroll − stop in mIoU, paired by seed, with Student's two-sided interval at 95 %. Pre-training is the "
        "reason if the interval lies below zero with it and not without; the rate if it holds zero at each gradient's "
        "best rate and lies below zero at 0.002; the length if it lies below zero after 600 iterations and not after "
        "1800. Several of these may hold, or none. The differences at every rate are shown. A rate that is the lowest "
        "or highest of its three is taken all the same, and the chapter says so.",
    )


STREET_SCENES: tuple[Study, ...] = (
    *_street_scenes(),
    _street_scene_rates(),
    _gradient_and_pretraining(),
)
