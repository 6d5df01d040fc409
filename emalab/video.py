"""Files of several pictures: animated images and pages of TIFF by Pillow, videos by PyAV where it is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence
from PIL.TiffImagePlugin import TiffImageFile

from emalab.data.errors import DataError, UnreadableFileError
from emalab.data.images import count_pictures, decode_rgb, pages
from emalab.files import write_atomically

__all__ = ["Frames", "open_animation", "open_video", "write_animation", "write_pages", "write_video"]

_ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")  # a JPEG of several images is a photograph and its preview
_SECONDS = 0.1  # that a frame is shown where its file does not say how long


@dataclass(frozen=True)
class Frames:
    """A moving picture. ``images`` are RGB and can be gone through once."""

    images: Iterable[Image.Image]
    count: int | None
    """How many there are, where the file says so."""
    rate: Fraction
    """Frames per second; of no meaning for pages."""
    are_pages: bool = False
    """Whether they are pages of a TIFF, which may differ in size."""


def open_animation(path: Path) -> Frames | None:
    """The frames of an animated GIF, PNG or WebP, or the pages of a TIFF; None for a photograph or an unreadable file.

    Frames are laid on white where they are transparent; pages are converted as `emalab.data.open_image` does it.
    """
    try:
        image = Image.open(path, formats=_ANIMATED)
        count = count_pictures(image)
        if count and not isinstance(image, TiffImageFile):
            image.load()  # WebP says how long it shows a frame once it has read that
    except Exception:  # Pillow raises nearly anything on damaged bytes
        return None  # whoever reads it as a photograph says what is wrong
    if not count:
        image.close()
        return None
    if isinstance(image, TiffImageFile):
        return Frames(_pages(image), count, Fraction(1), are_pages=True)
    seconds = image.info.get("duration", 0) / 1000 or _SECONDS
    return Frames(_decoded(image, path), count, Fraction(1 / seconds).limit_denominator(1000))


def _decoded(image: Image.Image, path: Path) -> Iterator[Image.Image]:
    try:
        with image:
            for frame in ImageSequence.Iterator(image):
                yield _on_white(frame)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise UnreadableFileError(f"{path}: a frame cannot be read ({error}); it may be cut short.") from error


def _pages(image: TiffImageFile) -> Iterator[Image.Image]:
    with image:
        for page in pages(image):
            image.seek(page)
            yield Image.fromarray(decode_rgb(image).pixels)


def _on_white(frame: Image.Image) -> Image.Image:
    if not frame.has_transparency_data:
        return frame.convert("RGB")
    layer = frame.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def open_video(path: Path) -> Frames:
    """The frames of a video, as many at a time as are asked for.

    Raises:
        DataError: PyAV is not installed, or cannot read the file.
    """
    av = _av(path)
    try:
        container = av.open(str(path))
        stream = container.streams.video[0]
    except (av.FFmpegError, IndexError) as error:
        raise UnreadableFileError(f"{path}: cannot be read as a video ({error or 'it has no pictures'}).") from error
    rate = Fraction(stream.average_rate or 25)
    return Frames(_pictures(av, container, path), stream.frames or None, rate)


def _pictures(av: Any, container: Any, path: Path) -> Iterator[Image.Image]:
    try:
        with container:
            for frame in container.decode(video=0):
                yield frame.to_image()
    except av.FFmpegError as error:
        raise UnreadableFileError(f"{path}: a frame cannot be read ({error}); it may be cut short.") from error


def write_animation(path: Path, images: Iterable[Image.Image], rate: Fraction) -> None:
    """Write an animated WebP, whole or not at all."""
    first, *others = images
    milliseconds = round(1000 / rate)
    write_atomically(
        path,
        lambda temporary: first.save(
            temporary, "WEBP", save_all=True, append_images=others, duration=milliseconds, loop=0, quality=85
        ),
    )


def write_pages(path: Path, images: Iterable[Image.Image]) -> None:
    """Write the pages of a TIFF, whole or not at all."""
    first, *others = images
    write_atomically(
        path,
        lambda temporary: first.save(
            temporary, "TIFF", save_all=True, append_images=others, compression="tiff_adobe_deflate"
        ),
    )


def write_video(path: Path, images: Iterable[Image.Image], rate: Fraction) -> None:
    """Write an MP4, whole or not at all, a frame at a time; a last odd row or column is left out.

    Raises:
        DataError: no frames, or PyAV is not installed.
    """
    av = _av(path)
    remaining = iter(images)
    first = next(remaining, None)
    if first is None:
        raise DataError(f"{path}: the video has no frames.")
    width, height = (max(side // 2 * 2, 2) for side in first.size)

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as container:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            stream = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for image in chain([first], remaining):
                container.mux(stream.encode(av.VideoFrame.from_image(image.crop((0, 0, width, height)))))
            container.mux(stream.encode())

    write_atomically(path, write)


def _av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError(f"{path}: videos need PyAV: pip install 'emalab[video]', or pip install av.") from error
    return av
