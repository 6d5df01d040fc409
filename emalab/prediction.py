"""Label the pixels of any photograph: a file, an image that is open already, an array or a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from emalab.data.images import decode_rgb
from emalab.inference import probability_strips
from emalab.segmenter import Segmenter
from emalab.views import MIRRORED, Views

__all__ = ["Photo", "Prediction", "predict", "predict_with_confidence"]

Photo = Path | str | Image.Image | NDArray[np.uint8] | Tensor

_WHOLE = 1.5e6  # pixels that a network sees at once, unless somebody says otherwise; larger photographs in windows
_WINDOW = 1024  # pixels on each side of those windows


class Prediction(NamedTuple):
    """Labels of a photograph, and how sure the network is of each."""

    labels: NDArray[np.uint8]  # (h, w), class indices
    confidence: NDArray[np.float32]  # (h, w), probability of that class, in (0, 1]


def predict(
    model: Segmenter, photo: Photo, *, max_side: int | None = None, views: Views = MIRRORED
) -> NDArray[np.uint8]:
    """Class index of every pixel of a photograph, at the photograph's own size.

    Example:
        >>> import numpy as np
        >>> from emalab import Segmenter, predict
        >>> model = Segmenter.from_pretrained()
        >>> photo = np.zeros((60, 80, 3), np.uint8)
        >>> predict(model, photo, max_side=480).shape
        (60, 80)

    Args:
        model: on the device to use; evaluation mode, whatever mode it is in (restored afterwards).
        photo: the path of a file; an image that PIL has opened; an RGB array (h, w, 3), uint8; or an RGB tensor
            (3, h, w), uint8. Files and PIL images may be grey, palette, CMYK, transparent or rotated.
        max_side: shrink the photograph for the network until its longer side has so many pixels (it is never
            enlarged); None for its own size. Objects should appear about as large as in training: the shipped network
            learned from photographs of 320 pixels and does well at 480.
        views: what to average over: by default the photograph and its mirror image. Without a window in it, the network
            sees a photograph of up to 1.5 megapixels whole, and larger ones in windows of 1024×1024.

    Returns:
        uint8 (h, w). Beside the photograph itself, memory holds what the network needs for one window, and its coarse
        logits.

    Raises:
        DataError: a file that cannot be read as an image; the message names it.
        TypeError: a photograph of another kind, or an array of another type than uint8.
        ValueError: an array or a tensor of another shape, or max_side below 1.
    """
    size, strips = _strips(model, photo, max_side, views)
    labels = np.empty(size, np.uint8)
    for rows, best, _ in strips:
        labels[rows] = best
    return labels


def predict_with_confidence(
    model: Segmenter, photo: Photo, *, max_side: int | None = None, views: Views = MIRRORED
) -> Prediction:
    """As `predict`, with the probability of each pixel's class.

    The probabilities of all classes are never held at once; `emalab.inference.predict_probabilities` gives them.

    Example:
        >>> import numpy as np
        >>> from emalab import Segmenter
        >>> photo = np.zeros((60, 80, 3), np.uint8)
        >>> labels, confidence = predict_with_confidence(Segmenter.from_pretrained(), photo)
        >>> bool((confidence > 1 / 21).all())  # the largest of 21 probabilities
        True
    """
    size, strips = _strips(model, photo, max_side, views)
    labels, confidence = np.empty(size, np.uint8), np.empty(size, np.float32)
    for rows, best, sure in strips:
        labels[rows], confidence[rows] = best, sure
    return Prediction(labels, confidence)


def _strips(
    model: Segmenter, photo: Photo, max_side: int | None, views: Views
) -> tuple[tuple[int, int], Iterator[tuple[slice, Tensor, Tensor]]]:
    """The photograph's (height, width), and some rows at a time its labels and their probabilities, (rows, w) each."""
    if max_side is not None and max_side < 1:
        raise ValueError(f"max_side is {max_side}; it must be at least 1 pixel")
    image = _pixels(photo)
    size = (image.shape[-2], image.shape[-1])
    small = _shrink(image, max_side)[None]
    if views.window is None and small.shape[-2] * small.shape[-1] > _WHOLE:
        side = _WINDOW + model.config.align_corners  # the authors' 8k + 1 pixels
        views = replace(views, window=(side, side))

    def strips() -> Iterator[tuple[slice, Tensor, Tensor]]:
        was_training, images = model.training, small.to(model.normalize.mean.device)
        model.eval()
        try:
            with torch.inference_mode():
                for rows, probabilities in probability_strips(model, images, views, size):
                    best = probabilities[0].max(0)
                    yield rows, best.indices.to(torch.uint8).cpu(), best.values.cpu()
        finally:
            model.train(was_training)

    return size, strips()


def _pixels(photo: Photo) -> Tensor:
    """Any photograph as uint8 RGB (3, h, w)."""
    if isinstance(photo, Path | str | Image.Image):
        return torch.from_numpy(decode_rgb(photo).pixels).permute(2, 0, 1)
    if not isinstance(photo, np.ndarray | Tensor):
        raise TypeError(
            f"a photograph is a path, a PIL image, an array (h, w, 3) or a tensor (3, h, w); got {type(photo).__name__}"
        )
    array = isinstance(photo, np.ndarray)
    kind, axes, channels = ("an array", "(h, w, 3)", -1) if array else ("a tensor", "(3, h, w)", 0)
    if photo.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"{kind} must hold RGB as uint8 in 0–255, as the network normalizes it; got {photo.dtype}")
    if photo.ndim != 3 or photo.shape[channels] != 3 or 0 in photo.shape:
        raise ValueError(f"{kind} must be RGB {axes} with at least one pixel; got {tuple(photo.shape)}")
    if isinstance(photo, Tensor):
        return photo.cpu()
    return torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)


def _shrink(image: Tensor, max_side: int | None) -> Tensor:
    """uint8 (3, h, w) with its longer side at most ``max_side``; by PIL, which needs no copy in floating point."""
    height, width = image.shape[-2:]
    if max_side is None or max_side >= max(height, width):
        return image
    factor = max_side / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
