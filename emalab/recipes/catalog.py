"""The recipes that have names: the experiments of the book, and the rows of the paper."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Literal

from emalab.recipes.config import DataConfig, EvalConfig, OptimConfig, Recipe
from emalab.segmenter import ContextName, EMAConfig, SegmenterConfig

__all__ = ["get_recipe", "recipe_names"]

_SUFFIX: dict[ContextName, str] = {"none": "-fcn", "non_local": "-non-local", "ema": ""}


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
            lr=1e-3,
            head_lr_factor=2.0,
            weight_decay=5e-2,
            warmup=100,
            iterations=1_300 if camvid else 1_200,
            batch_size=16,
            clip_norm=5.0,
        ),
        evaluation=EvalConfig(every=0, scales=(0.75, 1.0, 1.25, 1.5) if camvid else (1.0,), flip=camvid),
        execution="cuda_graph",
    )


def _lite2_cpu() -> Recipe:
    base = _lite2("voc-animals", "ema", "EMANet on the animals of PASCAL VOC without a GPU: an hour on one core")
    return replace(
        base,
        name="voc-animals-lite2-cpu",
        data=replace(base.data, crop_size=(256, 256), scale_range=(0.5, 1.5)),
        optim=replace(base.optim, lr=7e-4, iterations=1_400, batch_size=8),
        execution="eager",
    )


def _voc(depth: Literal[50, 101, 152], summary: str) -> Recipe:
    """The authors' training, each setting theirs."""
    return Recipe(
        name=f"voc-r{depth}",
        summary=summary,
        data=DataConfig(scale_step=0.25),
        model=SegmenterConfig(
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
    )


def _recipes() -> dict[str, Recipe]:
    heads: tuple[tuple[ContextName, str], ...] = (
        ("none", "plain FCN head"),
        ("non_local", "non-local head"),
        ("ema", "EMANet head"),
    )
    recipes = []
    for context, head in heads:
        recipes += [
            _shapes(
                "shapes-pooled", context, f"{head} where evidence must be pooled over look-alikes; seconds on a CPU"
            ),
            _shapes("shapes-far", context, f"{head} where the class hangs on a distant cue; seconds on a CPU"),
            _lite2("camvid", context, f"{head} on CamVid, 480×360, train+val → test"),
            _lite2("voc-animals", context, f"{head} on the animals of PASCAL VOC at 320 px, trainaug → val"),
        ]
    recipes.append(
        replace(_shapes("shapes-pooled", "ema", "the smallest run: EMANet on generated scenes"), name="shapes-tiny")
    )
    recipes.append(_lite2_cpu())
    recipes += [
        _voc(50, "ResNet-50 on PASCAL VOC; the paper's ablation, trained at stride 16 with batch 12, says 78.52 mIoU"),
        _voc(101, "the paper's EMANet (512) on PASCAL VOC, trainaug → val: 80.05 mIoU, 81.32 multi-scale + flip"),
        _voc(152, "ResNet-152 on PASCAL VOC; the paper says 88.2 on the test server, after COCO and trainval"),
    ]
    return {recipe.name: recipe for recipe in recipes}


def recipe_names() -> list[str]:
    """Names that `get_recipe` knows, sorted."""
    return sorted(_recipes())


def get_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        KeyError: no such recipe; the message suggests the nearest names.
    """
    recipes = _recipes()
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise KeyError(f"no recipe {name!r}; {hint}`emalab recipes` lists all")
    return recipes[name]
