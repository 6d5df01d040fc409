"""Draws the book's logo, favicon and social card into ``book/site/_static``: ``python book/site/identity.py``.

The logo is a mixture on the circle: features around three bases. The card, 1200 × 630 pixels, is what other sites show
beside a link.
"""

from __future__ import annotations

import sys
from math import cos, radians, sin
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab.style import METHODS, MUTED

FOLDER = Path(__file__).parent / "_static"
COLORS = METHODS["EM"], METHODS["non-local"], METHODS["DeepLabV3"]
BASES = (75, 200, 325)  # degrees
FEATURES = (-26, 0, 26)  # degrees from their base


def points() -> list[tuple[float, float, str]]:
    """Features on the circle of length one, in the color of their base."""
    return [
        (cos(radians(base + turn)), sin(radians(base + turn)), color)
        for base, color in zip(BASES, COLORS, strict=True)
        for turn in FEATURES
    ]


def logo() -> str:
    """As SVG, 64 × 64; its colors stand out from light and from dark pages."""
    parts = [
        f'<circle cx="32" cy="32" r="25" fill="none" stroke="{MUTED}" stroke-width="2"/>'
    ]
    for degrees, color in zip(BASES, COLORS, strict=True):
        x, y = 32 + 17 * cos(radians(degrees)), 32 - 17 * sin(radians(degrees))
        parts.append(
            f'<path d="M32 32L{x:.1f} {y:.1f}" stroke="{color}" stroke-width="6" stroke-linecap="round"/>'
        )
    parts += [
        f'<circle cx="{32 + 25 * x:.1f}" cy="{32 - 25 * y:.1f}" r="4.5" fill="{color}"/>'
        for x, y, color in points()
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="64" height="64">'
        f"<title>EM Attention</title>{''.join(parts)}</svg>\n"
    )


def draw(axes: Axes, scale: float) -> None:
    """The logo in a plot; ``scale`` is its radius in points."""
    axes.add_patch(Circle((0, 0), 1, fill=False, color=MUTED, linewidth=0.07 * scale))
    for degrees, color in zip(BASES, COLORS, strict=True):
        end = 0.68 * np.array([cos(radians(degrees)), sin(radians(degrees))])
        axes.plot(
            [0, end[0]],
            [0, end[1]],
            color=color,
            linewidth=0.24 * scale,
            solid_capstyle="round",
        )
    for x, y, color in points():
        axes.add_patch(Circle((x, y), 0.18, color=color))
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    axes.axis("off")


def card() -> Figure:
    """What other sites show beside a link to the book."""
    figure = plt.figure(figsize=(12, 6.3), facecolor="white")
    draw(figure.add_axes((0.04, 0.14, 0.36, 0.72)), scale=100)
    figure.text(
        0.44,
        0.66,
        "EM Attention",
        fontsize=58,
        fontweight="bold",
        color="#1c2430",
        va="center",
    )
    lines = "From K-means to EMANet:\nderived, built in PyTorch,\ntrained and measured."
    figure.text(
        0.44, 0.36, lines, fontsize=29, color=MUTED, va="center", linespacing=1.4
    )
    return figure


def main() -> None:
    (FOLDER / "logo.svg").write_text(logo(), encoding="utf-8")
    icon, axes = plt.subplots(figsize=(0.64, 0.64))
    axes.set_position((0, 0, 1, 1))
    draw(axes, scale=18)
    icon.savefig(FOLDER / "favicon.png", dpi=100, transparent=True)
    card().savefig(FOLDER / "social.png", dpi=100)
    plt.close("all")


if __name__ == "__main__":
    main()
