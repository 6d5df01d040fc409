"""Label files: gray, palette or colored images whose pixels are labels, read exactly as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from emalab.data.errors import UnknownLabelError
from emalab.data.images import MAX_PIXELS, load, opened, refuse, stored_depth, turned
from emalab.data.spec import Color
from emalab.data.tensors import as_mask

if TYPE_CHECKING:
    from torchvision import tv_tensors

__all__ = ["MASK_SUFFIXES", "UNKNOWN", "StoredMask", "lookup_table", "open_mask", "read_stored", "to_labels"]

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
"""Endings of files that keep every label, in lower case."""

UNKNOWN = 254  # what a lookup table of uint8 gives for a value outside the label set
_UNKNOWN_WIDE = 65534  # what one of int32 gives

_LOSSY = ("jpeg", "tiff_jpeg", "webp")  # compressions of TIFF that change labels
_STRIP = 1 << 20  # colors that are translated at a time
_SHOWN = 5  # unknown values that an error lists
_EXPECTED = 32  # known ones


class StoredMask(NamedTuple):
    """A label file as it is stored.

    `values` is uint8 or uint16 (h, w), or uint8 RGB (h, w, 3). `depth` counts the bits of a value. `colors` has the RGB
    of each index where the file has a palette, (n, 3). `turn` is the EXIF orientation that the file asks for.
    """

    values: np.ndarray
    depth: int
    colors: np.ndarray | None
    turn: int


def open_mask(
    path: Path | str, table: np.ndarray, colors: Mapping[Color, int] | None = None, *, max_pixels: int = MAX_PIXELS
) -> tv_tensors.Mask:
    """The label map in a file (h, w), each value translated by `table`, and of its type (see `lookup_table`).

    A palette image is read as its indices: the colors are for people. Where `colors` are given, an image in RGB is read
    by them, and so is one whose palette has no other colors, as programs write that make an RGB image smaller. Images
    of 1, 2 and 4 bits are read as the numbers that they store, unless the table has none of these but 0; then as the
    gray that viewers show, 0–255.

    Raises:
        DataError: the file is missing or damaged, holds no labels (floating point, colors without `colors`), or a
            value that is not in the table.
    """
    return to_labels(read_stored(path, max_pixels), table, colors, path)


def read_stored(path: Path | str, max_pixels: int = MAX_PIXELS) -> StoredMask:
    """What a label file holds, before anything is made of it; errors as `open_mask`, but for unknown values."""
    with opened(path, max_pixels) as image:
        depth, rawmode = stored_depth(image)
        if "I" in rawmode.partition(";")[2]:
            raise refuse("its gray is stored inverted (TIFF's WhiteIsZero), so label 0 is ambiguous; save it as PNG.")
        if image.info.get("compression") in _LOSSY or image.format in ("JPEG", "MPO"):
            raise refuse("labels are compressed with loss (JPEG or WebP), which changes them; save them as PNG.")
        turn, loaded = load(image)
        values = _values(image, depth)
        palette = image.getpalette("RGB") if image.mode == "P" else None
    if loaded:  # by PIL: back to the stored pixels
        values = turned(values, {6: 8, 8: 6}.get(turn, turn))
    return StoredMask(values, depth, None if palette is None else np.array(palette, np.uint8).reshape(-1, 3), turn)


def _values(image: Image.Image, depth: int) -> np.ndarray:
    """Stored numbers (h, w), or colors (h, w, 3)."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode == "P" or (image.mode == "L" and depth not in (2, 4)):
        return np.asarray(image)
    if image.mode == "L":  # PIL has spread 2 or 4 bits over 0–255
        return np.asarray(image) // np.uint8(255 // (2**depth - 1))
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise refuse(f"has labels from {values.min()} to {values.max()}; they must be in 0–65535.")
        return values.astype(np.uint16)
    if image.mode in ("LA", "RGB", "RGBA", "RGBX"):
        values = np.asarray(image)
        return values[..., 0] if image.mode == "LA" else values[..., :3]
    if image.mode == "PA":
        return np.asarray(image.getchannel(0))
    raise refuse(
        f"labels are stored as {image.mode}, expected one channel (gray of up to 16 bits, or palette) that holds label "
        "values, or RGB with a color for each class."
    )


def to_labels(
    stored: StoredMask, table: np.ndarray, colors: Mapping[Color, int] | None, path: Path | str
) -> tv_tensors.Mask:
    """Labels (h, w) of a stored mask; `path` is for errors. See `open_mask`."""
    values, nothing = stored.values, _unknown_in(table)
    if values.ndim == 3 and colors:
        return _to_tensor(_labels_of_colors(values, colors, path, table.dtype))
    if values.ndim == 3:
        gray = values[..., 0]
        if not ((gray == values[..., 1]).all() and (gray == values[..., 2]).all()):
            raise _not_values(path)
        if stored.depth > 8:  # PIL has dropped the lower byte
            raise _too_deep(path)
        values = gray
    elif colors and stored.colors is not None and _is_drawn(stored, colors):
        return _to_tensor(_labels_of_colors(stored.colors[values], colors, path, table.dtype))
    elif stored.colors is None and stored.depth < 8 and (table[1 : 2**stored.depth] == nothing).all():
        values = values * np.uint8(255 // (2**stored.depth - 1))
    labels = np.take(table, values, mode="clip")
    unknown = labels == nothing
    if values.dtype != np.uint8:
        unknown |= values >= len(table)
    if unknown.any():
        raise _unknown_values(values[unknown], table, path)
    return _to_tensor(labels)


def _not_values(path: Path | str) -> UnknownLabelError:
    return UnknownLabelError(
        f"{path}: labels are stored as RGB colors, and no colors are known. Give each class its color "
        "(colors in a folder's classes.yaml), or convert the colors to label values."
    )


def _too_deep(path: Path | str) -> UnknownLabelError:
    return UnknownLabelError(
        f"{path}: labels are stored in several channels of 16 bits, of which 8 can be read; save them as one channel."
    )


def _unknown_values(found: np.ndarray, table: np.ndarray, path: Path | str) -> UnknownLabelError:
    values, counts = np.unique(found, return_counts=True)
    shown = ", ".join(f"{value} ({count} px)" for value, count in list(zip(values, counts, strict=True))[: 2 * _SHOWN])
    more = f" and {len(values) - 2 * _SHOWN} more" if len(values) > 2 * _SHOWN else ""
    return UnknownLabelError(
        f"{path}: label values outside the label set: {shown}{more}; expected "
        f"{ranges(np.flatnonzero(table != _unknown_in(table)))}. Is this the label map of another data set or release?"
    )


def _is_drawn(stored: StoredMask, colors: Mapping[Color, int]) -> bool:
    """Whether a palette has no color but those of the classes, so that its indices mean nothing."""
    assert stored.colors is not None
    used = np.unique(stored.values)
    if used[-1] >= len(stored.colors):
        return False
    return bool(np.isin(_codes(stored.colors[used]), _codes(np.array(list(colors)))).all())


def _to_tensor(labels: np.ndarray) -> tv_tensors.Mask:
    import torch  # here alone: an unreadable file must not wait for it

    return as_mask(torch.from_numpy(labels))


def _labels_of_colors(stored: np.ndarray, colors: Mapping[Color, int], path: Path | str, dtype: np.dtype) -> np.ndarray:
    """RGB (h, w, 3) → labels (h, w); `UnknownLabelError` names the most frequent colors that are not known."""
    known = np.array(sorted((int(_codes(np.array(color))), label) for color, label in colors.items()))
    flat = stored.reshape(-1, 3)
    labels = np.empty(len(flat), dtype)
    unknown: dict[int, int] = {}
    for start in range(0, len(flat), _STRIP):
        codes = _codes(flat[start : start + _STRIP])
        place = np.searchsorted(known[:, 0], codes).clip(max=len(known) - 1)
        labels[start : start + _STRIP] = known[place, 1]
        others, counts = np.unique(codes[known[place, 0] != codes], return_counts=True)
        for code, count in zip(others.tolist(), counts.tolist(), strict=True):
            unknown[code] = unknown.get(code, 0) + count
    if unknown:
        frequent = sorted(((count, code) for code, count in unknown.items()), reverse=True)
        worst = ", ".join(f"{_color(code)} ({count} px)" for count, code in frequent[:_SHOWN])
        expected = ", ".join(str(list(color)) for color in list(colors)[:_EXPECTED])
        expected += f" and {len(colors) - _EXPECTED} more" if len(colors) > _EXPECTED else ""
        raise UnknownLabelError(
            f"{path}: {len(unknown)} colors are of no class: {worst}; expected {expected}. "
            "JPEG and interpolation invent colors between those of the classes: save masks as PNG, unscaled."
        )
    return labels.reshape(stored.shape[:2])


def _codes(rgb: np.ndarray) -> np.ndarray:
    """A number for each color: (…, 3) → (…)."""
    return rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _color(code: int) -> str:
    return str([code >> 16, code >> 8 & 255, code & 255])


def lookup_table(labels: Mapping[int, int], ignore_index: int = 255) -> np.ndarray:
    """A table from stored label to class index.

    Args:
        labels: stored label -> class index, or ``ignore_index``.
        ignore_index: the label of ignored pixels, which decides on the type as in `emalab.data.tensors.label_dtype`.

    Returns:
        uint8 or int32, (256,), or (65536,) where labels above 255 are stored. Values that are not in ``labels`` become
        `UNKNOWN`, or 65534 in int32.

    Raises:
        ValueError: a label out of range, or one that is mapped to what stands for unknown ones.
    """
    wide, size = ignore_index > 255, 256 if max(labels, default=0) <= 255 else 65536
    most, nothing = (65535, _UNKNOWN_WIDE) if wide else (255, UNKNOWN)
    table = np.full(size, nothing, dtype=np.int32 if wide else np.uint8)
    for stored, label in labels.items():
        if not (0 <= stored < size and 0 <= label <= most and label != nothing):
            raise ValueError(
                f"cannot map label {stored} to {label}: the former must be in 0–65535, the latter in 0–{most} and not "
                f"{nothing}"
            )
        table[stored] = label
    return table


def _unknown_in(table: np.ndarray) -> int:
    return UNKNOWN if table.dtype == np.uint8 else _UNKNOWN_WIDE


def ranges(values: np.ndarray) -> str:
    """Sorted integers for people: 0–11, 255; of many runs the first."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    shown = [f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs[:_EXPECTED]]
    return ", ".join(shown) + (f" and {len(runs) - _EXPECTED} more" if len(runs) > _EXPECTED else "")
