"""`emalab convert official IN OUT`, `emalab convert mmseg IN OUT` and `emalab convert state-dict IN OUT`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from emalab.data.required import check_spec
from emalab.recipes import get_recipe

if TYPE_CHECKING:
    from emalab.recipes import Recipe
    from emalab.segmenter import Segmenter

__all__ = ["mmseg", "official", "state_dict"]


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
        data: data set whose classes the network predicts.
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
        data: data set whose classes the network predicts.
        output_stride: pixels per position of the feature map that the network is to have.
        align_corners: how the network enlarges logits; set it for those trained on crops of 769×769.
    """
    _require_files(checkpoint, out)
    from emalab.convert import load_mmseg, mmseg_recipe, read_mmseg

    model = load_mmseg(read_mmseg(checkpoint), output_stride, align_corners)
    _release(model, mmseg_recipe(model, data), checkpoint, out, "mmsegmentation")


def state_dict(
    checkpoint: Positional[Path],
    out: Positional[Path],
    recipe: str,
    data: str | None = None,
    allow_code: tuple[str, ...] = (),
) -> None:
    """Turn a network that you saved yourself into a .safetensors release that every command takes.

    The file is a state dict of a Segmenter: bare, inside {"state_dict": ...}, or of a Lightning checkpoint; with or
    without module., _orig_mod. or other names in front of all tensors.

    Args:
        checkpoint: the file, of torch.save or safetensors.
        out: the file to write, ending in .safetensors.
        recipe: whose network it is: a name that `emalab recipes` lists, or a .yaml file with a recipe of your own.
        data: data set whose classes the network predicts; by default the recipe's.
        allow_code: modules that may be imported for a network with a part of your own.
    """
    chosen = get_recipe(recipe, allow_code)
    if data:
        check_spec(data)
    _require_files(checkpoint, out)
    from emalab.convert import load_state_dict, read_own
    from emalab.data import get_spec

    spec = get_spec(data or chosen.data.name)
    network = replace(chosen.model, num_classes=spec.num_classes)
    try:
        model = load_state_dict(read_own(checkpoint), network)
    except ValueError as error:
        raise ValueError(f"{checkpoint} with the network of {recipe}: {error}") from error
    chosen = replace(chosen, model=network, data=replace(chosen.data, name=data or chosen.data.name), published=())
    _release(model, chosen, checkpoint, out, "somebody's own")


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
