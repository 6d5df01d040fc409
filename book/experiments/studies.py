"""The book's studies: the ablation of EM attention, axis by axis, on four data sets.

    emalab study voc-animals          # from the root of a clone
    emalab study --list

The studies of one family share a folder of records, ``book/results/studies/FAMILY`` for those of the book. The study
that is called as its family has the cells of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from emalab.recipes import Recipe, get_recipe
from emalab.studies.config import BASE, Cell, Study, family

__all__ = ["STUDIES"]

_ITERATIONS = (1, 2, 3, 4, 6, 8)
_AT_TEST = (*_ITERATIONS, 16)
_HEADLINE = 5  # seeds of the rows that conclusions hang on

# Chosen by the study cityscapes-256-rates, on a part of train that was held out; with the gradient through all
# iterations the best rate of EMA is the same.
_CITYSCAPES_LR = {"none": 1e-3, "non_local": 1e-3, "ema": 2e-3}

Axes = dict[str, tuple[str, Sequence[Cell]]]


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


def _shapes() -> Recipe:
    base = get_recipe("shapes-pooled")
    return replace(
        base,
        name="shapes-study",
        summary="EMANet head on generated scenes, pooled evidence",
    )


def _cells(path: str, label: str, values: Sequence[Any], **extra: Any) -> list[Cell]:
    """A cell for every value of one field, labeled LABEL=VALUE."""
    return [Cell(f"{label}={value}", {path: value}, **extra) for value in values]


def _maintenance() -> list[Cell]:
    ema = "model.ema."
    average = [
        Cell(
            f"alpha={value}",
            {ema + "momentum": value},
            seeds=_HEADLINE if value == 0.9 else 3,
        )
        for value in (0.0, 0.5, 0.9, 0.99)
    ]
    return [
        *average,
        Cell(
            "learned",
            {ema + "maintenance": "learned", ema + "grad": "unroll"},
            seeds=_HEADLINE,
        ),
        Cell("frozen", {ema + "maintenance": "frozen"}, seeds=_HEADLINE),
        Cell("per image", {ema + "maintenance": "per_image"}, seeds=_HEADLINE),
        Cell("batch mean normalized", {ema + "renormalize": "batch_mean"}),
        Cell("normalized after mixing", {ema + "renormalize": "after_mixing"}),
    ]


def _iterations(at_test: Sequence[int]) -> list[Cell]:
    """Every number of iterations in training, scored with further ones at test."""
    path = "model.ema.num_iters"
    return _cells(
        path,
        "T",
        _ITERATIONS,
        evaluations={f"T={count}": {path: count} for count in at_test},
    )


def _gradient() -> list[Cell]:
    ema = "model.ema."
    return [
        Cell("stop", {ema + "grad": "stop"}, seeds=_HEADLINE),
        Cell("last", {ema + "grad": "last"}, seeds=_HEADLINE),
        Cell("unroll", {ema + "grad": "unroll"}, seeds=_HEADLINE),
        Cell(
            "last, first conv frozen",
            {ema + "grad": "last", ema + "freeze_input": True},
        ),
        Cell(
            "unroll, first conv frozen",
            {ema + "grad": "unroll", ema + "freeze_input": True},
        ),
    ]


def _em_axes(
    bases: Sequence[int], scales: Sequence[float], at_test: Sequence[int]
) -> Axes:
    """The axes of EM itself, which need no particular data; ``at_test`` are further T of the trained networks."""
    learned = {"model.ema.learn_scale": True, "model.ema.grad": "last"}
    return {
        "maintenance": (
            "how the initial bases live from batch to batch",
            _maintenance(),
        ),
        "norm": (
            "how bases are normalized within EM",
            _cells("model.ema.norm", "norm", ("l2", "layer", "none")),
        ),
        "iterations": (
            "T in training and, with the same weights, T at test",
            _iterations(at_test),
        ),
        "bases": ("the number of bases K", _cells("model.ema.num_bases", "K", bases)),
        "scale": (
            "λ, fixed or learned",
            [  # the gradient that learning needs goes through the last iteration; so a cell with that gradient alone
                *_cells("model.ema.scale", "lambda", scales),
                Cell("lambda=1, gradient last", {"model.ema.grad": "last"}),
                Cell("lambda learned", learned),
            ],
        ),
        "gradient": (
            "where the gradient goes, and whether the unit's first convolution learns",
            _gradient(),
        ),
    }


def _heads(rates: Mapping[str, float]) -> list[Cell]:
    """Every head at its own rate, or at that of EMANet."""
    heads = {
        "none": "plain FCN",
        "non_local": "non-local",
        "ema": "EMA",
        "deeplab_v3": "DeepLabV3",
        "psp": "PSP",
    }
    return [
        Cell(
            label,
            {"model.context": head, "optim.lr": rates.get(head, rates["ema"])},
            seeds=_HEADLINE,
        )
        for head, label in heads.items()
    ]


def _tuned(recipe: str) -> dict[str, float]:
    """The rates of the named recipes, head by head; nobody tuned those of DeepLabV3 and PSPNet."""
    suffixes = {
        "ema": "",
        "none": "-fcn",
        "non_local": "-non-local",
        "deeplab_v3": "-deeplab-v3",
        "psp": "-psp",
    }
    return {
        head: get_recipe(recipe + suffix).optim.lr for head, suffix in suffixes.items()
    }


def _strides() -> list[Cell]:
    at_test = {
        f"stride {stride}": {"evaluation.output_stride": stride} for stride in (16, 8)
    }
    return [
        Cell(
            f"trained at stride {stride}",
            {"model.output_stride": stride},
            evaluations=at_test,
        )
        for stride in (16, 8)
    ]


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
            _heads(_tuned(tuned)),
        ),
        **_em_axes(
            (4, 8, 16, 32, 64, 128, 256),
            (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
            _AT_TEST if one_size else (),
        ),
        "channels": (
            "channels of the features that EM works on",
            _cells("model.channels", "C", (256, 512)),
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
            _strides(),
        )
    return family(name, summary, base, axes)


def _generated() -> list[Study]:
    base = _shapes()
    axes: Axes = {
        "heads": ("the context head", _heads({"ema": base.optim.lr})),
        **_em_axes((2, 4, 8, 16, 32), (0.25, 1.0, 4.0, 16.0), _AT_TEST),
    }
    return family("shapes", "all axes on generated scenes, without a GPU", base, axes)


def _evidence() -> Study:
    """What each head can carry across a scene: evidence to be pooled over look-alikes, or one far cue; with noise."""
    base = _shapes()
    base = replace(base, name="shapes-evidence-study")
    heads = {"EMA": "ema", "non-local": "non_local", "no context": "none"}
    scenes = {  # finished runs are called after these strings, which mean the fields of data.scenes
        "pooled": "shapes-pooled",
        "pooled, little noise": "shapes-pooled:spread=10",
        "pooled, much noise": "shapes-pooled:spread=40",
        "far cue": "shapes-far",
        "far cue, closer": "shapes-far:gap=6",
        "far cue, much grain": "shapes-far:grain=24",
    }
    cells = [
        Cell(
            f"{head}, {scene}",
            {"model.context": context, "data.name": name},
            seeds=_HEADLINE,
        )
        for scene, name in scenes.items()
        for head, context in heads.items()
    ]
    far, longer = (
        {"data.name": "shapes-far"},
        {"optim.iterations": 4 * base.optim.iterations},
    )
    ema = "model.ema."
    settings: dict[str, dict[str, Any]] = {
        **{f"K={bases}": {ema + "num_bases": bases} for bases in (4, 16, 32)},
        **{f"lambda={scale}": {ema + "scale": scale} for scale in (4.0, 16.0)},
        "gradient last": {ema + "grad": "last"},
        "gradient unrolled": {ema + "grad": "unroll"},
        "gradient unrolled, first conv frozen": {
            ema + "grad": "unroll",
            ema + "freeze_input": True,
        },
        **{f"rate {rate}": {"optim.lr": rate} for rate in (0.001, 0.01)},
        "four times as long": longer,
        "gradient unrolled, four times as long": {ema + "grad": "unroll", **longer},
    }
    cells += [
        Cell(f"EMA, far cue, {label}", {**far, **changes})
        for label, changes in settings.items()
    ]
    cells += [
        Cell(
            "non-local, far cue, four times as long",
            {"model.context": "non_local", **far, **longer},
        ),
        Cell(
            "EMA, pooled, much noise, gradient unrolled",
            {"data.name": scenes["pooled, much noise"], ema + "grad": "unroll"},
        ),
        Cell("EMA, pooled, four times as long", longer),
        Cell(
            "EMA, pooled, gradient unrolled, four times as long",
            {ema + "grad": "unroll", **longer},
        ),
    ]
    return Study(
        "shapes-evidence",
        "what context modules carry across generated scenes",
        base,
        tuple(cells),
        "shapes-evidence",
    )


def _tiny() -> Study:
    base = _shapes()
    base = replace(
        base, name="shapes-tiny-study", optim=replace(base.optim, iterations=60)
    )
    cells = (
        Cell("moving average", evaluations={"T=1": {"model.ema.num_iters": 1}}),
        Cell("frozen", {"model.ema.maintenance": "frozen"}),
    )
    return Study(
        "shapes-tiny",
        "six runs of seconds: bases moved and bases left alone",
        base,
        cells,
        "shapes-tiny",
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
    ten, five = 2 * _HEADLINE, _HEADLINE
    gradient = [
        Cell("stop", seeds=ten),
        Cell("last", {ema + "grad": "last"}, seeds=ten),
        Cell("unroll", {ema + "grad": "unroll"}, seeds=ten),
    ]
    kept = [
        replace(cell, seeds=five)
        for cell in _maintenance()
        if "normalized" not in cell.label
    ]
    axes: Axes = {
        "heads": (
            "the context head, each at its own learning rate",
            [replace(cell, seeds=ten) for cell in _heads(_CITYSCAPES_LR)[:3]],
        ),
        "gradient": ("where the gradient goes", gradient),
        "maintenance": ("how the initial bases live from batch to batch", kept),
        "iterations": (
            "T in training",
            _cells(ema + "num_iters", "T", (1, 2, 3, 6), seeds=five),
        ),
        "bases": (
            "the number of bases K",
            _cells(ema + "num_bases", "K", (16, 32, 64, 128), seeds=five),
        ),
        "stride": (
            "output stride in training and, with the same weights, at test",
            [replace(cell, seeds=five) for cell in _strides()],
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
            seeds=_HEADLINE,
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


def _final_camvid() -> Study:
    """The recipes of the CamVid headlines from ten seeds each, so that all of them are of one commit."""
    base = replace(get_recipe("camvid-lite2"), name="camvid-final")
    ten = 2 * _HEADLINE
    cells = (
        Cell("EMA", seeds=ten),
        *(
            replace(cell, seeds=ten)
            for cell in _heads(_tuned("camvid-lite2"))
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
    cell = Cell(BASE, seeds=3 * _HEADLINE)
    return Study(
        f"{name}-again",
        f"the base of {name} once more, and from ten new seeds",
        base,
        (cell,),
        f"{name}-again",
    )


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        _tiny(),
        *_generated(),
        _evidence(),
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
        *_street_scenes(),
        _street_scene_rates(),
        _gradient_and_pretraining(),
        _final_camvid(),
        _again("voc-animals", _voc_animals()),
        _again("camvid", _camvid()),
    )
}
