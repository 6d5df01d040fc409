"""The recipes that have names: the experiments of the book, and the rows of the paper."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Literal

from emalab.recipes.config import DataConfig, EvalConfig, OptimConfig, Published, Recipe
from emalab.segmenter_config import ContextName, EMAConfig, SegmenterConfig

__all__ = ["named_recipe", "recipe_groups", "recipe_names"]

_SUFFIX: dict[ContextName, str] = {
    "none": "-fcn",
    "non_local": "-non-local",
    "deeplab_v3": "-deeplab-v3",
    "psp": "-psp",
    "ema": "",
}
_HEADS: tuple[tuple[ContextName, str], ...] = (
    ("ema", "EMANet head"),
    ("none", "plain FCN head"),
    ("non_local", "non-local head"),
    ("deeplab_v3", "DeepLabV3 head"),
    ("psp", "PSPNet head"),
)
_Depth = Literal[50, 101, 152]
_DEPTHS: tuple[_Depth, ...] = (50, 101)
_README = "the authors' README"


def _shapes(name: str, context: ContextName, summary: str) -> Recipe:
    return Recipe(
        name=name + _SUFFIX[context],
        summary=summary,
        data=DataConfig(
            name=name, train_split="train", eval_split="val", crop_size=(64, 64), scale_range=(1.0, 1.0), flip=0.5
        ),
        model=SegmenterConfig(
            num_classes=5,
            backbone="tiny",
            output_stride=4,
            context=context,
            channels=32,
            head_channels=32,
            head_kernel=1,
            dropout=0.0,
            ema=EMAConfig(num_bases=8),
        ),
        optim=OptimConfig(optimizer="adamw", lr=3e-3, weight_decay=1e-2, warmup=20, iterations=300, batch_size=16),
        evaluation=EvalConfig(every=0, batch_size=32),
        precision="32-true",
    )


# Chosen for each head alike, from four rates and one seed: on CamVid's val, and on a tenth of trainaug held out. The
# runs are in book/results/lite2-learning-rates.json. DeepLabV3 and PSPNet have not been tuned.
_LITE2_LR: dict[str, dict[ContextName, float]] = {
    "camvid": {"none": 2e-3, "non_local": 2e-3, "ema": 4e-3, "deeplab_v3": 2e-3, "psp": 2e-3},
    "voc-animals": {"none": 1e-3, "non_local": 5e-4, "ema": 1e-3, "deeplab_v3": 1e-3, "psp": 1e-3},
}


def _lite2(dataset: Literal["camvid", "voc-animals"], context: ContextName, summary: str) -> Recipe:
    camvid = dataset == "camvid"
    return Recipe(
        name=f"{dataset}-lite2{_SUFFIX[context]}",
        summary=summary,
        data=DataConfig(
            name=dataset,
            train_split="trainval" if camvid else "trainaug",
            eval_split="test" if camvid else "val",
            crop_size=(352, 480) if camvid else (320, 320),
            scale_range=(0.5, 2.0),
            photometric=0.5,
        ),
        model=SegmenterConfig(
            num_classes=11 if camvid else 21,
            backbone="tf_efficientnet_lite2",
            backbone_weights="imagenet",
            output_stride=8 if camvid else 16,  # poles and signs are a few pixels wide
            context=context,
            channels=256,
            head_channels=128,
        ),
        optim=OptimConfig(
            optimizer="adamw",
            lr=_LITE2_LR[dataset][context],
            head_lr_factor=2.0,
            weight_decay=5e-2,
            warmup=100,
            iterations=1_600 if camvid else 2_000,
            batch_size=16,
            clip_norm=5.0,
        ),
        # Images of VOC differ in size, and cuDNN plans anew for each size of a batch: one image at a time is faster.
        evaluation=EvalConfig(
            every=0, batch_size=8 if camvid else 1, scales=(0.75, 1.0, 1.25, 1.5) if camvid else (1.0,), flip=camvid
        ),
        execution="cuda_graph",
    )


def _lite2_cpu() -> Recipe:
    base = _lite2("voc-animals", "ema", "EMANet without a GPU: an hour on one core")
    return replace(
        base,
        name="voc-animals-lite2-cpu",
        data=replace(base.data, crop_size=(256, 256), scale_range=(0.5, 1.5)),
        optim=replace(base.optim, lr=7e-4, iterations=1_400, batch_size=8),
        evaluation=EvalConfig(every=0),
        execution="eager",
    )


def _emanet(
    name: str, depth: _Depth, data: DataConfig, num_classes: int, summary: str, *published: Published, notes: str = ""
) -> Recipe:
    """The authors' training on VOC, each setting theirs, on any data."""
    weights = f"It starts from timm's ImageNet weights of resnet{depth}s, the authors' backbone; theirs may be others."
    return Recipe(
        name=name,
        summary=summary,
        data=replace(data, scale_step=0.25),
        model=SegmenterConfig(
            num_classes=num_classes,
            backbone=f"resnet{depth}s",
            backbone_weights="imagenet",
            output_stride=8,
            multi_grid=(1, 2, 4),
            batch_norm_momentum=3e-4,
            align_corners=True,
        ),
        optim=OptimConfig(bias_lr_factor=2.0, lr_hold=10, loss_average="all"),
        evaluation=EvalConfig(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True),
        precision="32-true",
        notes=f"{notes} {weights}".strip(),
        published=published,
    )


def _on_val(single_scale: float, multi_scale: float) -> tuple[Published, Published]:
    return (
        Published(single_scale, "single scale", _README),
        Published(multi_scale, "multi-scale + flip", _README),
    )


def _voc() -> list[Recipe]:
    """The rows of VOC: on its val with what VOC and SBD label, and on its test server after COCO."""
    trainaug = DataConfig("voc", "trainaug", "val")
    r50 = _emanet("voc-r50", 50, trainaug, 21, "EMANet, ResNet-50, trainaug → val")
    ablation = replace(
        r50,
        name="voc-r50-ablation",
        summary="the ablation: ResNet-50, stride 16, scored at 8",
        model=replace(r50.model, output_stride=16),
        optim=replace(r50.optim, batch_size=12),
        evaluation=EvalConfig(output_stride=8),
        published=(Published(78.52, "single scale", "figure 4 of the paper, quoted in the authors' issue 37"),),
    )
    r101 = _emanet("voc-r101", 101, trainaug, 21, "EMANet (512), ResNet-101, trainaug → val", *_on_val(80.05, 81.32))
    narrow = replace(
        r101,
        name="voc-r101-256",
        summary="EMANet (256), ResNet-101, trainaug → val",
        model=replace(r101.model, channels=256),
        published=_on_val(79.73, 80.94),
    )
    r152 = _emanet("voc-r152", 152, trainaug, 21, "EMANet, ResNet-152, trainaug → val")
    others = [_other_head(base, context, head) for base in (r50, r101) for context, head in _HEADS if context != "ema"]
    return [r50, ablation, r101, narrow, r152, *others, *_chain(101, 87.7, 87.3), *_chain(152, 88.2, 88.0)]


def _other_head(base: Recipe, context: ContextName, head: str) -> Recipe:
    """The authors' training with the head of another method in place of EMANet's."""
    name = base.name + _SUFFIX[context]
    model = replace(base.model, context=context)
    if context == "psp":
        model = replace(model, head_channels=512)  # as PSPNet has it, for 4096 channels that come in
    others = {"voc-r50-non-local": 76.65, "voc-r101-non-local": 78.27, "voc-r50-psp": 77.29, "voc-r101-psp": 78.52}
    published: tuple[Published, ...] = ()
    if name == "voc-r101-deeplab-v3":
        published = _on_val(78.51, 79.77)
    elif name in others:
        source = "mmsegmentation, single scale, 40 000 iterations of its own recipe"
        published = (Published(others[name], "by another recipe", source),)
    return replace(
        base,
        name=name,
        summary=base.summary.replace("EMANet (512)", head).replace("EMANet", head),
        model=model,
        published=published,
    )


def _chain(depth: _Depth, test: float, test_at_16: float) -> list[Recipe]:
    """COCO → trainaug → trainval, each from the weights of the one before; the last is for VOC's test server."""
    coco = _emanet(
        f"voc-r{depth}-coco",
        depth,
        DataConfig("coco-voc", "train", "val"),
        21,
        f"1. ResNet-{depth} on COCO, VOC's classes",
        notes="On the images of COCO 2017 that show a class of VOC. The authors say that they train on COCO first, but "
        "not how; 150 000 iterations at the rate for VOC are our choice.",
    )
    coco = replace(coco, optim=replace(coco.optim, iterations=150_000))
    trainaug = replace(
        coco,
        name=f"voc-r{depth}-chain-trainaug",
        summary="2. from these weights, trainaug",
        data=replace(coco.data, name="voc", train_split="trainaug"),
        model=replace(coco.model, backbone_weights=None),
        optim=replace(coco.optim, iterations=30_000),
        init_from=coco.name,
        notes="The length is the authors'; the rate could not be checked and is that for VOC.",
    )
    trainval = replace(
        trainaug,
        name=f"voc-r{depth}-chain-trainval",
        summary="3. from these weights, trainval → test server",
        data=replace(trainaug.data, train_split="trainval"),
        evaluation=replace(trainaug.evaluation, every=0),
        init_from=trainaug.name,
        notes="Its own score is on val, which it has learned by heart: `emalab submit` writes what the server scores. "
        f"Trained at stride 16 and scored at 8 the authors report {test_at_16}. " + trainaug.notes,
        published=(Published(test, "on the test server", _README),),
    )
    return [coco, trainaug, trainval]


def _context() -> list[Recipe]:
    notes = (
        "It could not be checked whether the paper's score is over 59 or 60 classes, nor whether its "
        "training differs from that on VOC, which this is."
    )
    published = Published(53.1, "over 59 or 60 classes", "the paper, by secondary sources")
    return [
        _emanet(
            f"context-{classes}-r{depth}",
            depth,
            DataConfig(f"context-{classes}", "train", "val"),
            classes,
            f"EMANet, ResNet-{depth}, {what}, train → val",
            *((published,) if depth == 101 else ()),
            notes=notes,
        )
        for classes, what in ((59, "59 classes"), (60, "with background"))
        for depth in _DEPTHS
    ]


def _coco_stuff() -> list[Recipe]:
    settings = (
        "The authors' issues 19 and 23 give crop, length, rate and batch, and call the rest almost the same as for "
        "VOC; which part is not could not be checked."
    )
    small = [
        _emanet(
            f"coco-stuff-10k-r{depth}",
            depth,
            DataConfig("coco-stuff-10k", "train", "test"),
            171,
            f"EMANet, ResNet-{depth}, 171 classes, train → test",
            *((Published(39.9, "on 10k test", "the paper, by secondary sources"),) if depth == 101 else ()),
            notes=settings,
        )
        for depth in _DEPTHS
    ]
    large = [
        replace(
            recipe,
            name=recipe.name.replace("10k", "164k"),
            summary=recipe.summary.replace("test", "val"),
            data=replace(recipe.data, name="coco-stuff-164k", eval_split="val"),
            published=(),
            notes="The paper trains on the 10k release only; here are its settings on all of COCO 2017, each image of "
            "which they show about four times.",
        )
        for recipe in small
    ]
    return small + large


def recipe_groups() -> dict[str, list[Recipe]]:
    """Every recipe under the heading that `emalab recipes` gives it, in the order of a reader."""
    shapes = [
        _shapes(name, context, f"{head} where {what}")
        for name, what in (
            ("shapes-pooled", "evidence must be pooled over look-alikes"),
            ("shapes-far", "the class hangs on a distant cue"),
        )
        for context, head in _HEADS
    ]
    tiny = replace(shapes[0], name="shapes-tiny", summary="the smallest run: EMANet on generated scenes")
    return {
        "Generated scenes, seconds on a CPU": [tiny, *shapes],
        "CamVid": [_lite2("camvid", context, f"{head}, 480×360, train+val → test") for context, head in _HEADS],
        "PASCAL VOC, images with animals": [
            *(_lite2("voc-animals", context, f"{head}, 320 px, trainaug → val") for context, head in _HEADS),
            _lite2_cpu(),
        ],
        "PASCAL VOC 2012": _voc(),
        "PASCAL Context": _context(),
        "COCO-Stuff": _coco_stuff(),
    }


def _recipes() -> dict[str, Recipe]:
    return {recipe.name: recipe for group in recipe_groups().values() for recipe in group}


def recipe_names() -> list[str]:
    """Names that `get_recipe` knows, sorted.

    Example:
        >>> "voc-r101" in recipe_names()
        True
    """
    return sorted(_recipes())


def named_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        KeyError: no such recipe; the message suggests the nearest names, or a file of that name.
    """
    recipes = _recipes()
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=3, cutoff=0.4)
        if name and (file := Path(f"{name}.yaml")).is_file():
            near = [str(file)]
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise KeyError(f"no recipe {name!r}; {hint}`emalab recipes` lists all")
    return recipes[name]
