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

from emalab.data.bands import decode_image
from emalab.data.images import Reading
from emalab.data.spec import channels_in_words, ignored_label
from emalab.data.tensors import label_dtype
from emalab.inference import probability_strips
from emalab.segmenter import Segmenter
from emalab.views import MIRRORED, Views

__all__ = ["Photo", "Prediction", "predict", "predict_with_confidence", "reading_for"]

Photo = Path | str | Image.Image | NDArray[np.uint8] | NDArray[np.floating] | Tensor

_WHOLE = 1.5e6  # pixels that a network sees at once, unless somebody says otherwise; larger photographs in windows
_WINDOW = 1024  # pixels on each side of those windows


class Prediction(NamedTuple):
    """Labels of a photograph, and how sure the network is of each."""

    labels: NDArray[np.unsignedinteger]  # (h, w), class indices
    confidence: NDArray[np.float32]  # (h, w), probability of that class, in (0, 1]


def predict(
    model: Segmenter, photo: Photo, *, max_side: int | None = None, views: Views = MIRRORED, bits: int | None = None
) -> NDArray[np.unsignedinteger]:
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
        photo: the path of a file; an image that PIL has opened; an RGB array (h, w, 3); or an RGB tensor (3, h, w).
            Arrays and tensors are uint8 in 0–255 or floating point in 0…1, as torchvision has them, never normalized.
            Files and PIL images may be gray, palette, CMYK, transparent or rotated. A network for c other channels
            takes arrays (h, w, c), tensors (c, h, w), and files as `emalab.data.bands` reads them.
        max_side: shrink the photograph for the network until its longer side has so many pixels (it is never
            enlarged); None for its own size. Objects should appear about as large as in training: the shipped network
            learned from photographs of 320 pixels and does well at 480.
        views: what to average over: by default the photograph and its mirror image. Without a window in it, the network
            sees a photograph of up to 1.5 megapixels whole, and larger ones in windows of 1024×1024.
        bits: depth of a file of more than 8 bits that does not state it, such as 12 for values of 0–4095.

    Returns:
        (h, w), uint8, or uint16 where there are more than 254 classes. Beside the photograph itself, memory holds what
        the network needs for one window, and its coarse logits.

    Raises:
        DataError: a file that cannot be read as an image; the message names it.
        TypeError: a photograph of another kind, or an array of another type.
        ValueError: an array or a tensor of another shape, floating-point values outside of 0…1, or max_side below 1.
    """
    size, strips = _strips(model, photo, max_side, views, bits)
    labels, dtype = _blank(size, model)
    for rows, of_classes in strips:
        labels[rows] = of_classes.argmax(0).to(dtype).cpu()
    return labels


def predict_with_confidence(
    model: Segmenter,
    photo: Photo,
    *,
    max_side: int | None = None,
    views: Views = MIRRORED,
    bits: int | None = None,
    probabilities: NDArray[np.floating] | None = None,
) -> Prediction:
    """As `predict`, with the probability of each pixel's class.

    Args:
        model, photo, max_side, views, bits: as in `predict`.
        probabilities: an array (h, w, classes) that gets the probabilities of all classes; without one they are never
            held at once. float16, or a memory map, keeps those of a large photograph small.

    Example:
        >>> import numpy as np
        >>> from emalab import Segmenter
        >>> photo = np.zeros((60, 80, 3), np.uint8)
        >>> labels, confidence = predict_with_confidence(Segmenter.from_pretrained(), photo)
        >>> bool((confidence > 1 / 21).all())  # the largest of 21 probabilities
        True

    Raises:
        DataError, TypeError, ValueError: as in `predict`, and ValueError for ``probabilities`` of another shape.
    """
    size, strips = _strips(model, photo, max_side, views, bits)
    shape = (*size, model.config.num_classes)
    if probabilities is not None and probabilities.shape != shape:
        raise ValueError(f"probabilities must be an array (h, w, classes) = {shape}; got {probabilities.shape}")
    (labels, dtype), confidence = _blank(size, model), np.empty(size, np.float32)
    for rows, of_classes in strips:
        best = of_classes.max(0)
        labels[rows], confidence[rows] = best.indices.to(dtype).cpu(), best.values.cpu()
        if probabilities is not None:
            probabilities[rows] = of_classes.permute(1, 2, 0).cpu().numpy()
    return Prediction(labels, confidence)


def _blank(size: tuple[int, int], model: Segmenter) -> tuple[NDArray[np.unsignedinteger], torch.dtype]:
    """An array for the labels of all classes, and the type in which torch gives them."""
    dtype = label_dtype(ignored_label(model.config.num_classes))
    return np.empty(size, np.uint8 if dtype == torch.uint8 else np.uint16), dtype


def _strips(
    model: Segmenter, photo: Photo, max_side: int | None, views: Views, bits: int | None
) -> tuple[tuple[int, int], Iterator[tuple[slice, Tensor]]]:
    """The photograph's (height, width), and some rows at a time the probabilities (classes, rows, w)."""
    if max_side is not None and max_side < 1:
        raise ValueError(f"max_side is {max_side}; it must be at least 1 pixel")
    image = _pixels(photo, model.config.in_channels, bits)
    size = (image.shape[-2], image.shape[-1])
    small = _shrink(image, max_side)[None]
    if views.window is None and small.shape[-2] * small.shape[-1] > _WHOLE:
        side = _WINDOW + model.config.align_corners  # the authors' 8k + 1 pixels
        views = replace(views, window=(side, side))

    def strips() -> Iterator[tuple[slice, Tensor]]:
        was_training, images = model.training, small.to(model.normalize.mean.device)
        model.eval()
        try:
            with torch.inference_mode():
                for rows, probabilities in probability_strips(model, images, views, size):
                    yield rows, probabilities[0]
        finally:
            model.train(was_training)

    return size, strips()


def _pixels(photo: Photo, channels: int, bits: int | None) -> Tensor:
    """Any photograph as uint8 (c, h, w), with the channels of the network."""
    if isinstance(photo, Path | str | Image.Image):
        pixels = decode_image(photo, reading_for(channels, bits)).pixels
        return torch.from_numpy(pixels).permute(2, 0, 1)
    axes, tensor_axes = f"(h, w, {channels})", f"({channels}, h, w)"
    if not isinstance(photo, np.ndarray | Tensor):
        raise TypeError(
            f"a photograph is a path, a PIL image, an array {axes} or a tensor {tensor_axes}; got "
            f"{type(photo).__name__}"
        )
    array = isinstance(photo, np.ndarray)
    kind, axes, axis = ("an array", axes, -1) if array else ("a tensor", tensor_axes, 0)
    if channels == 1 and photo.ndim == 2:
        photo = photo[..., None] if array else photo[None]
    if photo.ndim != 3 or photo.shape[axis] != channels or 0 in photo.shape:
        must = f"be {channels_in_words(channels)}" if channels in (1, 3) else f"have {channels} channels"
        raise ValueError(f"{kind} must {must}, {axes}, with at least one pixel; got {tuple(photo.shape)}")
    if isinstance(photo, Tensor):
        return _as_bytes(photo.detach().cpu(), kind)
    return _as_bytes(torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1), kind)


def reading_for(channels: int, bits: int | None = None) -> Reading:
    """How files are read for a network with this number of channels."""
    return Reading(bits=bits, channels=None if channels == 3 else channels, reason="as the network takes them")


def _as_bytes(image: Tensor, kind: str) -> Tensor:
    """Values in uint8, from that or from floating point in 0…1."""
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise TypeError(f"{kind} must hold values as uint8 in 0–255 or floating point in 0…1; got {image.dtype}")
    least, most = torch.stack(image.aminmax()).tolist()
    if not 0 <= least <= most <= 1:  # NaN too
        raise ValueError(
            f"{kind} in floating point must hold values in 0…1, not normalized; they are {least:.3g} to {most:.3g}. "
            "Give uint8 for values in 0–255"
        )
    return (255 * image.float()).round().to(torch.uint8)


def _shrink(image: Tensor, max_side: int | None) -> Tensor:
    """uint8 (c, h, w) with its longer side at most ``max_side``; by PIL, which needs no copy in floating point."""
    height, width = image.shape[-2:]
    if max_side is None or max_side >= max(height, width):
        return image
    factor = max_side / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    if len(image) != 3:
        bands = (Image.fromarray(band.numpy()).resize(size, Image.Resampling.BILINEAR) for band in image)
        return torch.stack([torch.from_numpy(np.array(band)) for band in bands])
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
