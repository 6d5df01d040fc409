"""What a network is, as values: every setting of `emalab.segmenter.Segmenter`. Recipes are made of them.

They need neither torch nor timm, so that a list of recipes comes at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from emalab.choices import Grad, MaintenanceName, NonLocalMode, Norm, Renormalize, SettingError

__all__ = ["SMALLEST_STD", "ContextName", "EMAConfig", "NonLocalConfig", "SegmenterConfig"]

SMALLEST_STD = 1 / 30
"""Smallest standard deviation, for values in 0–1, that a network divides by; a constant channel stays small."""

ContextName = Literal["none", "non_local", "deeplab_v3", "psp", "ema"]


@dataclass(frozen=True)
class EMAConfig:
    """Settings of the EMA unit; the fields are the arguments of `EMAU`."""

    num_bases: int = 64
    num_iters: int = 3
    maintenance: MaintenanceName = "moving_average"
    momentum: float = 0.9
    norm: Norm = "l2"
    grad: Grad = "stop"
    scale: float = 1.0
    renormalize: Renormalize = "none"
    eps: float = 1e-6
    clamp: bool = False
    learn_scale: bool = False
    freeze_input: bool = False


@dataclass(frozen=True)
class NonLocalConfig:
    """Settings of the non-local block; the fields are the arguments of `NonLocal2d`."""

    inner_channels: int | None = None
    mode: NonLocalMode = "embedded_gaussian"
    scale: float | None = None


@dataclass(frozen=True)
class SegmenterConfig:
    """Everything that decides the architecture, and nothing else."""

    num_classes: int = 21
    """Classes that the network predicts, without the ignored label."""
    backbone: str = "resnet50"
    """A timm network, or "tiny" for generated scenes. Transformers serve at their own stride (model.output_stride)."""
    backbone_weights: str | None = None
    """"imagenet", the path of a timm state dict, or none for random ones."""
    output_stride: int = 16
    """Pixels per position of the feature map: 8, 16 or 32 (4 for "tiny")."""
    multi_grid: tuple[int, ...] = ()
    """Dilation factors of the last stage's blocks, such as 1 2 4."""
    backbone_blocks: tuple[int, ...] = ()
    """Residual blocks per stage of a ResNet, if other than its name says."""
    batch_norm_momentum: float | None = None
    """Weight of the new batch in the running statistics of every batch norm; none for the networks' own, mostly 0.1."""
    context: ContextName | str = "ema"
    """How positions learn of each other: "none" (the plain FCN head), "non_local", "deeplab_v3", "psp", "ema", or a
    class of your own as "module:Class", (b, channels, h, w) → (b, channels, h, w)."""
    channels: int = 512
    """Channels of the reduced features that the context module works on; "deeplab_v3" and "psp" take all of them."""
    head_channels: int = 256
    """Channels between the context module and the classifier."""
    head_kernel: int = 3
    """Kernel size of the two convolutions around the context module; 1 keeps the receptive field."""
    concat_input: bool = False
    """Let the classifier see the backbone's features too, beside head_channels of context (mmsegmentation)."""
    auxiliary_channels: int = 0
    """Channels of an FCN head on the stage before the last, which helps in training alone; 0 for no such head."""
    dropout: float = 0.1
    """Probability of dropping a channel before the classifier."""
    align_corners: bool = False
    """How logits are enlarged to the image; True is the authors' convention, for images of 8k + 1 pixels."""
    in_channels: int = 3
    """Channels of an image: 3 for RGB, 1 for gray, or the number of bands."""
    channel_mean: tuple[float, ...] = ()
    """Mean of each channel in 0–1, which the network subtracts. By default it is that of the backbone's weights for
    RGB, and otherwise that of the training images."""
    channel_std: tuple[float, ...] = ()
    """Standard deviation of each channel in 0–1, by which the network divides; given together with channel_mean."""
    ema: EMAConfig = field(default_factory=EMAConfig)
    non_local: NonLocalConfig = field(default_factory=NonLocalConfig)

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("num_classes", self.num_classes, 1, 2**16),
            ("in_channels", self.in_channels, 1, 1024),
            ("channels", self.channels, 1, 2**16),
            ("head_channels", self.head_channels, 1, 2**16),
            ("auxiliary_channels", self.auxiliary_channels, 0, 2**16),
            ("head_kernel", self.head_kernel, 1, 64),
            ("backbone_blocks", max(self.backbone_blocks, default=1), 1, 1000),
            ("multi_grid", max(self.multi_grid, default=1), 1, 1000),
            ("dropout", self.dropout, 0, 1),
            ("ema.num_bases", self.ema.num_bases, 1, 2**16),
            ("ema.num_iters", self.ema.num_iters, 1, 10_000),
            ("ema.momentum", self.ema.momentum, 0, 1),
            ("non_local.inner_channels", self.non_local.inner_channels or 1, 1, 2**16),
        ):
            if not least <= value <= most:
                raise SettingError(f"{name} must be {least} to {most}, got {value}")
        self._check_channels()
        if self.context not in get_args(ContextName) and not re.fullmatch(r"[\w.]+:\w+", str(self.context)):
            names = ", ".join(get_args(ContextName))
            raise SettingError(
                f"context must be one of {names}, or a class of your own as module:Class; got {self.context!r}"
            )

    def _check_channels(self) -> None:
        mean, std, count = self.channel_mean, self.channel_std, self.in_channels
        if (mean or std) and not (len(mean) == len(std) == count):
            raise SettingError(
                f"channel_mean and channel_std must have a number for each of {count} channels; got {len(mean)} and "
                f"{len(std)}"
            )
        if not all(0 <= value <= 1 for value in mean):
            raise SettingError(f"channel_mean must be in 0–1, got {mean}")
        if not all(SMALLEST_STD <= value < math.inf for value in std):
            raise SettingError(f"channel_std must be at least {SMALLEST_STD:.3g} for values in 0–1, got {std}")
