"""Figures of the chapter on pixels: scenes, label maps in their palette, and what a window allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from emalab.backbones import TinyBackbone
from emalab.data import DatasetSpec, LabeledImages
from emalab.data.shapes import FarScenes, PooledScenes, ShapesDataset
from lab.style import MUTED, SERIES

WINDOWS = (1, 7, 15, 19, 31, 43, 61, 79, 103, 127)  # sides, pixels
Scenes = PooledScenes | FarScenes

__all__ = [
    "best_accuracy",
    "colored",
    "draw_windows",
    "legend",
    "show",
    "stack",
]


def stack(dataset: LabeledImages, count: int) -> tuple[Tensor, Tensor]:
    """The first images (b, 3, h, w) and masks (b, h, w) of a data set."""
    samples = [dataset[index] for index in range(count)]
    images = torch.stack([sample.image.as_subclass(Tensor) for sample in samples])
    masks = torch.stack([sample.mask.as_subclass(Tensor) for sample in samples])
    return images, masks.long()


def colored(labels: ArrayLike, spec: DatasetSpec) -> NDArray[np.uint8]:
    """Labels (h, w) → RGB by the palette, ignored pixels in white."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: spec.num_classes] = spec.palette
    return table[np.asarray(labels)]


def show(axes: Axes, picture: ArrayLike, title: str = "") -> None:
    """A picture (h, w, 3) or (3, h, w) without ticks."""
    pixels = np.asarray(picture)
    if pixels.shape[0] == 3:
        pixels = rearrange(pixels, "c h w -> h w c")
    axes.imshow(pixels)
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def legend(figure: Figure, spec: DatasetSpec) -> None:
    """Classes and their colors, below a figure."""
    pairs = zip(spec.classes, spec.palette, strict=True)
    patches = [Patch(facecolor="#" + bytes(c).hex(), label=name) for name, c in pairs]
    patches.append(Patch(facecolor="white", edgecolor="gray", label="ignored"))
    figure.legend(handles=patches, loc="outside lower center", ncols=6)


def best_accuracy(scenes: Scenes, window: int | None, count: int = 4) -> float:
    """Best possible accuracy on shapes for a window, mean over a few scenes."""
    dataset = ShapesDataset(scenes, "val", length=count)
    drawn = [dataset.scene(index) for index in range(count)]
    return float(np.mean([scenes.bayes_accuracy(scene, window) for scene in drawn]))


def draw_windows(
    figure: Figure,
    axes: Axes,
    settings: Mapping[str, Scenes],
    chance: float,
    windows: Sequence[int] = WINDOWS,
) -> None:
    """Best accuracy against the side of the window, a line for each setting."""
    marks = ("s", "o", "^")
    for (label, scenes), shade, mark in zip(
        settings.items(), SERIES[:3], marks, strict=True
    ):
        curve = [best_accuracy(scenes, window) for window in windows]
        axes.plot(windows, curve, marker=mark, color=shade, markersize=4, label=label)
    field = TinyBackbone.receptive_field
    axes.axvline(field, color=MUTED, linestyle="--", linewidth=1, label="tiny network")
    axes.axhline(chance, color=MUTED, linestyle=":", linewidth=1, label="guessing")
    axes.set(xlabel="side of the window / pixels", ylabel="best accuracy on shapes")
    axes.set_ylim(chance - 0.1, 1.02)
    figure.legend(loc="outside lower center", ncols=5)
