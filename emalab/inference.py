"""Whole images → class probabilities or labels: scales, mirror images and sliding windows, in bounded memory.

A network gives coarse logits, and everything after them is linear up to the softmax: enlarge to the padded window, crop
the padding, average overlapping windows, resize from the scaled image to the image, mirror back. So the two axes of
each window need one matrix each, and the logits of a scaled image are never written out. The probabilities are computed
for a strip of rows at a time. Beside the network itself memory holds the coarse logits of all views, 1/s² of a map
each, and a few strips, whatever the number of classes and the scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from emalab.data.spec import channels_in_words, ignored_label
from emalab.data.tensors import label_dtype
from emalab.fastops import interpolation
from emalab.input_channels import refuse_channels
from emalab.segmenter import Segmenter
from emalab.views import SINGLE_SCALE, Views

__all__ = ["predict_labels", "predict_probabilities", "probability_strips"]

_STRIP_VALUES = 2**24  # probabilities computed at once, 64 MB of them


def predict_probabilities(model: Segmenter, images: Tensor, views: Views = SINGLE_SCALE) -> Tensor:
    """Class probabilities of whole images, averaged over views.

    For each view an image is normalized, resized, padded with 0, the mean color, to a multiple of the output stride
    (plus one with ``align_corners``, as the authors do: 8k + 1), and its logits are cropped and resized back before the
    softmax.

    Args:
        model: in evaluation mode.
        images: uint8 (b, i, h, w), with the channels of the network: RGB for 3.
        views: scales, mirror images and windows.

    Returns:
        float32 (b, classes, h, w), summing to 1 over the classes.

    Raises:
        TypeError: the images are not uint8.
        ValueError: they have another number of channels or of axes.
    """
    size = (len(images), model.config.num_classes, *images.shape[-2:])
    result = torch.empty(size, device=images.device, dtype=torch.float32)
    for rows, probabilities in probability_strips(model, images, views):
        result[:, :, rows] = probabilities
    return result


def predict_labels(model: Segmenter, images: Tensor, views: Views = SINGLE_SCALE) -> Tensor:
    """The most probable class of every pixel, (b, h, w); arguments as in `predict_probabilities`.

    Labels are uint8, or int32 where there are more than 254 classes, as masks are. No map of all classes is ever held
    at the size of the images.
    """
    dtype = label_dtype(ignored_label(model.config.num_classes))
    strips = probability_strips(model, images, views)
    return torch.cat([probabilities.argmax(1).to(dtype) for _, probabilities in strips], dim=1)


def probability_strips(
    model: Segmenter, images: Tensor, views: Views = SINGLE_SCALE, size: tuple[int, int] | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The probabilities of `predict_probabilities` a few rows at a time: (rows, float32 (b, classes, rows, w)).

    Other arguments are those of `predict_probabilities`.

    Args:
        size: height and width of the result, where the images are smaller copies of what is to be labeled.
    """
    channels = model.config.in_channels
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images must be uint8 {channels_in_words(channels)} in 0–255, as the network normalizes them; got "
            f"{images.dtype}. For values in 0…1 give (255 * images).round().to(torch.uint8)"
        )
    refuse_channels(images, channels)
    height, width = images.shape[-2:] if size is None else size
    tiles = [of_view for scale in views.scales for of_view in _tiles_at(model, images, scale, views, (height, width))]
    extent = (len(images), model.config.num_classes, height, width)
    for rows in _strips(extent):
        yield rows, _mean_probabilities(tiles, rows, extent)


class _Placed(NamedTuple):
    """One axis of a window: coarse position → pixels ``start`` … ``start`` + n − 1 of the image."""

    start: int
    weights: Tensor  # (coarse positions, n): how much each position gives to each pixel


class _Tile(NamedTuple):
    """What the network says of one window, and where in the image that is."""

    logits: Tensor  # (b, classes, i, j), coarse
    rows: _Placed
    columns: _Placed


def _tiles_at(
    model: Segmenter, images: Tensor, scale: float, views: Views, size: tuple[int, int]
) -> Iterator[list[_Tile]]:
    """The tiles of the images at one scale, then those of their mirror images where they are a view."""
    x, align = images, model.config.align_corners
    scaled = (max(round(x.shape[-2] * scale), 1), max(round(x.shape[-1] * scale), 1))
    if scaled != tuple(x.shape[-2:]):  # else normalized window by window: whole photographs would fill the memory
        x = F.interpolate(model.normalize(x), scaled, mode="bilinear", align_corners=align)
    window = views.window or scaled
    yield list(_tiles(model, x, size, window, views.overlap))
    if views.flip:
        yield [_mirror(tile, size[1]) for tile in _tiles(model, x.flip(-1), size, window, views.overlap)]


def _tiles(
    model: Segmenter, x: Tensor, size: Sequence[int], window: tuple[int, int], overlap: float
) -> Iterator[_Tile]:
    """Run the network on every window of images x (b, i, h', w'), uint8 or normalized, that show images of ``size``."""
    stride, align = model.config.output_stride, model.config.align_corners
    grid = [_windows(side, extent, overlap) for side, extent in zip(x.shape[-2:], window, strict=True)]
    placed: dict[tuple[int, int], _Placed] = {}  # by axis and start: windows of a row or column share their matrices
    for rows in grid[0]:
        for columns in grid[1]:
            crop = x[..., rows.start : rows.stop, columns.start : columns.stop]
            if crop.dtype == torch.uint8:
                crop = model.normalize(crop)
            bottom, right = (-(len(axis) - align) % stride for axis in (rows, columns))
            padded = F.pad(crop, (0, right, 0, bottom)).contiguous(memory_format=torch.channels_last)
            logits = model.coarse_logits(padded).float()
            for axis, span in enumerate((rows, columns)):
                if (axis, span.start) not in placed:
                    placed[axis, span.start] = _place(
                        logits, axis, grid[axis], span, padded.shape[axis + 2], x.shape[axis + 2], size[axis], align
                    )
            yield _Tile(logits, placed[0, rows.start], placed[1, columns.start])


def _windows(side: int, extent: int, overlap: float) -> list[range]:
    """Windows of ``extent`` pixels that cover an axis of ``side`` pixels, the last one moved back to its end."""
    if extent >= side:
        return [range(side)]
    step = max(round(extent * (1 - overlap)), 1)
    count = math.ceil((side - extent) / step) + 1
    starts = (min(index * step, side - extent) for index in range(count))
    return [range(start, start + extent) for start in starts]


def _place(
    logits: Tensor, axis: int, windows: list[range], window: range, padded: int, scaled: int, side: int, align: bool
) -> _Placed:
    """One axis from coarse positions to the image: enlarge to the padded window, crop, average, resize."""
    weights = interpolation(logits.shape[axis + 2], padded, align, logits)[:, : len(window)]
    if len(windows) > 1:
        covered = weights.new_zeros(scaled)
        for other in windows:
            covered[other.start : other.stop] += 1
        weights = weights / covered[window.start : window.stop]
    if scaled == side:
        return _Placed(window.start, weights)
    resize = interpolation(scaled, side, align, logits)[window.start : window.stop]
    touched = resize.any(0).nonzero().flatten().tolist() if len(windows) > 1 else range(side)
    pixels = slice(touched[0], touched[-1] + 1) if touched else slice(0, 0)
    with torch.autocast(logits.device.type, enabled=False):
        return _Placed(pixels.start, weights @ resize[:, pixels])


def _mirror(tile: _Tile, width: int) -> _Tile:
    """The tile of a mirrored image, in the image itself."""
    start, weights = tile.columns
    return tile._replace(columns=_Placed(width - start - weights.shape[1], weights.flip(1)))


def _strips(size: tuple[int, int, int, int]) -> Iterator[slice]:
    """Rows of maps (b, classes, h, w), as many at a time as `_STRIP_VALUES` allows."""
    batch, classes, height, width = size
    rows = max(_STRIP_VALUES // (batch * classes * width), 1)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def _mean_probabilities(views: list[list[_Tile]], rows: slice, size: tuple[int, int, int, int]) -> Tensor:
    """(b, classes, len(rows), w): the softmax of every view's logits, averaged over the views, each a list of tiles."""
    total = _logits(views[0], rows, size).softmax(1)
    for tiles in views[1:]:
        total += _logits(tiles, rows, size).softmax(1)
    return total.div_(len(views))


def _logits(tiles: list[_Tile], rows: slice, size: tuple[int, int, int, int]) -> Tensor:
    """(b, classes, len(rows), w): the logits of one view in some rows of the image."""
    batch, classes, _, width = size
    logits = tiles[0].logits.new_zeros(batch, classes, rows.stop - rows.start, width)
    for tile in tiles:
        top, down = tile.rows
        first, last = max(rows.start, top), min(rows.stop, top + down.shape[1])
        if first >= last:
            continue
        with torch.autocast(logits.device.type, enabled=False):
            strip = einsum(tile.logits, down[:, first - top : last - top], "b k i j, i h -> b k h j")
            strip = einsum(strip, tile.columns.weights, "b k h j, j w -> b k h w")
        left = tile.columns.start
        logits[:, :, first - rows.start : last - rows.start, left : left + strip.shape[-1]] += strip
    return logits
