"""Image files: opened in listed formats and up to a size, and decoded as 8-bit RGB, the right way up.

What a file claims is not believed: a name may hold another format, a small file a large image. So PIL chooses among
`FORMATS` alone (its other readers start programs or are rarely used), devices and pipes are not read, and the number
of pixels is limited before any is decoded.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from emalab.data.errors import DataError, MissingFileError, UnreadableFileError
from emalab.data.tensors import as_image

if TYPE_CHECKING:
    from torchvision import tv_tensors

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "DecodedImage",
    "Orientation",
    "Reading",
    "decode_rgb",
    "open_image",
    "opened",
]

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened, by PIL's names; AVIF where PIL was built with it."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".avif"),
    ".npy",  # numpy's arrays (h, w, c), see `emalab.data.bands`
)
"""Endings of the files that count as images in a folder, in lower case."""

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is opened: decoding takes 7 bytes of memory for each, here 0.7 GB."""

_STRIP = 1 << 20  # pixels converted at a time, so that a conversion needs no second copy of a large image
_DARK = 4096  # 16-bit pixels below this value alone look like 12-bit ones in a file that does not say so
_PIL_LIMIT = threading.Lock()  # PIL's own limit is a global variable

# EXIF orientation -> how viewers show the image, and the stored pixels as a view of the upright ones.
_TURNS: dict[int, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    2: ("mirrored", lambda a: a[:, ::-1]),
    3: ("turned by 180°", lambda a: a[::-1, ::-1]),
    4: ("mirrored upside down", lambda a: a[::-1]),
    5: ("mirrored and turned by 270°", lambda a: a.swapaxes(0, 1)),
    6: ("turned by 90°", lambda a: np.rot90(a)),
    7: ("mirrored and turned by 90°", lambda a: a[::-1, ::-1].swapaxes(0, 1)),
    8: ("turned by 270°", lambda a: np.rot90(a, -1)),
}
_INVERSE = {6: 8, 8: 6}  # the other turns undo themselves


Orientation = Literal["upright", "stored"]


@dataclass(frozen=True)
class Reading:
    """How files become pixels.

    Args:
        orientation: whether images and masks are turned as their EXIF orientation says ("upright") or taken as stored.
            None turns them, and refuses an image whose turn may or may not apply to its mask.
        bits: depth of gray images of more than 8 bits; None for that in the file.
        max_pixels: height × width of the largest image that is opened.
        channels: of every image: 3 for RGB, 1 for gray, or as many as `emalab.data.bands` reads. With None, images
            are RGB, and a fourth channel of a TIFF is dropped.
        reason: where this number comes from, for messages; such as "as classes.yaml says".

    Raises:
        ValueError: bits out of range.
    """

    orientation: Orientation | None = "upright"
    bits: int | None = None
    max_pixels: int = MAX_PIXELS
    channels: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}; it must be in 8–16")


class DecodedImage(NamedTuple):
    """Pixels uint8 (h, w, c), and the EXIF orientation that the file asks for, 1 for none."""

    pixels: np.ndarray
    turn: int


def open_image(
    source: Path | str | Image.Image, *, max_pixels: int = MAX_PIXELS, bits: int | None = None
) -> tv_tensors.Image:
    """Any photograph as RGB, the right way up.

    Gray, palette, CMYK and 16-bit images are converted. Transparent ones are laid on white, as viewers show them; the
    fourth channel of a TIFF is dropped, as it is often near infrared (unless the file calls it associated alpha). The
    EXIF orientation is applied.

    Args:
        source: a file, or an image that PIL has opened.
        max_pixels: height × width of the largest image that is opened.
        bits: depth of gray images of more than 8 bits, where the file does not state it, such as 12 for the values
            0–4095; by default the file's.

    Returns:
        uint8 (3, h, w). In memory it is (h, w, 3), as decoded: torchvision resizes that several times faster.

    Raises:
        DataError: the file is missing, is not an image of `FORMATS`, is truncated or too large, has several frames or
            pages, or has pixels without an agreed range (floating point, 32 bits, 16 bits of which only the lower 12
            are used).
    """
    return to_tensor(decode_rgb(source, max_pixels=max_pixels, bits=bits).pixels)


def to_tensor(pixels: np.ndarray) -> tv_tensors.Image:
    """uint8 (h, w, c) as an image (c, h, w) that shares its memory."""
    import torch  # here alone: an unreadable file must not wait for it

    return as_image(torch.from_numpy(pixels).permute(2, 0, 1))


def decode_rgb(
    source: Path | str | Image.Image, *, max_pixels: int = MAX_PIXELS, bits: int | None = None, upright: bool = True
) -> DecodedImage:
    """The pixels of `open_image`, upright or as stored, with the turn that the file asks for; same errors."""
    with opened(source, max_pixels) as image:
        depth, rawmode = stored_depth(image)
        opacity = image.format != "TIFF" or _tiff_tag(image, _EXTRA_SAMPLES) == 1
        turn, loaded = load(image)
        width, height = image.size
        view, pixels = _blank(height, width, turn if upright and not loaded else _undone(turn, upright, loaded))
        rows = max(_STRIP // max(width, 1), 1)
        brightest = 0
        for top in range(0, height, rows):
            strip = image.crop((0, top, width, min(top + rows, height)))
            brightest = max(brightest, _peak(strip, depth))
            view[top : top + rows] = _strip_to_rgb(strip, bits or depth, opacity)
        check_range(image.mode, rawmode, depth, bits, brightest)
    return DecodedImage(pixels, turn)


def load(image: Image.Image) -> tuple[int, bool]:
    """Decode; the EXIF orientation, and whether PIL has applied it already, as it does for TIFF."""
    turn = _tiff_tag(image, ExifTags.Base.Orientation) or 1 if image.format == "TIFF" else 1
    image.load()
    left = image.getexif().get(ExifTags.Base.Orientation, 1)
    turn = turn if turn in _TURNS else 1
    return (left, False) if left in _TURNS else (turn, turn != 1)


def turned(stored: np.ndarray, turn: int) -> np.ndarray:
    """Stored pixels (h, w, …) upright, as EXIF orientation ``turn`` asks."""
    if turn not in _TURNS:
        return stored
    return np.ascontiguousarray(_TURNS[_INVERSE.get(turn, turn)][1](stored))


def turn_in_words(turn: int) -> str:
    """Such as "turned by 90°" (clockwise)."""
    return _TURNS[turn][0]


def _undone(turn: int, upright: bool, loaded: bool) -> int:
    """The turn that takes a loaded image back to its stored pixels; 1 where nothing is to be done."""
    return _INVERSE.get(turn, turn) if loaded and not upright else 1


def _blank(height: int, width: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """An array for an image that will be turned, and the view (height, width, 3) of it that has stored pixels."""
    size = (width, height) if turn >= 5 else (height, width)
    pixels = np.empty((*size, 3), np.uint8)
    return (_TURNS[turn][1](pixels) if turn in _TURNS else pixels), pixels


@contextmanager
def opened(
    source: Path | str | Image.Image, max_pixels: int = MAX_PIXELS, *, several: bool = False
) -> Iterator[Image.Image]:
    """PIL's image of a file; whatever goes wrong, also in the body, leaves as a DataError that names the file.

    Args:
        source: a file, or an image that PIL has opened, at whichever frame it is.
        max_pixels: height × width of the largest image that is opened.
        several: take a file of several frames or pages, at its first.
    """
    is_image = isinstance(source, Image.Image)
    with (
        named_errors(f"{getattr(source, 'filename', '') or 'image'}" if is_image else str(source)),
        _keep(source) if isinstance(source, Image.Image) else _open_file(Path(source)) as image,
    ):
        check_pixels(*image.size, max_pixels)
        if not (is_image or several):
            _refuse_several(image)
        yield image


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Whatever goes wrong in the body leaves as a DataError that names the file ``name``."""
    try:
        yield
    except _Refusal as error:
        raise UnreadableFileError(f"{name}: {error}") from None
    except DataError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: no such file.") from error
    except UnidentifiedImageError as error:
        raise UnreadableFileError(
            f"{name}: not an image in a format that is read ({', '.join(FORMATS)}); is its ending true?"
        ) from error
    except MemoryError as error:
        raise UnreadableFileError(f"{name}: there is not enough memory to decode it; reduce it.") from error
    except OSError as error:
        if error.errno is None:  # of PIL's decoders, not of the file system
            raise _damaged(name, error) from error
        raise UnreadableFileError(f"{name}: cannot be opened ({error.strerror}).") from error
    except Exception as error:  # PIL's decoders raise nearly anything on damaged bytes
        raise _damaged(name, error) from error


class _Refusal(Exception):  # noqa: N818 - becomes an UnreadableFileError where the file's name is known
    """An image that can be decoded and is not used, with the reason."""


def refuse(reason: str) -> Exception:
    """What to raise inside `opened` about an image that is of a kind that is not used."""
    return _Refusal(reason)


def _damaged(name: str, error: Exception) -> UnreadableFileError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableFileError(f"{name}: cannot be read ({reason}); it may be cut short.")


@contextmanager
def _keep(image: Image.Image) -> Iterator[Image.Image]:
    yield image


def _open_file(path: Path) -> Image.Image:
    check_file(path)
    Image.init()
    with _PIL_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # `check_pixels` has ours
        try:
            return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_file(path: Path) -> None:
    """Inside `named_errors`: refuse what is no regular file, or an empty one."""
    status = path.stat()
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise _Refusal("is a folder; name the images in it.")
    if not stat.S_ISREG(mode):
        raise _Refusal("is a device, a pipe or a socket, not a file.")
    if not status.st_size:
        raise _Refusal("is empty, it has 0 bytes.")


def _refuse_several(image: Image.Image) -> None:
    if count := count_pictures(image):
        what = "pages" if image.format == "TIFF" else "frames"
        raise _Refusal(
            f"has {count} {what}; save each as an image of its own (emalab predict labels them one by one; in Python, "
            "pass the one that PIL's image.seek selects)."
        )


def count_pictures(image: Image.Image) -> int:
    """How many frames or pages of equal rank a file has; 0 for a single picture.

    A TIFF's reduced copies and transparency masks are no pages of their own, nor are the images of a JPEG or an AVIF.
    """
    if image.format not in ("GIF", "PNG", "TIFF", "WEBP") or not getattr(image, "is_animated", False):
        return 0
    count = len(pages(image)) if isinstance(image, TiffImageFile) else image.n_frames  # type: ignore[attr-defined]
    return count if count > 1 else 0


def pages(image: TiffImageFile) -> list[int]:
    """The pages of a TIFF that are neither a reduced copy of another nor its transparency mask; the first always is."""
    found = []
    for page in range(image.n_frames):
        image.seek(page)
        if page == 0 or not _tiff_tag(image, _SUBFILE_TYPE) & 0b101:
            found.append(page)
    image.seek(0)
    return found


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Inside `named_errors`: refuse an image that is larger, or has no pixels."""
    if width * height > max_pixels:
        raise _Refusal(
            f"has {width}×{height} = {width * height / 1e6:.0f} megapixels; at most {max_pixels / 1e6:g} are opened. "
            "Reduce or cut it, or raise the limit (max_pixels in Python, max_megapixels in a folder's classes.yaml)."
        )
    if not width * height:
        raise _Refusal("has no pixels.")


_SUBFILE_TYPE, _BITS_PER_SAMPLE, _EXTRA_SAMPLES, _MAX_SAMPLE_VALUE = 254, 258, 338, 281  # TIFF's tags


def _tiff_tag(image: Image.Image, tag: int) -> int:
    """The first value of a TIFF's tag; 0 where there is none."""
    value = getattr(image, "tag_v2", {}).get(tag, 0)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else 0


def stored_depth(image: Image.Image) -> tuple[int, str]:
    """Bits of a stored pixel's channel, and PIL's rawmode such as "L;2"; known only before the image is loaded."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    rawmode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    rawmode = rawmode if isinstance(rawmode, str) else ""
    base, _, suffix = rawmode.partition(";")
    digits = "".join(c for c in suffix if c.isdigit())
    depth = 1 if base == "1" else int(digits) if digits and image.format in ("PNG", "TIFF") else 8
    if image.mode == "I" or image.mode.startswith("I;16"):
        depth = 16
        if image.format == "TIFF":
            stated = _tiff_tag(image, _MAX_SAMPLE_VALUE).bit_length() or _tiff_tag(image, _BITS_PER_SAMPLE)
            depth = stated if 8 <= stated <= 32 else 16
    return depth, rawmode


def _peak(strip: Image.Image, depth: int) -> int:
    """The largest value of a strip, where the depth of its file makes that worth knowing."""
    return int(np.max(np.asarray(strip))) if depth > 8 or strip.mode == "I" else 0


def check_range(mode: str, rawmode: str, depth: int, bits: int | None, brightest: int) -> None:
    """Refuse an image of 16 bits that would come out nearly black, or overflow, for want of its true depth."""
    way_out = "save it with 8 bits, scaled to 0–255"
    if mode == "I" or mode.startswith("I;16"):
        way_out += ", or give bits (--bits of predict, an argument in Python, a key of classes.yaml)"
        if brightest >= 1 << (bits or depth):
            raise _Refusal(f"has the value {brightest}, which {bits or depth} bits do not hold; {way_out}.")
        if bits is None and depth == 16 and 0 < brightest < _DARK:
            raise _Refusal(f"is of 16 bits, but its largest value is {brightest} of 65535, nearly black; {way_out}.")
    elif depth == 16 and 0 < brightest < _DARK >> 8:
        raise _Refusal(f"is of 16 bits ({rawmode}), but none of the upper 4 is used: it is nearly black; {way_out}.")


def _strip_to_rgb(image: Image.Image, depth: int, opacity: bool) -> np.ndarray:
    """A part of an image as uint8 (h, w, 3)."""
    if image.mode == "F":
        raise _Refusal("floating-point pixels have no agreed range; save it with 8 or 16 bits.")
    if image.mode == "I" or image.mode.startswith("I;16"):  # which convert("RGB") would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or depth > 16:
            raise _Refusal("pixels of 32 bits, or below 0, have no agreed range; save it with 8 or 16 bits.")
        gray = (values >> (depth - 8)).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if opacity and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
