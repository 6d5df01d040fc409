"""EfficientNet-Lite2 without timm: the same layers, names of tensors, random weights and features.

timm imports every network that it has, and torchvision with them, which takes longer than to import torch and label a
photograph. The shipped network has this backbone, so it alone is written out here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emalab.fastops import DilatedDepthwiseConv2d

__all__ = ["CLASSIFIER", "EfficientNetLite2"]

# Kernel size, stride, expansion, channels and blocks of each stage: Lite0 times 1.1 in width and 1.2 in depth.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 3),
    (5, 2, 6, 48, 3),
    (3, 2, 6, 88, 4),
    (5, 1, 6, 120, 4),
    (5, 2, 6, 208, 5),
    (3, 1, 6, 352, 1),
)
STEM_CHANNELS = 32
CLASSIFIER = (
    "conv_head.weight",
    *(f"bn2.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    *("classifier.weight", "classifier.bias"),
)
"""The tensors that a whole network has behind those of its features, in timm's names and order."""

FEATURE_STAGES = (0, 1, 2, 4, 6)  # the last stage of each resolution
_EPS = 1e-3  # of batch norm, as TensorFlow has it
_DRAWN_BY_TIMM = 144  # random numbers for a layer that it builds and drops; with them, a seed gives the same weights


class SameConv2d(nn.Conv2d):
    """TensorFlow's "same" padding of a strided convolution: the odd pixel of it lies at the right and the bottom.

    timm takes the maximum of the padding and 0, which decides nothing for kernels that are no smaller than the stride.
    With a maximum in each size, `torch.export` with free sizes takes more than ten minutes to bound nested ones.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, o, ⌈h/s⌉, ⌈w/s⌉)."""
        sides = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        high, wide = (-side % stride + kernel - stride for side, kernel, stride in sides)
        padded = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SeparableBlock(nn.Module):
    """Depthwise convolution, then 1×1: (b, c, h, w) → (b, o, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(in_channels, kernel_size, stride=1, dilation=1)
        self.bn1 = nn.BatchNorm2d(in_channels, _EPS)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, o, h, w)."""
        return self.bn2(self.conv_pw(_relu6(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """1×1 to more channels, depthwise convolution, 1×1 to fewer; its input is added where the size is the same."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int, expansion: int
    ) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.has_skip = stride == 1 and in_channels == out_channels
        self.conv_pw = nn.Conv2d(in_channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, _EPS)
        self.conv_dw = _depthwise(wide, kernel_size, stride, dilation)
        self.bn2 = nn.BatchNorm2d(wide, _EPS)
        self.conv_pwl = nn.Conv2d(wide, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → (b, o, ⌈h/s⌉, ⌈w/s⌉)."""
        out = _relu6(self.bn1(self.conv_pw(x)))
        out = _relu6(self.bn2(self.conv_dw(out)))
        out = self.bn3(self.conv_pwl(out))
        return out + x if self.has_skip else out


class EfficientNetLite2(nn.Module):
    """Images (b, c, h, w) → the last ``num_features`` feature maps, in timm's order.

    Args:
        output_stride: 8, 16 or 32; from there on stages are dilated instead of strided.
        num_features: 1 to 5; of `FEATURE_STAGES`, the last so many.
        in_channels: c.
    """

    def __init__(self, output_stride: int, num_features: int, in_channels: int = 3) -> None:
        super().__init__()
        self.wanted = FEATURE_STAGES[-num_features:]
        self.channels = tuple(STAGES[index][3] for index in self.wanted)
        self.conv_stem = SameConv2d(in_channels, STEM_CHANNELS, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS, _EPS)
        torch.rand(_DRAWN_BY_TIMM)
        self.blocks = nn.Sequential(*_stages(output_stride))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(b, c, h, w) → feature maps, each (b, c, ⌈h/s⌉, ⌈w/s⌉)."""
        features, x = [], _relu6(self.bn1(self.conv_stem(images)))
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in self.wanted:
                features.append(x)
        return features


def _stages(output_stride: int) -> list[nn.Sequential]:
    """The blocks of each stage. Where one no longer strides, its first block keeps the dilation of the stage before."""
    stages, channels, reached, dilation = [], STEM_CHANNELS, 2, 1
    for kernel_size, stride, expansion, out_channels, count in STAGES:
        blocks: list[nn.Module] = []
        for _ in range(count):
            widened = 1
            if stride > 1 and reached * stride > output_stride:
                stride, widened = 1, stride
            if expansion == 1:
                blocks.append(SeparableBlock(channels, out_channels, kernel_size))
            else:
                blocks.append(InvertedResidual(channels, out_channels, kernel_size, stride, dilation, expansion))
            reached, dilation, channels, stride = reached * stride, dilation * widened, out_channels, 1
        stages.append(nn.Sequential(*blocks))
    return stages


def _depthwise(channels: int, kernel_size: int, stride: int, dilation: int) -> nn.Conv2d:
    if stride > 1:
        return SameConv2d(channels, channels, kernel_size, stride, groups=channels, bias=False)
    conv = DilatedDepthwiseConv2d if dilation > 1 else nn.Conv2d
    padding = dilation * (kernel_size // 2)
    return conv(channels, channels, kernel_size, 1, padding, dilation, channels, bias=False)


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)
