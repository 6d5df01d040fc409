"""The style of the pictures: colors that everybody can tell apart, in the light and in the dark."""

from __future__ import annotations

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from lab import style
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

PAGES = {"light": "#ffffff", "dark": "#121212"}  # backgrounds of the theme
TABLES = {"methods": style.METHODS, "bases": style.BASES, "gradients": style.GRADIENTS}
TABLES["series"] = {f"number {place}": color for place, color in enumerate(style.SERIES)}

# Machado, Oliveira, Fernandes, "A physiologically-based model for simulation of color vision deficiency",
# IEEE TVCG 15(6), 2009: severity 1.0, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(color: str) -> NDArray[np.float64]:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def seen(color: str, vision: str) -> NDArray[np.float64]:
    """CIELAB coordinates of a color as somebody sees it."""
    rgb = np.clip(np.array(VISION[vision]) @ linear(color), 0, 1)
    return rgb2lab(np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("page", PAGES)
def test_colors_stand_out_from_the_page(page: str) -> None:
    """WCAG 2.1 asks for a contrast of 3 to 1 where a graphic is needed to understand the content."""
    for table in (*TABLES.values(), style.SYMBOLS, {"muted": style.MUTED}):
        for name, color in table.items():
            low, high = sorted((luminance(color), luminance(PAGES[page])))
            assert (high + 0.05) / (low + 0.05) >= 3, f"{name}, {color}"


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("table", TABLES)
def test_colors_of_a_table_remain_distinct(table: str, vision: str) -> None:
    """CIEDE2000 of 12 for every pair: some six times what one just notices in patches side by side."""
    for (one, first), (other, second) in combinations(TABLES[table].items(), 2):
        distance = float(deltaE_ciede2000(seen(first, vision), seen(second, vision)))
        assert distance >= 12, f"{one} and {other}: {distance:.1f}"


def test_lines_are_drawn_as_svg_and_images_as_pixels() -> None:
    with plt.rc_context():
        style.use()
        lines, axes = plt.subplots()
        axes.plot([0, 1])
        pictures, axes = plt.subplots()
        axes.imshow(np.zeros((2, 2)))
        cloud, axes = plt.subplots()
        axes.scatter(*np.zeros((2, style.MOST_MARKS + 1)))
        drawn = [style.draws_pixels(figure) for figure in (lines, pictures, cloud)]
        plt.close("all")
    assert drawn == [False, True, True]


def test_the_smallest_text_is_what_can_be_seen() -> None:
    """Texts that are hidden, empty, or labels of axes that are switched off do not count."""
    figure, (shown, off) = plt.subplots(1, 2)
    shown.set_title("title", fontsize=12)
    shown.tick_params(labelsize=8)
    shown.text(0.5, 0.5, "hidden", fontsize=3, visible=False)
    shown.text(0.5, 0.5, " ", fontsize=3)
    off.tick_params(labelsize=2)
    off.axis("off")
    assert style.smallest_text(figure) == 8
    shown.axis("off")
    assert style.smallest_text(figure) == 12
    shown.set_title("")
    assert style.smallest_text(figure) is None
    plt.close(figure)
