"""Label the pixels of any photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from emalab.data import open_image
from emalab.evaluation import predict_probabilities
from emalab.segmenter import Segmenter

__all__ = ["predict"]

_ROWS_AT_ONCE = 64  # of a large photograph's labels, so that memory is bounded by its width


@torch.inference_mode()
def predict(
    model: Segmenter, photo: Path | str | Image.Image, *, max_side: int = 480, flip: bool = True
) -> NDArray[np.uint8]:
    """Class index of every pixel of a photograph, at the photograph's own size.

    Args:
        model: in evaluation mode, on the device to use.
        photo: a file or an image that PIL has opened; grey, palette, CMYK, transparent and rotated ones are handled.
        max_side: the network sees the photograph with its longer side shrunk to this many pixels (never enlarged).
            Objects should appear about as large as in training.
        flip: average with the mirror image.

    Returns:
        uint8 (h, w). Memory beyond the photograph's own is bounded whatever its size.

    Raises:
        DataError: a file that cannot be read as an image; the message names it.
        ValueError: max_side below 1.
    """
    if max_side < 1:
        raise ValueError(f"max_side is {max_side}; it must be at least 1 pixel")
    image = open_image(photo)
    height, width = image.shape[-2:]
    shrink = min(1.0, max_side / max(height, width))
    size = [max(round(side * shrink), 1) for side in (height, width)]
    device = model.normalize.mean.device
    small = _shrink(image.as_subclass(Tensor), size).to(device)
    probabilities = predict_probabilities(model, small[None], flip=flip)[0].cpu()
    return np.concatenate(
        [
            _labels(probabilities, range(top, min(top + _ROWS_AT_ONCE, height)), height, width)
            for top in range(0, height, _ROWS_AT_ONCE)
        ]
    )


def _shrink(image: Tensor, size: list[int]) -> Tensor:
    """uint8 (3, h, w) → uint8 (3, *size), antialiased, by PIL: it needs no float copy of a large photograph."""
    if list(image.shape[-2:]) == size:
        return image
    array = image.permute(1, 2, 0).numpy()
    resized = Image.fromarray(array).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _labels(probabilities: Tensor, rows: range, height: int, width: int) -> NDArray[np.uint8]:
    """Labels of some rows of the full-size image from probabilities (classes, i, j), enlarged for these rows alone."""
    count = probabilities.shape[1]
    centers = ((torch.arange(rows.start, rows.stop) + 0.5) * count / height - 0.5).clamp(0, count - 1)
    above = centers.floor().long()
    below = (above + 1).clamp(max=count - 1)
    weight = (centers - above)[None, :, None]
    strip = torch.lerp(probabilities[:, above], probabilities[:, below], weight)
    enlarged = F.interpolate(strip[None], (len(rows), width), mode="bilinear", align_corners=False)
    return enlarged[0].argmax(0).to(torch.uint8).numpy()
