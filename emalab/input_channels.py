"""Adapt weights for RGB images to images with another number of channels.

The rule for the first convolution is timm's (``timm.models.adapt_input_conv``): for one channel its weights are summed
over the channels, so that a gray image gives the same output as its RGB copy; for other numbers they are repeated in
turn (R, G, B, R, …) and scaled so that an image with equal channels gives the same output.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from emalab.data.spec import channels_in_words

__all__ = ["adapt_input", "adapt_inputs", "refuse_channels"]


def adapt_input(weight: Tensor, in_channels: int) -> Tensor:
    """Weights (o, i, …) of a first convolution for ``in_channels`` instead of i.

    If all channels of an image are equal, its output does not change for 1 channel or a multiple of i.

    Example:
        >>> adapt_input(torch.tensor([[1.0, 2.0, 3.0]]), 1)
        tensor([[6.]])
        >>> adapt_input(torch.tensor([[1.0, 2.0, 3.0]]), 6)
        tensor([[0.5000, 1.0000, 1.5000, 0.5000, 1.0000, 1.5000]])
    """
    old = weight.shape[1]
    if in_channels == old:
        return weight
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turns = torch.arange(in_channels, device=weight.device) % old
    return weight[:, turns] * (old / in_channels)


def adapt_inputs(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], channels: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """``state`` with the weights of first convolutions as ``wanted`` has them, and their names.

    Args:
        state: weights (o, i, h, w) of a network for images of other channels.
        wanted: tensors of the network that is to be filled.
        channels: number of channels before and after; by default from 3 to that of ``wanted``.
    """
    adapted = dict(state)
    names = []
    for key, value in state.items():
        if key not in wanted or not value.ndim == wanted[key].ndim == 4:
            continue
        old, new = value.shape[1], wanted[key].shape[1]
        same = value.shape[:1] + value.shape[2:] == wanted[key].shape[:1] + wanted[key].shape[2:]
        if same and old != new and (old == 3 if channels is None else (old, new) == channels):
            adapted[key] = adapt_input(value, new)
            names.append(key)
    return adapted, names


def refuse_channels(images: Tensor, channels: int) -> None:
    """Raise a `ValueError` for images that are not (b, ``channels``, h, w)."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"the network expects images (b, {channels}, h, w), {channels_in_words(channels)}; got "
            f"{tuple(images.shape)}"
        )
