"""What a network is, as values: every setting of `emalab.segmenter.Segmenter`. Recipes are made of them.

They need neither torch nor timm, so that a list of recipes comes at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from emalab.choices import Grad, MaintenanceName, NonLocalMode, Norm, Renormalize

__all__ = ["ContextName", "EMAConfig", "NonLocalConfig", "SegmenterConfig"]

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
    ema: EMAConfig = field(default_factory=EMAConfig)
    non_local: NonLocalConfig = field(default_factory=NonLocalConfig)

    def __post_init__(self) -> None:
        for name, value, most in (
            ("num_classes", self.num_classes, 2**16),
            ("channels", self.channels, 2**16),
            ("head_channels", self.head_channels, 2**16),
            ("auxiliary_channels", self.auxiliary_channels, 2**16),
            ("head_kernel", self.head_kernel, 64),
            ("backbone_blocks", max(self.backbone_blocks, default=0), 1000),
            ("multi_grid", max(self.multi_grid, default=0), 1000),
            ("ema.num_bases", self.ema.num_bases, 2**16),
            ("ema.num_iters", self.ema.num_iters, 10_000),
            ("non_local.inner_channels", self.non_local.inner_channels or 0, 2**16),
        ):
            if value > most:
                raise ValueError(f"{name} must be at most {most}, got {value}")
        if self.context not in get_args(ContextName) and not re.fullmatch(r"[\w.]+:\w+", str(self.context)):
            names = ", ".join(get_args(ContextName))
            raise ValueError(
                f"context must be one of {names}, or a class of your own as module:Class; got {self.context!r}"
            )
