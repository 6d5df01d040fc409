"""Studies on VOC's images with animals and on CamVid: all axes, the bases once more, the headlines from ten seeds."""

from __future__ import annotations

from dataclasses import replace

from emalab.recipes import Recipe, get_recipe
from emalab.studies.config import BASE, Cell, Study, family
from experiments.study_axes import (
    AT_TEST,
    HEADLINE,
    Axes,
    cells_by_value,
    em_axes,
    head_cells,
    stride_cells,
    tuned_rates,
)

__all__ = ["PHOTOGRAPHS"]


def _voc_animals() -> Recipe:
    base = get_recipe("voc-animals-lite2")
    return replace(
        base,
        name="voc-animals-study",
        summary="EMANet head, 320 px, 600 iterations, trainaug → val",
        optim=replace(base.optim, iterations=600),
        evaluation=replace(
            base.evaluation, every=0, batch_size=1, scales=(1.0,), flip=False
        ),
    )


def _camvid() -> Recipe:
    base = get_recipe("camvid-lite2")
    return replace(
        base,
        name="camvid-study",
        summary="EMANet head, 480×360, stride 16, 600 iterations, train → val",
        data=replace(base.data, train_split="train", eval_split="val"),
        model=replace(base.model, output_stride=16),
        optim=replace(base.optim, iterations=600),
        evaluation=replace(base.evaluation, every=0, scales=(1.0,), flip=False),
    )


def _conventions(base: Recipe) -> list[Cell]:
    """What the public codes do differently, one thing at a time; the table of them is in the book."""
    clamp = {"model.ema.clamp": True, "model.ema.eps": 1e-12}
    one_more = tuple(
        side + 1 for side in base.data.crop_size
    )  # the sizes that aligned corners are made for
    return [
        Cell("EMA"),
        Cell(
            "features of the backbone for the classifier", {"model.concat_input": True}
        ),
        Cell("auxiliary head", {"model.auxiliary_channels": 128}),
        Cell("aligned corners", {"model.align_corners": True}),
        Cell(
            "aligned corners, one pixel more",
            {"model.align_corners": True, "data.crop_size": one_more},
        ),
        Cell("divisors clamped at 1e-12", clamp),
        Cell("loss over all pixels", {"optim.loss_average": "all"}),
        Cell("biases at twice the rate", {"optim.bias_lr_factor": 2.0}),
        Cell("scales in steps of 0.25", {"data.scale_step": 0.25}),
        Cell("colors as they are", {"data.photometric": 0.0}),
    ]


def _batches(base: Recipe) -> list[Cell]:
    """Batches of other sizes, over as many images in all."""
    images = base.optim.iterations * base.optim.batch_size
    return [
        Cell(
            f"batch {size}",
            {"optim.batch_size": size, "optim.iterations": images // size},
        )
        for size in (8, 16, 32)
    ]


def _photographs(
    name: str, summary: str, base: Recipe, tuned: str, *, one_size: bool
) -> list[Study]:
    """All axes. A trained network is scored again, under other settings, where images of one size make that cheap."""
    axes: Axes = {
        "heads": (
            "the context head, each at its own learning rate",
            head_cells(tuned_rates(tuned)),
        ),
        **em_axes(
            (4, 8, 16, 32, 64, 128, 256),
            (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
            AT_TEST if one_size else (),
        ),
        "channels": (
            "channels of the features that EM works on",
            cells_by_value("model.channels", "C", (256, 512)),
        ),
        "conventions": (
            "what the public codes do differently, one thing at a time",
            _conventions(base),
        ),
        "batch": (
            "images in a batch; all batches see as many images in all",
            _batches(base),
        ),
    }
    if one_size:
        axes["stride"] = (
            "output stride in training and, with the same weights, at test",
            stride_cells(),
        )
    return family(name, summary, base, axes)


def _final_camvid() -> Study:
    """The recipes of the CamVid headlines from ten seeds each, so that all of them are of one commit."""
    base = replace(get_recipe("camvid-lite2"), name="camvid-final")
    ten = 2 * HEADLINE
    cells = (
        Cell("EMA", seeds=ten),
        *(
            replace(cell, seeds=ten)
            for cell in head_cells(tuned_rates("camvid-lite2"))
            if cell.label in ("non-local", "plain FCN")
        ),
    )
    return Study(
        base.name,
        "three heads on train and val, scored on test: 1600 iterations at stride 8",
        base,
        cells,
        question="do the five runs of each head that the book reports repeat at a later commit, and does a head lead?",
        test="Student's interval of the mean difference of mIoU, single scale and multi-scale with flips, paired by "
        "seed, two-sided at 95 %: EMA − non-local and EMA − FCN. The means of seeds 0 to 4 are compared with those of "
        "the earlier runs of the same seeds. All runs count; nothing is added afterwards.",
    )


def _again(name: str, base: Recipe) -> Study:
    """The base once more, from its own seeds and from new ones: all comparisons hang on its few runs."""
    cell = Cell(BASE, seeds=3 * HEADLINE)
    return Study(
        f"{name}-again",
        f"the base of {name} once more, and from ten new seeds",
        base,
        (cell,),
        f"{name}-again",
    )


PHOTOGRAPHS: tuple[Study, ...] = (
    *_photographs(
        "voc-animals",
        "all axes on VOC's images with animals",
        _voc_animals(),
        "voc-animals-lite2",
        one_size=False,
    ),
    *_photographs(
        "camvid", "all axes on CamVid", _camvid(), "camvid-lite2", one_size=True
    ),
    _final_camvid(),
    _again("voc-animals", _voc_animals()),
    _again("camvid", _camvid()),
)
