"""Batch norm folded into the convolution before it: the same network in fewer passes over memory, for inference."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from emalab.efficientnet_lite import EfficientNetLite2, InvertedResidual, SeparableBlock

__all__ = ["fuse_batch_norm"]

_Network = TypeVar("_Network", bound=nn.Module)

# Modules that call their children in order; of others it is not known what a batch norm is applied to.
_IN_ORDER = (nn.Sequential, EfficientNetLite2, SeparableBlock, InvertedResidual)


def fuse_batch_norm(model: _Network) -> _Network:
    """Fold running statistics, scale and shift of batch norm into convolutions, in place; logits change by rounding.

    The shipped network then takes a quarter less CPU time, and gives every pixel of scikit-image's photographs the same
    label. (In bfloat16 1.6 % of the labels change, so nothing here uses it.) Scores that are published come from
    networks as they were trained.

    Args:
        model: in evaluation mode. Afterwards it can no longer be trained, nor its tensors be saved as its recipe's.

    Returns:
        ``model``. Batch norm stays where it does not follow a convolution within a module that calls its children in
        order, as in networks of timm.
    """
    for parent in model.modules():
        if isinstance(parent, _IN_ORDER):
            for (_, conv), (name, norm) in pairwise([*parent.named_children()]):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _fold(conv, norm):
                    setattr(parent, name, nn.Identity())
    return model


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Change ``conv`` into both; False where ``norm`` uses the statistics of each batch."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return False
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    return True
