"""The one style of the book's pictures: a color per method and per kind of basis, sizes of text, formats.

Every color has a contrast of at least 3:1 with the white page and with the dark one, and colors of one table remain
distinct for readers who see no red, no green or no blue; ``tests/book/test_style.py`` computes both.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython import get_ipython
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

__all__ = ["BASES", "GRADIENTS", "METHODS", "MUTED", "SERIES", "SYMBOLS", "use"]

METHODS = {
    "EM": "#1e6da9",
    "non-local": "#d55e00",
    "FCN": "#5b636b",
    "DeepLabV3": "#12a55c",
    "PSP": "#bd7599",
}
BASES = {  # after `maintenance` of emalab.EMAU
    "moving_average": "#1e6da9",
    "learned": "#d55e00",
    "frozen": "#5b636b",
    "per_image": "#12a55c",
}
GRADIENTS = {"stop": "#1e6da9", "last": "#12a55c", "unroll": "#d55e00"}  # after `grad`
SYMBOLS = {  # of the schematics, which name each as well
    "features": "#5b636b",
    "responsibilities": "#a67c00",
    "bases": "#8a63c9",
    "result": "#1e6da9",
    "rival": "#d55e00",
    "gradient": "#a67c00",
}
MUTED = "#5b636b"  # what stands in the background
SERIES = (
    "#6a51c8",
    "#b58900",
    "#b0305a",
    "#0d8f8f",
)  # settings of one thing: no methods
PIXELS_PER_INCH = 220  # of pictures; figures of lines are SVG
LARGE = 300_000  # bytes of a PNG
MOST_MARKS = 4000  # in an SVG; a figure with more of them is a picture


def use() -> None:
    """Give the figures of a notebook, or of a program, the style of the book."""
    _choose_formats()
    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=[*SERIES, MUTED]),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "font.size": 10,
            "image.cmap": "magma",
            "legend.frameon": False,
            "savefig.dpi": PIXELS_PER_INCH,
            "svg.hashsalt": "emalab",  # the same figure gives the same file
        }
    )


def draws_pixels(figure: Figure) -> bool:
    """Whether a figure shows images, or so many marks that they are better stored as one."""
    parts = figure.findobj()
    clouds = [part for part in parts if isinstance(part, PathCollection)]
    marks = sum(len(np.asarray(cloud.get_offsets())) for cloud in clouds)
    meshes = any(isinstance(part, QuadMesh) for part in parts)
    images = any(axes.images for axes in figure.axes)
    return meshes or images or marks > MOST_MARKS


def _choose_formats() -> None:
    """In a notebook: figures of lines as SVG, pictures as PNG, or as JPEG if they are large."""
    shell = get_ipython()
    if shell is None or shell.display_formatter is None:
        return
    plt.switch_backend(plt.get_backend())  # chooses formats itself when it is loaded
    formatters = shell.display_formatter.formatters
    formatters["image/svg+xml"].for_type(Figure, _svg)
    formatters["image/png"].for_type(Figure, _png)
    formatters["image/jpeg"].for_type(Figure, _jpeg)


def _svg(figure: Figure) -> str | None:
    if draws_pixels(figure):
        return None
    buffer = io.StringIO()
    about = {"Date": None, "Description": _note(figure)}
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=about)
    return buffer.getvalue()


def _png(figure: Figure) -> bytes | None:
    picture = _pixels(figure)
    return picture if picture and len(picture) <= LARGE else None


def _jpeg(figure: Figure) -> bytes | None:
    """In place of a PNG that would weigh too much for a page, as those of photographs do."""
    picture = _pixels(figure)
    if picture is None or len(picture) <= LARGE:
        return None
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    density = (PIXELS_PER_INCH, PIXELS_PER_INCH)
    image.save(
        buffer,
        "JPEG",
        quality=88,
        subsampling=0,
        dpi=density,
        comment=_note(figure),
    )
    return buffer.getvalue()


def _pixels(figure: Figure) -> bytes | None:
    if not draws_pixels(figure):
        return None
    buffer = io.BytesIO()
    about = {"Description": _note(figure)}
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata=about)
    return buffer.getvalue()


def smallest_text(figure: Figure) -> float | None:
    """Size of the smallest text that a figure shows, in points; None if it shows none."""
    figure.canvas.draw()  # writes the labels of ticks
    return min(_sizes_of_text(figure), default=None)


def _sizes_of_text(artist: Artist) -> Iterator[float]:
    if not artist.get_visible():
        return
    if isinstance(artist, Text) and artist.get_text().strip():
        yield float(artist.get_fontsize())
    off = isinstance(artist, Axes) and not artist.axison
    for part in artist.get_children():
        if not (off and isinstance(part, Axis)):
            yield from _sizes_of_text(part)


def _note(figure: Figure) -> str:
    """What the build reads to keep the text of figures readable on a phone."""
    size = smallest_text(figure)
    return "" if size is None else f"smallest text {size:g} pt"
