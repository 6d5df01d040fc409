"""Images of other than three channels: how weights for RGB serve them, and how messages call them.

The rule for the first convolution is timm's (``timm.models.adapt_input_conv``): for one channel its weights are summed
over the channels, which gives what the convolution makes of a grey image as RGB; for others they are repeated in turn
(R, G, B, R, …) and scaled so that an image with equal channels gives the same again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from emalab.data.spec import channels_in_words

__all__ = ["adapt_input", "adapt_inputs", "refuse_channels"]


def adapt_input(weight: Tensor, in_channels: int) -> Tensor:
    """Weights (o, i, …) of a first convolution for ``in_channels`` instead of i.

    Where all channels of an image are alike its output stays, if their number is a multiple of i (or 1).

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
        channels: the channels of both networks' images; by default any that ``wanted`` has, from 3.
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
