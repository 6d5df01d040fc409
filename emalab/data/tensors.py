"""Images and label maps as torchvision's transforms know them apart.

torchvision takes as long to import as torch, so it is imported where the first sample is made: names, classes and the
labeling of photographs do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torchvision import tv_tensors

__all__ = ["as_image", "as_mask", "label_dtype"]


def label_dtype(ignore_index: int) -> torch.dtype:
    """Type of masks in which ignored pixels have this label: uint8 up to 255, else int32.

    (torch has few operators for uint16.)
    """
    import torch

    return torch.uint8 if ignore_index <= 255 else torch.int32


def as_image(pixels: Tensor) -> tv_tensors.Image:
    """Channels (c, h, w) as an image; memory is shared."""
    from torchvision import tv_tensors

    return tv_tensors.Image(pixels)


def as_mask(labels: Tensor) -> tv_tensors.Mask:
    """Labels (h, w) as a mask; memory is shared."""
    from torchvision import tv_tensors

    return tv_tensors.Mask(labels)
