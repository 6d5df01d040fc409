"""A picture of what a data set's labels look like on its images, to be looked at before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from emalab.data import LabeledImages
from emalab.data.bands import viewable
from emalab.data.spec import DatasetSpec
from emalab.files import write_atomically

__all__ = ["write_preview"]

_SIDE = 320  # pixels of the longer side of an image in the picture
_IGNORED = np.array((224, 224, 192), np.uint8)  # VOC's color of label 255, which is ignored
_IGNORED_WIDE = np.array((255, 255, 255), np.uint8)  # where 255 may be a class


def write_preview(dataset: LabeledImages, path: Path, count: int = 8) -> None:
    """Write ``count`` images, evenly from the data set, each beside its labels, as one picture.

    Images of other than three channels are shown by the first three, or by the first one in gray.

    Raises:
        DataError: a file that cannot be read.
        ValueError: an ending that is no format of PIL's.
    """
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    rows = [_pair(dataset, int(index)) for index in indices]
    picture = Image.new("RGB", (2 * _SIDE, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} has no ending of a picture; take .png")
    write_atomically(path, lambda temporary: picture.save(temporary, format=kind))


def _pair(dataset: LabeledImages, index: int) -> Image.Image:
    image, mask, _ = dataset[index]
    height, width = mask.shape
    scale = _SIDE / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    photo = Image.fromarray(viewable(image.permute(1, 2, 0).numpy())).resize(size)
    labels = Image.fromarray(_colored(mask.numpy(), dataset.spec)).resize(size, Image.Resampling.NEAREST)
    row = Image.new("RGB", (2 * _SIDE, size[1]), "white")
    row.paste(photo, (0, 0))
    row.paste(labels, (_SIDE, 0))
    return row


def _colored(labels: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    table = np.tile(_IGNORED if spec.ignore_index <= 255 else _IGNORED_WIDE, (spec.ignore_index + 1, 1))
    table[: spec.num_classes] = spec.palette
    return table[labels]
