"""Two operations whose stock GPU kernels would dominate a training step, rewritten from ordinary ones, same result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

__all__ = [
    "DilatedDepthwiseConv2d",
    "dilated_depthwise",
    "interpolation",
    "replace_dilated_depthwise",
    "upsample_bilinear",
]


def upsample_bilinear(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """`F.interpolate(mode="bilinear")` as two small matrix products: (b, c, i, j) → (b, c, h, w), float32 or wider.

    Bilinear interpolation is linear in the image and separable. As matrix products it has a backward pass without
    atomic additions, which on an H200 makes the difference between 5 ms and a fraction of one for a training batch of
    CamVid.
    """
    wide = x.float() if x.dtype.itemsize < 4 else x
    rows, columns = (interpolation(side, out, align_corners, wide) for side, out in zip(x.shape[2:], size, strict=True))
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # meta has no autocast of its own
        wide = einsum(wide, columns, "b c i j, j w -> b c i w")
        return einsum(wide, rows, "b c i w, i h -> b c h w")


def interpolation(side: int, out: int, align_corners: bool, like: Tensor) -> Tensor:
    """Weights (side, out) of linear interpolation, by torch's own convention: the identity, interpolated.

    Device and precision are those of ``like``.
    """
    identity = torch.eye(side, device=like.device, dtype=like.dtype)
    return F.interpolate(identity[None], out, mode="linear", align_corners=align_corners)[0]


def dilated_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Depthwise convolution with dilation d and "same" padding, as an undilated one on d² interleaved subimages.

    Positions of equal remainder modulo d only ever meet each other in the convolution, so they can be an image of
    their own. The undilated kernels are several times faster on a GPU, and one copy in and out costs little in
    channels_last memory.

    Args:
        x: (b, c, h, w).
        weight: (c, 1, k, k), k odd.
        bias: (c,) or None.
        dilation: d.

    Returns:
        (b, c, h, w).
    """
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % dilation, 0, -height % dilation))  # zeros, which is what lies beyond the border anyway
    images = rearrange(x, "b c h w -> b h w c")
    subimages = rearrange(images, "b (h p) (w q) c -> (b p q) h w c", p=dilation, q=dilation)
    out = F.conv2d(
        rearrange(subimages, "n h w c -> n c h w"), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight)
    )
    out = rearrange(out, "n c h w -> n h w c")
    images = rearrange(out, "(b p q) h w c -> b (h p) (w q) c", p=dilation, q=dilation)
    return rearrange(images, "b h w c -> b c h w")[..., :height, :width]


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A depthwise `torch.nn.Conv2d` with dilation, which takes the fast way (`dilated_depthwise`) on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, c, h, w)."""
        if not x.is_cuda:
            return super().forward(x)
        return dilated_depthwise(x, self.weight, self.bias, self.dilation[0])


def replace_dilated_depthwise(network: nn.Module) -> None:
    """Turn dilated depthwise convolutions into `DilatedDepthwiseConv2d`, in place; weights and keys stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_dilated_depthwise(module):
            module.__class__ = DilatedDepthwiseConv2d


def _is_dilated_depthwise(conv: nn.Conv2d) -> bool:
    (dilation, _), (kernel, _) = conv.dilation, conv.kernel_size
    return (
        dilation > 1
        and conv.dilation == (dilation, dilation)
        and conv.kernel_size == (kernel, kernel)
        and kernel % 2 == 1
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.stride == (1, 1)
        and conv.padding == (dilation * (kernel // 2),) * 2
        and conv.padding_mode == "zeros"
    )
