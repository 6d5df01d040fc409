"""`Segmenter`: backbone → reduction → context → classifier, the shape that EMANet and its baselines share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from emalab.backbones import build_backbone
from emalab.checkpoints import load_network
from emalab.contexts import build_context
from emalab.fastops import upsample_bilinear
from emalab.input_channels import refuse_channels
from emalab.modules import ConvNormAct, Normalize
from emalab.segmenter_config import SMALLEST_STD, EMAConfig, NonLocalConfig, SegmenterConfig
from emalab.shipped import DEFAULT_WEIGHTS

__all__ = ["DEFAULT_WEIGHTS", "EMAConfig", "NonLocalConfig", "Segmenter", "SegmenterConfig", "build_segmenter"]


_LARGEST_NORMALIZED = 1 / SMALLEST_STD  # of an image in [0, 1] less a mean, divided by a deviation


class Segmenter(nn.Module):
    """A semantic segmentation network: images (b, i, h, w) → logits (b, classes, h, w).

    Images have ``config.in_channels`` channels, 3 for RGB. They are either uint8 in 0–255, which the network normalizes
    as its backbone's weights expect (or by ``config.channel_mean`` and ``channel_std``), or floating point and
    normalized already. Floating-point images in 0…1, as torchvision's ``to_dtype`` makes them, are neither.

    Attributes:
        config: what it was built from.
        normalize: uint8 → floating point, with the mean and standard deviation of each channel.
        reduction, context, classifier: the three parts of the head, each (b, c, h, w) → (b, c′, h, w). ``context`` is
            an `EMAU`, a `NonLocal2d` or an identity; or, with an identity for ``reduction``, torchvision's `ASPP`
            ("deeplab_v3") or `PyramidPooling` ("psp"), which reduce the channels themselves; or an object of your own
            class, which is imported by its name, also when a checkpoint says so.
        bottleneck: with ``concat_input``, what the context's output goes through to join the backbone's features.
        auxiliary: the auxiliary head, or None.

    Raises:
        ValueError: a setting that no network can have.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        if config.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {config.num_classes}")
        if config.auxiliary_channels < 0:
            raise ValueError(f"auxiliary_channels must be at least 0, got {config.auxiliary_channels}")
        self.config = config
        self.backbone = build_backbone(
            config.backbone,
            config.output_stride,
            config.multi_grid,
            config.backbone_weights,
            config.backbone_blocks,
            num_stages=2 if config.auxiliary_channels else 1,
            in_channels=config.in_channels,
        )
        self.reduction, self.context, channels = build_context(config, self.backbone.channels)
        self.bottleneck: nn.Module | None = None
        if config.concat_input:
            self.bottleneck = ConvNormAct(channels, config.head_channels, config.head_kernel)
            channels = self.backbone.channels + config.head_channels
        self.classifier = _fcn_head(config, channels, config.head_channels, config.head_kernel)
        self.auxiliary: nn.Module | None = None
        if config.auxiliary_channels:
            self.auxiliary = _fcn_head(config, self.backbone.stage_channels[-2], config.auxiliary_channels, 3)
        self.normalize = Normalize(*self._statistics())
        if config.batch_norm_momentum is not None:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = config.batch_norm_momentum

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path = DEFAULT_WEIGHTS, allow_code: Collection[str] = ()) -> Segmenter:
        """A trained network in evaluation mode, from a checkpoint file or by the name of a shipped one.

        See `emalab.checkpoints.load_network` for formats and errors.

        Example:
            >>> Segmenter.from_pretrained().config.backbone
            'tf_efficientnet_lite2'
        """
        return load_network(cls, path_or_name, allow_code)

    @property
    def head(self) -> nn.ModuleList:
        """Everything but the backbone: the modules that start from random weights."""
        parts = (self.reduction, self.context, self.bottleneck, self.classifier, self.auxiliary)
        return nn.ModuleList(part for part in parts if part is not None)

    def features(self, images: Tensor) -> Tensor:
        """What the context module sees: (b, i, h, w) → (b, channels, ⌈h/s⌉, ⌈w/s⌉)."""
        return self.reduction(self.backbone(self._checked(images)))

    def coarse_logits(self, images: Tensor) -> Tensor:
        """(b, i, h, w) → logits (b, classes, ⌈h/s⌉, ⌈w/s⌉), not yet enlarged to the image."""
        return self._classify(self.backbone(self._checked(images)))

    def forward(self, images: Tensor) -> Tensor:
        """(b, i, h, w) → logits (b, classes, h, w).

        Args:
            images: uint8 in 0–255, which the network normalizes; or floating point from which the mean of the
                backbone's weights was subtracted and which was divided by their standard deviation, about −3 to 3.

        Raises:
            ValueError: another shape, or floating-point values that are not normalized: a magnitude above 30, or, in
                evaluation mode, values of the batch that differ and all lie in 0…1. (Normalized images would lie
                there only if every pixel were a little brighter than the mean; a constant image is taken as it is,
                since tools trace networks with zeros.) In training on a GPU values are not looked at, as that would
                wait for it.
            TypeError: another type of numbers.
        """
        if images.is_floating_point() and not (images.is_cuda and self.training):
            refuse_unnormalized(images, in_unit_range=not self.training)
        return self._enlarge(self.coarse_logits(images), images)

    def training_logits(self, images: Tensor) -> list[Tensor]:
        """What a loss looks at: the logits, (b, classes, h, w), then those of the auxiliary head where there is one."""
        stages = self.backbone.stages(self._checked(images))
        logits = [self._classify(stages[-1])]
        if self.auxiliary is not None:
            logits.append(self.auxiliary(stages[-2]))
        return [self._enlarge(of_head, images) for of_head in logits]

    def _statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and deviation of each channel: the configuration's, or else the backbone's, averaged for other than RGB.

        Training writes those of its images into the configuration.
        """
        config, (mean, std) = self.config, (self.backbone.mean, self.backbone.std)
        if config.channel_mean:
            return config.channel_mean, config.channel_std
        if config.in_channels == 3:
            return mean, std
        return (sum(mean) / 3,) * config.in_channels, (sum(std) / 3,) * config.in_channels

    def _checked(self, images: Tensor) -> Tensor:
        refuse_channels(images, self.config.in_channels)
        if images.dtype == torch.uint8:
            images = self.normalize(images)
        elif not images.is_floating_point():
            raise TypeError(
                f"a Segmenter expects uint8 images or normalized floating-point ones, got {images.dtype}; "
                "call images.to(torch.uint8) if their values are 0 to 255"
            )
        return images.to(next(self.classifier.parameters()).dtype)

    def _classify(self, features: Tensor) -> Tensor:
        attended = self.context(self.reduction(features))
        if self.bottleneck is not None:
            attended = torch.cat([features, self.bottleneck(attended)], dim=1)
        return self.classifier(attended)

    def _enlarge(self, logits: Tensor, images: Tensor) -> Tensor:
        return upsample_bilinear(logits, images.shape[-2:], self.config.align_corners)

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
        return self.with_config(replace(self.config, output_stride=output_stride))

    def with_config(self, config: SegmenterConfig) -> Segmenter:
        """This network under other settings that have the same tensors, such as ``ema.num_iters``; weights are shared.

        Raises:
            RuntimeError: a network with other tensors, as ``torch.nn.Module.load_state_dict`` says it.
            ValueError: settings that no network can have.
        """
        with torch.random.fork_rng(devices=[]):  # its random weights are thrown away, and must cost no random numbers
            twin = Segmenter(replace(config, backbone_weights=None))
        twin.config = config
        twin.load_state_dict(self.state_dict(), assign=True)
        twin.normalize = self.normalize
        return twin.train(self.training)


def refuse_unnormalized(images: Tensor, *, in_unit_range: bool = True) -> None:
    """Raise `ValueError` for floating-point images that `Segmenter.forward` would misread: 0–255 and 0…1.

    Args:
        images: any shape, any floating-point type; those without values, as of tracing tools, pass.
        in_unit_range: also refuse values that differ and all lie in 0…1.
    """
    without_values = images.is_meta or isinstance(images, FakeTensor)
    if torch.compiler.is_compiling() or without_values or not images.numel():
        return
    least, most = torch.stack(images.detach().aminmax()).tolist()  # together: each alone would wait for a GPU
    if max(-least, most) > _LARGEST_NORMALIZED:
        problem = f"their values reach {max(-least, most):.3g}; give uint8 images in 0–255: images.to(torch.uint8)"
    elif in_unit_range and 0 <= least < most <= 1:
        problem = (
            f"their values lie in 0…1 ({least:.2g} to {most:.2g}); give uint8 images in 0–255: "
            "(255 * images).round().to(torch.uint8)"
        )
    else:
        return
    raise ValueError(f"floating-point images must be normalized already, and {problem}")


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """The network that ``config`` describes; errors as in `Segmenter`.

    Example:
        >>> config = SegmenterConfig(num_classes=5, backbone="tiny", output_stride=4, channels=32, head_channels=16)
        >>> model = build_segmenter(config).eval()
        >>> model(torch.zeros(1, 3, 40, 60, dtype=torch.uint8)).shape
        torch.Size([1, 5, 40, 60])
    """
    return Segmenter(config)


def _fcn_head(config: SegmenterConfig, channels: int, inner_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNormAct(channels, inner_channels, kernel_size),
        nn.Dropout2d(config.dropout),
        nn.Conv2d(inner_channels, config.num_classes, 1),
    )
