"""Images with a label for each pixel, read from files."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.data import Dataset

from emalab.data.bands import decode_image
from emalab.data.errors import OrientationError, SizeMismatchError
from emalab.data.images import DecodedImage, Reading, to_tensor, turn_in_words, turned
from emalab.data.masks import StoredMask, lookup_table, read_stored, to_labels
from emalab.data.spec import Color, DatasetSpec

if TYPE_CHECKING:
    from torchvision import tv_tensors


class Sample(NamedTuple):
    """One image and its labels.

    `image` is uint8 (c, h, w), RGB for c = 3; `mask` is uint8 labels (h, w) with 255 where ignored, or int32 ones with
    65535 where there are more than 254 classes; `name` identifies the image within its data set (the stem of its file).
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

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def image(self, index: int) -> tuple[tv_tensors.Image, str]:
        """Image and name of sample `index`; its labels are not read where they lie in a file of their own."""
        sample = self[index]
        return sample.image, sample.name

    def mask(self, index: int) -> tv_tensors.Mask:
        """Labels of sample `index`, (h, w); its image is not read where it lies in a file of its own."""
        return self[index].mask

    def sample_names(self) -> Sequence[str] | None:
        """The names of the samples, in order, where they are known without reading any; else None."""
        return None


def data_identity(dataset: LabeledImages) -> str:
    """What a data set is, whatever folder it lies in: a hash of its classes and of the names of its samples, in order.

    Samples without a name of their own, such as generated ones, count by the name of the data set and their number; so
    do those of a data set that is no `LabeledImages` but has ``spec``, a length and samples.
    """
    spec, names = dataset.spec, dataset.sample_names() if isinstance(dataset, LabeledImages) else None
    which: object = [spec.name, len(dataset)] if names is None else list(names)
    text = json.dumps([spec.classes, spec.ignore_index, which])
    return hashlib.sha256(text.encode()).hexdigest()


class SegmentationDataset(LabeledImages):
    """Image files and label files in pairs.

    Args:
        spec: the benchmark.
        pairs: (image file, label file) of each sample.
        labels: stored label value -> class index, or `spec.ignore_index`. The default is the identity on the
            classes, and on that of ignored pixels. Any other value in a label file is an error.
        colors: RGB color -> the same, for label files that are drawn in colors. The default refuses those.
        reading: how files become pixels; the default turns them upright.
        names: of the samples; by default the stems of the image files.

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
        reading: Reading | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.spec = spec
        self.pairs: Sequence[FilePair] = [FilePair(*map(Path, pair)) for pair in pairs]
        if labels is None:
            labels = {label: label for label in (*range(spec.num_classes), spec.ignore_index)}
        self._table, self._colors = lookup_table(labels, spec.ignore_index), colors
        self.reading = reading or Reading()
        self.names = [pair.image.stem for pair in self.pairs] if names is None else list(names)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.decode_image(index), self.read_mask(index)
        return self.joined(index, image, mask)

    def image(self, index: int) -> tuple[tv_tensors.Image, str]:
        """Image and name of sample `index`, from the image file alone."""
        return to_tensor(self.decode_image(index).pixels), self.names[index]

    def mask(self, index: int) -> tv_tensors.Mask:
        """The labels of sample `index`, (h, w), translated to class indices."""
        return self.labels(index, self.read_mask(index))

    def sample_names(self) -> Sequence[str]:
        """The names of the samples, in order."""
        return self.names

    def decode_image(self, index: int) -> DecodedImage:
        """The image of sample `index`, uint8 (h, w, c), with the EXIF orientation of its file."""
        return decode_image(self.pairs[index].image, self.reading)

    def read_mask(self, index: int) -> StoredMask:
        """What the label file of sample `index` holds, before it is translated."""
        return read_stored(self.pairs[index].mask, self.reading.max_pixels)

    def joined(self, index: int, image: DecodedImage, mask: StoredMask) -> Sample:
        """The sample of a decoded image and a stored mask; `DataError` where they do not fit each other."""
        pair, labels, pixels = self.pairs[index], self.labels(index, mask), to_tensor(image.pixels)
        check_sizes(pair, pixels, labels, image.turn)
        if self.reading.orientation is None:
            _check_turns(pair, image, mask)
        return Sample(pixels, labels, self.names[index])

    def labels(self, index: int, mask: StoredMask) -> tv_tensors.Mask:
        """A stored mask translated to class indices, (h, w), turned where this data set turns."""
        if self.reading.orientation != "stored":
            mask = mask._replace(values=turned(mask.values, mask.turn))
        return to_labels(mask, self._table, self._colors, self.pairs[index].mask)


def check_sizes(pair: FilePair, image: torch.Tensor, mask: torch.Tensor, turn: int = 1) -> None:
    """Raise `SizeMismatchError` unless image (c, h, w) and mask (h, w) agree in height and width.

    Where only the EXIF orientation ``turn`` of the image stands between them, the message names it.
    """
    (ih, iw), (mh, mw) = image.shape[-2:], mask.shape[-2:]
    if (ih, iw) == (mh, mw):
        return
    if turn >= 5 and (iw, ih) == (mh, mw):
        raise SizeMismatchError(
            f"{pair.mask}: labels are {mw}×{mh} but the image {pair.image} is {iw}×{ih} (width × height), as it is "
            f"{turn_in_words(turn)} by its EXIF orientation. If masks are drawn on the stored pixels, write "
            "orientation: stored into classes.yaml."
        )
    if pair.image.suffix.lower() == ".npy" and (mh, mw) in ((iw, image.shape[0]), (image.shape[0], iw)):
        raise SizeMismatchError(
            f"{pair.mask}: labels are {mw}×{mh} but the array {pair.image} is {iw}×{ih} (width × height) with "
            f"{image.shape[0]} channels. Its axes must be height, width, channels: transpose it."
        )
    raise SizeMismatchError(
        f"{pair.mask}: labels are {mw}×{mh} but the image {pair.image} is {iw}×{ih} (width × height). "
        "Take both from the same release, or resize the labels with nearest-neighbor interpolation."
    )


def _check_turns(pair: FilePair, image: DecodedImage, mask: StoredMask) -> None:
    """Raise `OrientationError` where nothing tells whether a turn of the image applies to its mask as well."""
    height, width = image.pixels.shape[:2]
    if image.turn in (1, mask.turn) or (image.turn >= 5 and height != width):  # then their sizes tell
        return
    raise OrientationError(
        f"{pair.image}: is {turn_in_words(image.turn)} by its EXIF orientation, and its mask {pair.mask.name} has "
        "none. Say in classes.yaml how masks are drawn: orientation: upright (on the image as viewers show it) or "
        "orientation: stored (on the pixels in the file)."
    )
