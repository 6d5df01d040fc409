"""Images of any number of channels: arrays of numpy (.npy), TIFFs of several bands, and gray photographs.

- `.npy` holds an array (h, w, c), or (h, w) for one channel, uint8 or uint16.
- A TIFF has its bands in one page, interleaved or one after the other: two or more gray ones (photometric MinIsBlack),
  or RGB and further ones. A fourth channel counts even if the file marks it as opacity, because programs write near
  infrared in this way. Only RGB with associated opacity, and gray with opacity, are photographs. tifffile reads bands.
- All other files are photographs: RGB, or gray if one channel is asked for (ITU-R 601's luma of colors).

Values of 16 bits keep their upper 8, as those of photographs do: v >> (depth − 8). The depth is the file's (TIFF's
MaxSampleValue, or else 16), or ``bits``. An image that would be nearly black, because its true depth is smaller, is
refused. So are floating-point and signed values, which have no agreed range.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from emalab.data.images import (
    MAX_PIXELS,
    DecodedImage,
    Reading,
    check_file,
    check_pixels,
    check_range,
    count_pictures,
    decode_rgb,
    named_errors,
    opened,
    refuse,
    turned,
)
from emalab.data.spec import channels_in_words

__all__ = ["ImageHeader", "decode_image", "read_header", "viewable"]

_NUMPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # with + it is a BigTIFF
_GRAY, _RGB = 1, 2  # photometric interpretations
_WIDTH, _HEIGHT, _PHOTOMETRIC, _SAMPLES, _EXTRA, _MAX_VALUE = 256, 257, 262, 277, 338, 281  # TIFF's tags
_ASSOCIATED, _UNASSOCIATED = 1, 2  # opacity


class ImageHeader(NamedTuple):
    """Size and channels of an image file, known before its pixels are read."""

    width: int
    height: int
    channels: int
    """3 for every photograph, also a gray one."""
    is_photograph: bool
    """Whether `emalab.data.images` reads it, as RGB; otherwise it has bands."""


class _Bands(NamedTuple):
    """The header of a file with bands."""

    width: int
    height: int
    channels: int
    bits: int  # of a value, as the file states it
    turn: int = 1  # EXIF orientation
    is_array: bool = False
    begins_with_rgb: bool = False  # so that Pillow reads it, without the rest


def read_header(path: Path, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Size and channels of an image file.

    Raises:
        DataError: the file is missing, damaged, too large, or no image that is read.
    """
    if bands := _band_header(path, max_pixels):
        return ImageHeader(*bands[:3], is_photograph=False)
    with opened(path, max_pixels, several=True) as image:
        return ImageHeader(*image.size, 3, is_photograph=True)


def decode_image(source: Path | str | Image.Image, reading: Reading | None = None) -> DecodedImage:
    """The pixels of an image, uint8 (h, w, c), with the channels that ``reading`` asks for.

    Args:
        source: a file, or an image that PIL has opened, which is a photograph.
        reading: how files become pixels; by default RGB, upright.

    Raises:
        DataError: as `emalab.data.open_image`; another number of channels; or tifffile is not installed.
    """
    how = reading or Reading()
    bands = None if isinstance(source, Image.Image) else _band_header(Path(source), how.max_pixels)
    if bands is None or (how.channels is None and bands.channels == 4 and bands.begins_with_rgb):
        return _decode_photograph(source, how)
    path = Path(str(source))
    with named_errors(str(path)):
        if bands.channels != (how.channels or 3):
            raise refuse(_why_others(bands.channels, how))
        values = np.load(path, allow_pickle=False) if bands.is_array else _tiff_bands(path)
        pixels = _as_bytes(values.reshape(bands.height, bands.width, bands.channels), bands.bits, how.bits)
    return DecodedImage(turned(pixels, bands.turn) if how.orientation != "stored" else pixels, bands.turn)


def _decode_photograph(source: Path | str | Image.Image, how: Reading) -> DecodedImage:
    """RGB, or gray where one channel is wanted."""
    if how.channels not in (None, 1, 3):
        with named_errors(
            (getattr(source, "filename", "") or "image") if isinstance(source, Image.Image) else str(source)
        ):
            raise refuse(_why_no_bands(source, how))
    decoded = decode_rgb(source, max_pixels=how.max_pixels, bits=how.bits, upright=how.orientation != "stored")
    return decoded._replace(pixels=_luma(decoded.pixels)) if how.channels == 1 else decoded


def viewable(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 (h, w, c) as a picture (h, w, 3): the first three channels, or the first one as gray."""
    if pixels.shape[-1] >= 3:
        return np.ascontiguousarray(pixels[..., :3])
    return np.repeat(pixels[..., :1], 3, axis=2)


def _band_header(path: Path, max_pixels: int) -> _Bands | None:
    """Of a file with bands; None of a photograph."""
    with named_errors(str(path)):
        check_file(path)
        with path.open("rb") as file:
            start = file.read(8)
        bands = None
        if start.startswith(_NUMPY):
            bands = _numpy_header(path)
        elif start[:4] in _TIFF:
            bands = _tiff_header(path)
        if bands:
            check_pixels(bands.width, bands.height, max_pixels * 3 // max(bands.channels, 3))
        return bands


def _numpy_header(path: Path) -> _Bands:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.ndim not in (2, 3):
        raise refuse(f"is an array {values.shape}; an image is (height, width, channels).")
    height, width, channels = values.shape if values.ndim == 3 else (*values.shape, 1)
    return _Bands(width, height, channels, 8 * values.dtype.itemsize, is_array=True)


def _tiff_header(path: Path) -> _Bands | None:
    """Of a TIFF with bands; None of one that is a photograph."""
    with path.open("rb") as file:
        start = file.read(8)
        start += file.read(8) if start[2:4] in (b"+\0", b"\0+") else b""
        tags = ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        entries: dict[int, Any] = {key: tags.get(key) for key in (_WIDTH, _HEIGHT, _PHOTOMETRIC, _SAMPLES, _MAX_VALUE)}
        extra, turn = tags.get(_EXTRA) or (), tags.get(ExifTags.Base.Orientation, 1)
    samples, kind = entries[_SAMPLES] or 1, entries[_PHOTOMETRIC]
    plain = 3 if kind == _RGB else 1
    if kind not in (_GRAY, _RGB) or samples == 1 or (kind == _RGB and samples == 3):
        return None
    if samples == plain + 1 and extra[:1] in ((_ASSOCIATED,), (_UNASSOCIATED,) if plain == 1 else ()):
        return None
    stated = entries[_MAX_VALUE]
    stated = max(stated) if isinstance(stated, tuple) else stated
    bits = stated.bit_length() if isinstance(stated, int) else 16
    bits = bits if 8 <= bits <= 16 else 16
    return _Bands(int(entries[_WIDTH]), int(entries[_HEIGHT]), samples, bits, turn, begins_with_rgb=kind == _RGB)


def _tiff_bands(path: Path) -> np.ndarray:
    """The bands of a TIFF (h, w, c), as they are stored."""
    try:
        import tifffile
    except ImportError as error:
        raise refuse("a TIFF of several bands needs tifffile: pip install 'emalab[tiff]'.") from error
    with tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if not getattr(page, "is_reduced", False)]
        if len(pages) > 1:
            raise refuse(f"has {len(pages)} pages of several bands; save each as an image of its own.")
        try:
            values, axes = file.pages[0].asarray(), file.pages[0].axes
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise refuse(f"needs imagecodecs ({error}): pip install 'emalab[tiff]'.") from error
            raise
    return np.moveaxis(values, axes.index("S"), -1)


def _as_bytes(values: np.ndarray, stated: int, bits: int | None) -> np.ndarray:
    """Values of 8 or 16 bits as uint8; the depth is that which the file states, unless ``bits`` is given."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind != "u" or values.dtype.itemsize != 2:
        raise refuse(f"its values are {values.dtype}, which has no agreed range; save it as uint8 or uint16.")
    check_range("I;16", "", stated, bits, int(values.max()))
    return np.right_shift(values, (bits or stated) - 8).astype(np.uint8)


def _luma(pixels: np.ndarray) -> np.ndarray:
    """RGB (h, w, 3) → (h, w, 1); gray stays as it is."""
    return np.array(Image.fromarray(pixels).convert("L"))[..., None]


def _why_others(found: int, how: Reading) -> str:
    wanted, reason = how.channels or 3, f", {how.reason}" if how.reason else ""
    have = f"has {found} channel{'s' * (found != 1)}"
    if wanted in (1, 3):
        return f"{have}, and {channels_in_words(wanted)} images are wanted{reason}."
    return f"{have}, and {wanted} are wanted{reason}."


def _why_no_bands(source: Path | str | Image.Image, how: Reading) -> str:
    """Of a photograph where bands are wanted; of a TIFF whose bands are perhaps its pages, how to write them."""
    wanted, reason = how.channels, f", {how.reason}" if how.reason else ""
    with opened(source, how.max_pixels, several=True) as image:
        pages = count_pictures(image) if image.format == "TIFF" else 0
    if pages:
        return (
            f"is a TIFF of {pages} pages, and one page of {wanted} channels is wanted{reason}; write an array "
            '(h, w, c) by tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig").'
        )
    return (
        f"is a photograph, and {wanted} channels are wanted{reason}: a .npy file of an array (h, w, {wanted}), or a "
        f"TIFF of {wanted} bands."
    )
