"""The one style of the book's pictures: a color per method and per kind of basis, sizes of text, formats.

Every color has a contrast of at least 3:1 with the white page and with the dark one, and colors of one table remain
distinct for readers who see no red, no green or no blue; ``tests/book/test_style.py`` computes both.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure

__all__ = ["BASES", "GRADIENTS", "METHODS", "MUTED", "SYMBOLS", "use"]

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
PIXELS_PER_INCH = 220  # of pictures; figures of lines are SVG
MOST_MARKS = 4000  # in an SVG; a figure with more of them is a picture


def use() -> None:
    """Give the figures of a notebook, or of a program, the style of the book."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=list(METHODS.values())),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "font.size": 10,
            "image.cmap": "magma",
            "legend.frameon": False,
            "savefig.dpi": PIXELS_PER_INCH,
            "svg.fonttype": "none",  # text stays text, in the font of the page
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
