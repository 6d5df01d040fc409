"""Pyramid pooling, the context module of PSPNet: a baseline beside EM attention and the non-local block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from emalab.fastops import upsample_bilinear
from emalab.modules import ConvNormAct

__all__ = ["PyramidPooling"]


class PyramidPooling(nn.Module):
    """Pyramid pooling: (b, c, h, w) → (b, ``out_channels``, h, w). Zhao et al., "Pyramid Scene Parsing Network", 2017.

    The features are averaged over a grid of s×s cells for every s in ``sizes``, reduced in channels, enlarged again and
    joined to the features themselves. Training needs two images per step: at s = 1, batch norm sees one value of each.

    Args:
        channels: c.
        sizes: cells per side of each grid; each grid gets c divided by their number of channels, at least one.

    Raises:
        ValueError: no channels, or a grid of nothing.
    """

    def __init__(self, channels: int, sizes: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        if channels < 1 or not sizes or min(sizes) < 1:
            raise ValueError(f"channels and sizes must be at least 1; got {channels} and {tuple(sizes)}")
        of_each = max(channels // len(sizes), 1)
        self.out_channels = channels + len(sizes) * of_each
        self.grids = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvNormAct(channels, of_each, 1)) for size in sizes
        )

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) → (b, out_channels, h, w)."""
        grids = [upsample_bilinear(grid(features), features.shape[-2:]) for grid in self.grids]
        return torch.cat([features, *(grid.to(features.dtype) for grid in grids)], dim=1)
