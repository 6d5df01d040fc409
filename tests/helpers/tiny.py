"""The smallest things that train: a recipe of a few steps, networks on the tiny backbone, a handful of scenes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emalab.data.shapes import PooledScenes, ShapesDataset
from emalab.recipes import OptimConfig, Recipe, get_recipe
from emalab.segmenter import Segmenter
from emalab.trainer import RunOptions, TrainResult, train

CPU = RunOptions(accelerator="cpu", num_workers=0, progress=False, log_every=1, checkpoint_every=4)
SHORT = OptimConfig(optimizer="adamw", lr=3e-3, weight_decay=1e-2, warmup=2, iterations=8, batch_size=4)


def tiny_recipe(**changes: Any) -> Recipe:
    """shapes-tiny, cut down to eight steps of four 32×32 crops; ``optim`` and ``data`` change single fields."""
    recipe = get_recipe("shapes-tiny")
    optim = replace(SHORT, **changes.pop("optim", {}))
    data = replace(recipe.data, **{"crop_size": (32, 32), **changes.pop("data", {})})
    return replace(recipe, optim=optim, data=data, **changes)


def with_auxiliary_head(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, auxiliary_channels=8, concat_input=True))


def scenes(length: int = 6, split: str = "val", size: int = 64) -> ShapesDataset:
    return ShapesDataset(PooledScenes(size=size), split, length)


def short_train(recipe: Recipe, out: Path, **options: Any) -> TrainResult:
    return train(recipe, out, replace(CPU, **options), eval_data=scenes())


def tiny_segmenter(seed: int = 0, **changes: Any) -> Segmenter:
    """An untrained network in evaluation mode; its batch norm is moved off the identity."""
    torch.manual_seed(seed)
    model = Segmenter(replace(get_recipe("shapes-tiny").model, **changes)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return model


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
