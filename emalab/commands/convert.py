"""`emalab convert official IN OUT` and `emalab convert mmseg IN OUT`."""

from __future__ import annotations

from pathlib import Path

import torch
from tyro.conf import Positional

from emalab.checkpoints import export_segmenter
from emalab.convert import load_mmseg, load_official, mmseg_recipe, official_recipe, read_mmseg, read_official
from emalab.recipes import Recipe
from emalab.segmenter import Segmenter

__all__ = ["mmseg", "official"]


def official(
    checkpoint: Positional[Path],
    out: Positional[Path],
    data: str = "voc",
    output_stride: int = 8,
    multi_grid: tuple[int, ...] = (1, 2, 4),
) -> None:
    """Turn a checkpoint of the authors' code into a .safetensors release, in single precision and with a recipe.

    Args:
        checkpoint: the .pth file.
        out: the file to write, ending in .safetensors.
        data: data set that the network tells the classes of.
        output_stride: pixels per position of the feature map that the network is to have.
        multi_grid: dilation factors of the last stage's blocks.
    """
    model = load_official(read_official(checkpoint), output_stride, multi_grid)
    _release(model, official_recipe(model, data), checkpoint, out, "the authors' code")


def mmseg(
    checkpoint: Positional[Path],
    out: Positional[Path],
    data: str = "cityscapes",
    output_stride: int = 8,
    align_corners: bool = False,
) -> None:
    """Turn an EMANet of mmsegmentation into a .safetensors release, in single precision and with a recipe.

    Args:
        checkpoint: the .pth file.
        out: the file to write, ending in .safetensors.
        data: data set that the network tells the classes of.
        output_stride: pixels per position of the feature map that the network is to have.
        align_corners: how the network enlarges logits; set it for those trained on crops of 769×769.
    """
    model = load_mmseg(read_mmseg(checkpoint), output_stride, align_corners)
    _release(model, mmseg_recipe(model, data), checkpoint, out, "mmsegmentation")


def _release(model: Segmenter, recipe: Recipe, checkpoint: Path, out: Path, source: str) -> None:
    metadata = {"data": f"converted from a checkpoint of {source}", "source": checkpoint.name}
    export_segmenter(model, out, recipe, metadata, torch.float32)
    config = model.config
    print(f"{out}: {config.backbone}, {config.num_classes} classes, {out.stat().st_size / 1e6:.1f} MB")
