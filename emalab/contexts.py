"""Which context module a network has: EMAU, one of the others that are compared with it, or a class of your own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from torch import nn

from emalab.modules import EMAU, ConvNormAct, NonLocal2d
from emalab.own_code import find_own
from emalab.pyramid import PyramidPooling
from emalab.segmenter_config import SegmenterConfig

__all__ = ["build_context"]


def build_context(config: SegmenterConfig, channels: int) -> tuple[nn.Module, nn.Module, int]:
    """Reduction and context for features of so many channels, and how many channels leave the context."""
    if config.context == "deeplab_v3":
        from torchvision.models.segmentation.deeplabv3 import ASPP  # torchvision takes longer to import than torch

        rates = [factor * 96 // config.output_stride for factor in (1, 2, 3)]  # 6, 12, 18 at stride 16
        pyramid = ASPP(channels, rates, config.head_channels)
        pyramid.project = pyramid.project[:3]  # without its dropout: the classifier has one
        return nn.Identity(), pyramid, config.head_channels
    if config.context == "psp":
        pooling = PyramidPooling(channels)
        return nn.Identity(), pooling, pooling.out_channels
    contexts: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "non_local": lambda: NonLocal2d(config.channels, **asdict(config.non_local)),
        "ema": lambda: EMAU(config.channels, **asdict(config.ema)),
    }
    reduction = ConvNormAct(channels, config.channels, config.head_kernel)
    build = contexts.get(config.context) or (lambda: _own_context(config.context, config.channels))
    return reduction, build(), config.channels


def _own_context(name: str, channels: int) -> nn.Module:
    """A class "module:Class" of somebody's own, built for so many channels."""
    found = find_own("context", name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        where, _, attribute = name.partition(":")
        raise ValueError(f"context {name!r}: {where} has no subclass of torch.nn.Module that is called {attribute}")
    return found(channels)
