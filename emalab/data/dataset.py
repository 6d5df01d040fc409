"""Images with a label for each pixel, read from files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision import tv_tensors

from emalab.data.errors import (
    DataError,
    MissingFileError,
    SizeMismatchError,
    UnknownLabelError,
    UnreadableFileError,
)
from emalab.data.spec import Color, DatasetSpec

UNKNOWN = 254  # what a lookup table gives for a value outside the label set; no benchmark here has as many classes


class Sample(NamedTuple):
    """One image and its labels.

    `image` is uint8 RGB (3, h, w), `mask` is uint8 labels (h, w) with 255 where ignored, `name` identifies the
    image within its data set (the stem of its file).
    """

    image: tv_tensors.Image
    mask: tv_tensors.Mask
    name: str


class FilePair(NamedTuple):
    """The image file and the label file of one sample."""

    image: Path
    mask: Path


class LabeledImages(Dataset[Sample], ABC):
    """A map-style data set of `Sample`s that knows its benchmark."""

    spec: DatasetSpec

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def image(self, index: int) -> tuple[tv_tensors.Image, str]:
        """Image and name of sample `index`; its labels are not read where they lie in a file of their own."""
        sample = self[index]
        return sample.image, sample.name


class SegmentationDataset(LabeledImages):
    """Image files and label files in pairs.

    Args:
        spec: the benchmark.
        pairs: (image file, label file) of each sample.
        labels: stored label value -> class index, or `spec.ignore_index`. The default is the identity on the
            classes, and 255 for ignored pixels. Any other value in a label file is an error.
        colors: RGB color -> the same, for label files that are drawn in colors. The default refuses those.

    Raises:
        DataError: on access, a file is missing, unreadable or truncated, the two differ in size, or a label is
            not in `labels`. The message names the file.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        pairs: Iterable[tuple[Path, Path]],
        labels: Mapping[int, int] | None = None,
        colors: Mapping[Color, int] | None = None,
    ) -> None:
        self.spec = spec
        self.pairs: Sequence[FilePair] = [FilePair(*pair) for pair in pairs]
        if labels is None:
            labels = {label: label for label in (*range(spec.num_classes), spec.ignore_index)}
        self._table, self._colors = lookup_table(labels), colors

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image, mask = open_image(pair.image), self.open_mask(index)
        check_sizes(pair, image, mask)
        return Sample(image, mask, pair.image.stem)

    def image(self, index: int) -> tuple[tv_tensors.Image, str]:
        """Image and name of sample `index`, from the image file alone."""
        path = self.pairs[index].image
        return open_image(path), path.stem

    def open_mask(self, index: int) -> tv_tensors.Mask:
        """The labels of sample `index` as uint8 (h, w), translated to class indices."""
        return open_mask(self.pairs[index].mask, self._table, self._colors)


def open_image(source: Path | str | Image.Image) -> tv_tensors.Image:
    """Any photograph as RGB, the right way up.

    Grey, palette, CMYK and 16-bit images are converted; transparent ones are laid on white, as viewers show them;
    the EXIF orientation is applied.

    Args:
        source: a file, or an image that PIL has opened.

    Returns:
        uint8 (3, h, w). In memory it is (h, w, 3), as decoded: torchvision resizes that several times faster.

    Raises:
        DataError: the file is missing, is not an image, is truncated, or holds floating-point values.
    """
    pixels = _decode(source, _to_rgb)
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def open_mask(path: Path | str, table: np.ndarray, colors: Mapping[Color, int] | None = None) -> tv_tensors.Mask:
    """The label map in a file, as uint8 (h, w), each value translated by `table` (see `lookup_table`).

    A palette image is read as its indices: the colors are for people. Where `colors` are given, an image in RGB is read
    by them, and so is one whose palette has no other colors, as programs write that make an RGB image smaller.

    Raises:
        DataError: the file is missing, truncated, or not a single-channel image of 8 bits (the labels as colors,
            say, without `colors`), or a value is not in the table.
    """
    stored = _decode(path, partial(_to_colors, colors=colors) if colors else _to_labels)
    if colors and stored.ndim == 3:
        return tv_tensors.Mask(torch.from_numpy(_labels_of_colors(stored, colors, path)))
    labels = np.take(table, stored)
    if (labels == UNKNOWN).any():
        values, counts = np.unique(stored[labels == UNKNOWN], return_counts=True)
        found = ", ".join(f"{value} ({count} px)" for value, count in zip(values, counts, strict=True))
        raise UnknownLabelError(
            f"{path}: label values outside the label set: {found}; expected "
            f"{_ranges(np.flatnonzero(table != UNKNOWN))}. Is this the label map of another data set or release?"
        )
    return tv_tensors.Mask(torch.from_numpy(labels))


def _labels_of_colors(stored: np.ndarray, colors: Mapping[Color, int], path: Path | str) -> np.ndarray:
    """RGB (h, w, 3) → labels uint8 (h, w); `UnknownLabelError` names the most frequent colors that are not known."""
    codes = _codes(stored)
    known = {int(_codes(np.array(color))): label for color, label in colors.items()}
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    unknown = [(int(count), int(code)) for code, count in zip(found, counts, strict=True) if code not in known]
    if unknown:
        worst = ", ".join(f"{_color(code)} ({count} px)" for count, code in sorted(unknown, reverse=True)[:5])
        raise UnknownLabelError(
            f"{path}: {len(unknown)} colors are of no class: {worst}; expected {', '.join(map(_color, known))}. "
            "JPEG and interpolation invent colors between those of the classes: save masks as PNG, unscaled."
        )
    return np.array([known[code] for code in found.tolist()], np.uint8)[inverse].reshape(codes.shape)


def _codes(rgb: np.ndarray) -> np.ndarray:
    """A number for each color: (…, 3) → (…)."""
    return rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _color(code: int) -> str:
    return str([code >> 16, code >> 8 & 255, code & 255])


def lookup_table(labels: Mapping[int, int]) -> np.ndarray:
    """A table (256,) uint8 from stored label to class index; values not in `labels` become `UNKNOWN`."""
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    for stored, label in labels.items():
        if not (0 <= stored <= 255 and 0 <= label <= 255 and label != UNKNOWN):
            raise ValueError(f"cannot map label {stored} to {label}: both must be in 0–255, the latter not {UNKNOWN}")
        table[stored] = label
    return table


def check_sizes(pair: FilePair, image: torch.Tensor, mask: torch.Tensor) -> None:
    """Raise `SizeMismatchError` unless image (3, h, w) and mask (h, w) agree in height and width."""
    if image.shape[-2:] != mask.shape[-2:]:
        (ih, iw), (mh, mw) = image.shape[-2:], mask.shape[-2:]
        raise SizeMismatchError(
            f"{pair.mask}: labels are {mw}×{mh} but the image {pair.image} is {iw}×{ih} (width × height). "
            "Take both from the same release, or resize the labels with nearest-neighbor interpolation."
        )


def _decode(source: Path | str | Image.Image, convert: Callable[[Image.Image, str], np.ndarray]) -> np.ndarray:
    """Run `convert` on the opened image, turning every way in which that fails into a DataError."""
    name = f"{getattr(source, 'filename', '') or 'image'}" if isinstance(source, Image.Image) else str(source)
    try:
        if isinstance(source, Image.Image):
            return convert(source, name)
        with Image.open(source) as image:
            return convert(image, name)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: no such file.") from error
    except UnidentifiedImageError as error:
        raise UnreadableFileError(f"{name}: not an image in a format that Pillow reads.") from error
    # Pillow's decoders raise any of these on damaged bytes, depending on the format and where the damage is.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise UnreadableFileError(f"{name}: cannot be read ({error}); it may be cut short.") from error


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Pixels as a writable uint8 array (h, w, 3)."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UnreadableFileError(f"{name}: floating-point pixels have no agreed range; save it with 8 or 16 bits.")
    if image.mode == "I" or image.mode.startswith("I;16"):  # grey of 16 bits, which convert("RGB") would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_labels(image: Image.Image, name: str) -> np.ndarray:
    """Stored label values as a uint8 array (h, w)."""
    if image.mode not in ("L", "P"):
        raise UnreadableFileError(
            f"{name}: labels are stored as {image.mode}, expected one 8-bit channel (grey or palette) that holds "
            "label values. Labels drawn as colors must be converted to label values first."
        )
    return np.asarray(image)


def _to_colors(image: Image.Image, name: str, colors: Collection[Color]) -> np.ndarray:
    """What `colors` are to translate, as uint8 (h, w, 3), transparency disregarded; anything else as `_to_labels`."""
    if image.mode in ("RGB", "RGBA", "P"):
        rgb = np.array(image.convert("RGB"))
        if image.mode != "P" or np.isin(_codes(rgb), _codes(np.array(list(colors)))).all():
            return rgb
    return _to_labels(image, name)


def _ranges(values: np.ndarray) -> str:
    """Sorted integers for people: 0–11, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
