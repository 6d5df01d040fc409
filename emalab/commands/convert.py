"""`emalab convert official IN OUT` and `emalab convert mmseg IN OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
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
    _require_files(checkpoint, out)
    from emalab.convert import load_official, official_recipe, read_official

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
    _require_files(checkpoint, out)
    from emalab.convert import load_mmseg, mmseg_recipe, read_mmseg

    model = load_mmseg(read_mmseg(checkpoint), output_stride, align_corners)
    _release(model, mmseg_recipe(model, data), checkpoint, out, "mmsegmentation")


def _require_files(checkpoint: Path, out: Path) -> None:
    """Refuse at once what would fail after seconds: a file that is not there, a release of another kind."""
    if not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}")
    if out.suffix != ".safetensors":
        raise ValueError(f"a released network is a .safetensors file; got {out}")


def _release(model: Segmenter, recipe: Recipe, checkpoint: Path, out: Path, source: str) -> None:
    import torch

    from emalab.checkpoints import export_segmenter

    metadata = {"data": f"converted from a checkpoint of {source}", "source": checkpoint.name}
    export_segmenter(model, out, recipe, metadata, torch.float32)
    config = model.config
    print(f"{out}: {config.backbone}, {config.num_classes} classes, {out.stat().st_size / 1e6:.1f} MB")
