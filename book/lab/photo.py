"""The photograph of the first chapters, as features that can be judged by eye."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike
from skimage import color
from torch import Tensor

HEIGHT, WIDTH = 48, 72  # cells of the grid

__all__ = ["HEIGHT", "WIDTH", "patch_features", "show", "shrink"]


def shrink(image: ArrayLike) -> Tensor:
    """Mean over each cell of the grid: (H, W, c) array → (1, c, h, w)."""
    values = rearrange(torch.as_tensor(image, dtype=torch.float32), "h w c -> 1 c h w")
    return F.adaptive_avg_pool2d(values, (HEIGHT, WIDTH))


def patch_features(photo: ArrayLike) -> Tensor:
    """CIELAB colors of each cell's 3 × 3 neighborhood, at unit length: (H, W, 3) array → (1, n, 27)."""
    lab = shrink(color.rgb2lab(photo))
    lab = (lab - lab.mean(dim=(2, 3), keepdim=True)) / lab.std(dim=(2, 3), keepdim=True)
    patches = F.unfold(F.pad(lab, (1, 1, 1, 1), mode="reflect"), kernel_size=3)
    return F.normalize(rearrange(patches, "b c n -> b n c"), dim=-1)


def show(
    axes: Axes,
    image: ArrayLike,
    title: str,
    mark: tuple[int, int] | None = None,
    **options: Any,
) -> AxesImage:
    """An image without ticks, with a circle around the marked (row, column)."""
    drawn = axes.imshow(image, **options)
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if mark:
        axes.plot(mark[1], mark[0], "o", fillstyle="none", color="cyan", markersize=7)
    return drawn
