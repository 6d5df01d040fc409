"""Pictures of labels: colors of the benchmark, overlays with a legend, palette PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from emalab.data.bands import decode_image, read_header, viewable
from emalab.data.images import Reading
from emalab.data.spec import DatasetSpec
from emalab.files import write_atomically

__all__ = ["colorize", "overlay", "save_confidence", "save_labels", "save_picture", "save_probabilities"]

_LEGEND_ROW = 24  # pixels
_NAMED = 48  # classes that a legend names


def _palette(spec: DatasetSpec) -> NDArray[np.uint8]:
    """Colors (n, 3): those of the classes, white for the ignored label; n is 256 where that is enough."""
    palette = np.zeros((max(256, spec.ignore_index + 1), 3), np.uint8)
    palette[: spec.num_classes] = spec.palette
    palette[spec.ignore_index] = 255
    return palette


def colorize(labels: NDArray[np.integer], spec: DatasetSpec) -> NDArray[np.uint8]:
    """Labels (h, w) in the benchmark's colors, the ignored label in white: uint8 RGB (h, w, 3)."""
    return _palette(spec)[labels]


def save_confidence(confidence: NDArray[np.float32], path: Path) -> None:
    """Write probabilities (h, w) in [0, 1] as a gray PNG: black is 0, white is 1, in steps of 1/255."""
    save_picture(Image.fromarray(np.rint(confidence * 255).astype(np.uint8)), path)


def save_probabilities(probabilities: NDArray[np.floating], spec: DatasetSpec, path: Path) -> None:
    """Write probabilities (h, w, classes) and the names of the ``classes`` as a compressed ``.npz``."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # numpy would add an ending to a path
            np.savez_compressed(file, probabilities=probabilities, classes=np.array(spec.classes))

    write_atomically(path, write)


def save_labels(labels: NDArray[np.integer], spec: DatasetSpec, path: Path) -> None:
    """Write labels (h, w) as a palette PNG, like those of VOC: values are class indices, colors the palette's.

    Where the ignored label is above 255, as beside more than 254 classes, the PNG is gray, with 16 bits and no palette.
    """
    if spec.ignore_index > 255:
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8, copy=False)).convert("P")
        image.putpalette(_palette(spec).tobytes())
    write_atomically(path, lambda temporary: image.save(temporary, "PNG"))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    write_atomically(path, lambda temporary: picture.save(temporary, "PNG"))


def overlay(
    photo: Path | str | Image.Image,
    labels: NDArray[np.integer],
    spec: DatasetSpec,
    *,
    strength: float = 0.55,
    named: Sequence[int] | None = None,
) -> Image.Image:
    """The photograph tinted with the colors of its labels and white lines between them, above a legend.

    A class called "background" is not tinted.

    Args:
        photo: a file or an image that PIL has opened; of a file with bands the first three are shown, or the first one.
        labels: (h, w), at the photograph's size.
        spec: whose classes and colors.
        strength: share of the class color in a tinted pixel.
        named: labels that the legend names; by default those in the picture, the largest first, and of many the
            largest 48. Without any there is no legend.

    Raises:
        ValueError: labels of another size.
    """
    image = Image.fromarray(_pixels(photo, spec))
    if image.size != labels.shape[::-1]:
        raise ValueError(f"the photograph has {image.height}×{image.width} pixels, its labels are {labels.shape}")
    tinted = Image.blend(image, Image.fromarray(colorize(labels, spec)), strength)
    plain = np.isin(labels, [label for label, name in enumerate(spec.classes) if name == "background"])
    tinted.paste(image, mask=Image.fromarray(plain))
    tinted.paste("white", mask=_borders(labels))
    if named is None:
        present, counts = np.unique(labels, return_counts=True)
        named = [int(label) for label in present[np.argsort(-counts)] if label < spec.num_classes]
        if len(named) > _NAMED:
            return _with_legend(tinted, named[:_NAMED], spec, f"and {len(named) - _NAMED} more")
    return _with_legend(tinted, named, spec)


def _pixels(photo: Path | str | Image.Image, spec: DatasetSpec) -> NDArray[np.uint8]:
    """Pixels (h, w, 3) of a photograph, or of what can be seen of a file with bands."""
    channels = None if isinstance(photo, Image.Image) else read_header(Path(photo)).channels
    return viewable(decode_image(photo, Reading(bits=spec.bits, channels=channels)).pixels)


def _borders(labels: NDArray[np.integer]) -> Image.Image:
    """Where labels change, as a mask of lines about 1/400 of the picture's width across."""
    width = max(labels.shape[1] // 400, 1)
    borders = np.zeros(labels.shape, bool)
    borders[:, width:] |= labels[:, width:] != labels[:, :-width]
    borders[width:] |= labels[width:] != labels[:-width]
    return Image.fromarray(borders)


def _with_legend(picture: Image.Image, labels: Sequence[int], spec: DatasetSpec, more: str = "") -> Image.Image:
    if not labels:
        return picture
    row = max(_LEGEND_ROW, picture.width // 30)
    font = ImageFont.load_default(size=row * 0.6)
    texts = [spec.classes[label] for label in labels] + ([more] if more else [])
    widths = [round(row * 1.6 + font.getlength(text)) for text in texts]
    canvas_width = max([picture.width, *widths])
    places, x, y = [], 0, 0
    for width in widths:
        if x and x + width > canvas_width:
            x, y = 0, y + row
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (canvas_width, picture.height + y + row), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for i, (text, (left, top)) in enumerate(zip(texts, places, strict=True)):
        top += picture.height
        if i < len(labels):  # the text on how many more there are has no box
            box = (left + row * 0.25, top + row * 0.2, left + row * 0.85, top + row * 0.8)
            draw.rectangle(box, fill=spec.palette[labels[i]], outline="black")
        draw.text((left + row, top + row * 0.5), text, fill="black", font=font, anchor="lm")
    return canvas
