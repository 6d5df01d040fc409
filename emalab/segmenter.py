"""`Segmenter`: backbone → reduction → context → classifier, the shape that EMANet and its baselines share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from emalab.backbones import build_backbone
from emalab.bases import MaintenanceName, Renormalize
from emalab.data.transforms import Normalize
from emalab.em import Grad, Norm
from emalab.fastops import upsample_bilinear
from emalab.modules import EMAU, ConvNormAct, NonLocal2d, NonLocalMode

ContextName = Literal["none", "non_local", "ema"]

DEFAULT_WEIGHTS = "emanet-lite2-voc-animals"

__all__ = ["DEFAULT_WEIGHTS", "EMAConfig", "NonLocalConfig", "Segmenter", "SegmenterConfig", "build_segmenter"]


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
    """Classes that the network tells apart, without the ignored label."""
    backbone: str = "resnet50"
    """A timm network, or "tiny" for generated scenes."""
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
    context: ContextName = "ema"
    """How positions learn of each other: "none" (the plain FCN head), "non_local" or "ema"."""
    channels: int = 512
    """Channels of the reduced features that the context module works on."""
    head_channels: int = 256
    """Channels between the context module and the classifier."""
    head_kernel: int = 3
    """Kernel size of the two convolutions around the context module; 1 keeps the receptive field."""
    dropout: float = 0.1
    """Probability of dropping a channel before the classifier."""
    align_corners: bool = False
    """How logits are enlarged to the image; True is the authors' convention, for images of 8k + 1 pixels."""
    ema: EMAConfig = field(default_factory=EMAConfig)
    non_local: NonLocalConfig = field(default_factory=NonLocalConfig)


class Segmenter(nn.Module):
    """A semantic segmentation network: images (b, 3, h, w) → logits (b, classes, h, w).

    Images are either uint8 RGB, which the network normalizes as its backbone's weights expect, or floating point and
    normalized already.

    Attributes:
        config: what it was built from.
        normalize: uint8 RGB → floating point with the mean and standard deviation that the backbone expects.
        reduction, context, classifier: the three parts of the head. ``context`` is an `EMAU`, a `NonLocal2d` or an
            identity, each (b, c, h, w) → (b, c, h, w).

    Raises:
        ValueError: a setting that no network can have.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        if config.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {config.num_classes}")
        self.config = config
        self.backbone = build_backbone(
            config.backbone, config.output_stride, config.multi_grid, config.backbone_weights, config.backbone_blocks
        )
        self.reduction = ConvNormAct(self.backbone.channels, config.channels, config.head_kernel)
        self.context = _build_context(config)
        self.classifier = nn.Sequential(
            ConvNormAct(config.channels, config.head_channels, config.head_kernel),
            nn.Dropout2d(config.dropout),
            nn.Conv2d(config.head_channels, config.num_classes, 1),
        )
        self.normalize = Normalize(self.backbone.mean, self.backbone.std)
        if config.batch_norm_momentum is not None:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = config.batch_norm_momentum

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path = DEFAULT_WEIGHTS) -> Segmenter:
        """A trained network in evaluation mode, from a checkpoint file or by the name of a shipped one.

        See `emalab.checkpoints.load_segmenter` for formats and errors.
        """
        from emalab.checkpoints import load_segmenter  # it imports this module

        return load_segmenter(path_or_name)

    @property
    def head(self) -> nn.ModuleList:
        """Everything but the backbone: the modules that start from random weights."""
        return nn.ModuleList([self.reduction, self.context, self.classifier])

    def features(self, images: Tensor) -> Tensor:
        """What the context module sees: (b, 3, h, w) → (b, channels, ⌈h/s⌉, ⌈w/s⌉)."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"a Segmenter expects images (b, 3, h, w), got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            images = self.normalize(images)
        return self.reduction(self.backbone(images))

    def coarse_logits(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) → logits (b, classes, ⌈h/s⌉, ⌈w/s⌉), not yet enlarged to the image."""
        return self.classifier(self.context(self.features(images)))

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) → logits (b, classes, h, w)."""
        return upsample_bilinear(self.coarse_logits(images), images.shape[-2:], self.config.align_corners)

    def with_output_stride(self, output_stride: int) -> Segmenter:
        """This network at another output stride: the same weights, the backbone dilated anew, multi-grid included.

        Parameters and buffers are shared, not copied, so that training this network trains the other. The paper's
        ablation learns at stride 16 and is scored at 8 in this way.

        Args:
            output_stride: pixels per position of the feature map, as in `SegmenterConfig`.

        Raises:
            ValueError: a stride that the backbone cannot have.
        """
        if output_stride == self.config.output_stride:
            return self
        config = replace(self.config, output_stride=output_stride)
        with torch.random.fork_rng(devices=[]):  # its random weights are thrown away, and must cost no random numbers
            twin = Segmenter(replace(config, backbone_weights=None))
        twin.config = config
        twin.load_state_dict(self.state_dict(), assign=True)
        twin.normalize = self.normalize
        return twin.train(self.training)


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """The network that ``config`` describes; errors as in `Segmenter`."""
    return Segmenter(config)


def _build_context(config: SegmenterConfig) -> nn.Module:
    if config.context == "ema":
        return EMAU(config.channels, **asdict(config.ema))
    if config.context == "non_local":
        return NonLocal2d(config.channels, **asdict(config.non_local))
    if config.context == "none":
        return nn.Identity()
    raise ValueError(f"context must be one of {', '.join(get_args(ContextName))}; got {config.context!r}")
