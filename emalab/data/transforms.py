"""Training-time transforms of an image together with its labels.

The augmentation is that of DeepLab and its successors: random scale, crop with padding, flip, and optionally a
rotation and a distortion of the colors. Everything random is drawn from torch's global generator, as in
`torchvision.transforms.v2`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from emalab.data.dataset import Sample
from emalab.data.tensors import as_image, as_mask, label_dtype
from emalab.modules import IMAGENET_MEAN


class TrainTransform(nn.Module):
    """Random scale, rotation, crop, flip and color distortion; a `Sample` of any size becomes one of `crop_size`.

    The image is scaled by s and a crop is taken of it; where the scaled image is smaller than the crop, it lies at
    a random place in it and the rest is padding. As scaling is the larger part of the work, the crop window is
    chosen in the source and only that is scaled: the same up to rounding the window to whole source pixels. A rotation
    turns the image about the center of the region that the crop shows; pixels beyond the image become padding.

    Args:
        crop_size: (height, width) of the result, in pixels.
        scale_range: s is uniform in this range.
        scale_steps: draw s from the range in steps of this size instead; the official EMANet recipe has 0.25.
        flip: probability of a mirror image.
        photometric: strength of the color distortion, 0 for none. Brightness, contrast and saturation change by
            factors in 1 ± strength, hue by up to strength/10 of a full turn; 0.5 is DeepLab's and mmseg's usual one.
            Of images with other than three channels, only brightness and contrast change.
        mean_fill: value of the padding in each channel, in 0–1; with the mean of `Normalize`, padding is 0 for the
            network.
        ignore_index: label of the padding; above 255, masks are int32.
        rotation: the angle is uniform in −rotation … rotation, in degrees.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        scale_steps: float | None = None,
        flip: float = 0.5,
        photometric: float = 0.0,
        mean_fill: Sequence[float] = IMAGENET_MEAN,
        ignore_index: int = 255,
        rotation: float = 0.0,
    ) -> None:
        super().__init__()
        if min(crop_size) < 1:
            raise ValueError(f"crop_size is {crop_size}; height and width must be at least 1")
        if not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range is {scale_range}; it must ascend, above 0")
        if scale_steps is not None and scale_steps <= 0:
            raise ValueError(f"scale_steps is {scale_steps}; it must be above 0, or None for a continuous range")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip is {flip}; it is a probability")
        if not 0 <= photometric <= 1:
            raise ValueError(f"photometric is {photometric}; it must be in 0–1")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation is {rotation}; it must be in 0–180 degrees")
        if not all(0 <= value <= 1 for value in mean_fill):
            raise ValueError(f"mean_fill is {mean_fill}; it must have values in 0–1")
        self.crop_size = crop_size
        self.scale_range = scale_range
        self.scale_steps = scale_steps
        self.flip = flip
        self.photometric = photometric
        self.ignore_index = ignore_index
        self.rotation = rotation
        self.fill = torch.tensor([round(255 * value) for value in mean_fill], dtype=torch.uint8)

    def forward(self, sample: Sample) -> Sample:
        """uint8 image (c, h, w) and mask (h, w) -> the same kinds, of `crop_size`."""
        image, mask = sample.image.as_subclass(Tensor), sample.mask.as_subclass(Tensor)
        scale = self._draw_scale()
        rows, columns = (
            _draw_window(length, crop, scale) for length, crop in zip(mask.shape, self.crop_size, strict=True)
        )
        inside = None
        if self.rotation > 0:
            angle = torch.empty(()).uniform_(-self.rotation, self.rotation).item()
            image, mask, inside = turned_crop(image, mask, (rows, columns), self.crop_size, angle)
        else:
            image, mask = _scaled_window(image, mask, rows, columns)
        if self.photometric > 0:
            distort = distort_colors if len(image) == 3 else distort_bands
            image = distort(image, self.photometric)

        image_crop = self.fill[:, None, None].repeat(1, *self.crop_size)
        mask_crop = torch.full(self.crop_size, self.ignore_index, dtype=label_dtype(self.ignore_index))
        if inside is None:
            image_crop[:, rows.target, columns.target] = image
            mask_crop[rows.target, columns.target] = mask
        else:
            image_crop, mask_crop = image.where(inside, image_crop), mask.where(inside, mask_crop)
        if torch.rand(()) < self.flip:
            image_crop, mask_crop = F.horizontal_flip(image_crop), F.horizontal_flip(mask_crop)
        return Sample(as_image(image_crop), as_mask(mask_crop), sample.name)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        names = ("crop_size", "scale_range", "scale_steps", "flip", "photometric", "rotation")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _draw_scale(self) -> float:
        low, high = self.scale_range
        if self.scale_steps is None:
            return torch.empty(()).uniform_(low, high).item()
        steps = math.floor((high - low) / self.scale_steps + 1e-6)
        return low + self.scale_steps * _draw_integer(0, steps)


class _Window(NamedTuple):
    """One axis of a crop: `source` pixels of the image, scaled to `resized` pixels, land on `target` of the crop."""

    source: slice
    resized: int
    target: slice

    @property
    def scale(self) -> float:
        """Pixels of the crop per pixel of the image."""
        return self.resized / (self.source.stop - self.source.start)


def _draw_window(length: int, crop: int, scale: float) -> _Window:
    """A random crop of an axis with `length` pixels that is scaled by `scale`."""
    scaled = max(1, round(length * scale))
    if scaled <= crop:
        start = _draw_integer(0, crop - scaled)
        return _Window(slice(0, length), scaled, slice(start, start + scaled))
    extent = min(length, max(1, round(crop / scale)))
    start = _draw_integer(0, length - extent)
    return _Window(slice(start, start + extent), crop, slice(0, crop))


def _scaled_window(image: Tensor, mask: Tensor, rows: _Window, columns: _Window) -> tuple[Tensor, Tensor]:
    """What a crop shows of an image (c, h, w) and its mask (h, w), scaled."""
    size = [rows.resized, columns.resized]
    image = _resize_image(image[:, rows.source, columns.source], size)
    # Exact nearest: plain "nearest" rounds down, half a pixel off the image.
    mask = F.resize(mask[None, rows.source, columns.source], size, InterpolationMode.NEAREST_EXACT)[0]
    return image, mask


def turned_crop(
    image: Tensor, mask: Tensor, windows: tuple[_Window, _Window], crop_size: tuple[int, int], angle: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A crop of a scaled image that is turned about the center of the region in ``windows``.

    Pixels are resampled once, nearest for labels and bilinear for the image. An image that becomes smaller is first
    reduced with antialiasing, which `torch.nn.functional.grid_sample` lacks.

    Args:
        image: uint8 (c, h, w).
        mask: labels (h, w), of an integer type.
        windows: rows and columns of the crop before it is turned.
        crop_size: height and width of the result.
        angle: degrees counterclockwise; 90 is `torch.rot90`.

    Returns:
        Image and labels of the crop's size, and which pixels lie in the image, bool; the others repeat its border.
    """
    positions = _turned_positions(windows, crop_size, angle)
    inside = torch.ones(crop_size, dtype=torch.bool)
    sides, in_region = [], []
    for position, window, length, axis in zip(positions, windows, mask.shape, (-2, -1), strict=True):
        inside &= (position >= 0) & (position < length)
        start = max(int(position.min()) - 1, 0)
        extent = min(int(position.max()) + 2, length) - start
        image, mask = image.narrow(axis, start, extent), mask.narrow(axis, start, extent)
        sides.append(max(1, round(extent * min(window.scale, 1))))
        in_region.append(2 * (position - start) / extent - 1)
    grid = torch.stack(in_region[::-1], dim=-1).float()
    return _sample(_resize_image(image, sides), grid, "bilinear"), _sample(mask[None], grid, "nearest")[0], inside


def _turned_positions(
    windows: tuple[_Window, _Window], crop_size: tuple[int, int], angle: float
) -> tuple[Tensor, Tensor]:
    """Row and column of the image, in its pixels, at the center of each pixel of a turned crop: each (h, w)."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    y, x = (
        torch.arange(length, dtype=torch.float64) + 0.5 - (window.target.start + window.target.stop) / 2
        for length, window in zip(crop_size, windows, strict=True)
    )
    rows, columns = windows
    down, right = cos * y[:, None] + sin * x, cos * x - sin * y[:, None]
    return (
        (rows.source.start + rows.source.stop) / 2 + down / rows.scale,
        (columns.source.start + columns.source.stop) / 2 + right / columns.scale,
    )


def _sample(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Integers (c, h, w) at the positions ``grid`` (i, j, 2), −1 … 1 from border to border: (c, i, j)."""
    found = grid_sample(image[None].float(), grid[None], mode, padding_mode="border", align_corners=False)[0]
    return found.round().to(image.dtype)


def _resize_image(image: Tensor, size: list[int]) -> Tensor:
    """Bilinear with antialiasing, uint8 (c, h, w) -> uint8 (c, *size)."""
    if size[1] == 1:  # torch's uint8 kernel returns garbage for images that become one pixel wide
        return F.resize(image.float(), size, InterpolationMode.BILINEAR, antialias=True).round().to(torch.uint8)
    return F.resize(image, size, InterpolationMode.BILINEAR, antialias=True)


def _draw_integer(low: int, high: int) -> int:
    """Uniform in low … high, both included."""
    return int(torch.randint(low, high + 1, ()))


_LUMA = torch.tensor([0.299, 0.587, 0.114])
_RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = torch.linalg.inv(_RGB_TO_YIQ)


def distort_colors(image: Tensor, strength: float) -> Tensor:
    """Random brightness, contrast, saturation and hue (`TrainTransform` says how much): uint8 (3, h, w) -> same.

    All four are affine in RGB when hue is a rotation of the chroma plane in YIQ, so they are one matrix product:
    an order of magnitude faster than `torchvision.transforms.v2.ColorJitter`, which goes to HSV and back.
    """
    brightness, contrast, saturation = (torch.empty(3).uniform_(1 - strength, 1 + strength)).tolist()
    hue = torch.empty(()).uniform_(-strength / 10, strength / 10).item()
    return adjust_colors(image, brightness, contrast, saturation, hue)


def adjust_colors(image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Scale saturation, turn the hue, scale contrast about the mean luma, then scale brightness.

    Args:
        image: uint8 (3, h, w).
        brightness: factor; 1 leaves the image as it is. So for contrast and saturation.
        contrast: factor.
        saturation: factor; 0 is gray.
        hue: part of a full turn, from red toward yellow; 0 leaves the image as it is.

    Returns:
        uint8 (3, h, w), rounded, and clamped once at the end.
    """
    pixels = image.reshape(3, -1).float()
    mean_luma = _LUMA @ pixels.mean(dim=1)
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = torch.tensor([[1, 0, 0], [0, cos, sin], [0, -sin, cos]], dtype=torch.float32)
    chroma = torch.tensor([1, saturation, saturation], dtype=torch.float32).diag()
    matrix = brightness * contrast * (_YIQ_TO_RGB @ turn @ chroma @ _RGB_TO_YIQ)
    offset = brightness * (1 - contrast) * mean_luma + 0.5  # + 0.5: the conversion to uint8 rounds down
    return torch.addmm(offset, matrix, pixels).clamp_(0, 255).to(torch.uint8).reshape(image.shape)


def distort_bands(image: Tensor, strength: float) -> Tensor:
    """Random brightness and contrast, one factor of each in 1 ± strength for all channels: uint8 (c, h, w) -> same."""
    brightness, contrast = torch.empty(2).uniform_(1 - strength, 1 + strength).tolist()
    return adjust_bands(image, brightness, contrast)


def adjust_bands(image: Tensor, brightness: float, contrast: float) -> Tensor:
    """Scale the contrast of each channel about its mean, then the brightness of all.

    Bands of one image differ in level, unlike the channels of a photograph, so that each keeps its own mean.

    Args:
        image: uint8 (c, h, w).
        brightness: factor; 1 leaves the image as it is. So for contrast.
        contrast: factor.

    Returns:
        uint8 (c, h, w), rounded, and clamped once at the end.
    """
    pixels = image.float()
    mean = image.sum(dim=(1, 2), keepdim=True) / max(
        image[0].numel(), 1
    )  # of integers: exact for any number of threads
    return (brightness * (mean + contrast * (pixels - mean)) + 0.5).clamp_(0, 255).to(torch.uint8)
