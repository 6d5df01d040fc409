"""Figures say how large their text is, and the pages keep it readable."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import readable_figures
from lab import style


@pytest.mark.parametrize(("kind", "pixels"), [("svg", 0), ("png", 8), ("jpeg", 700)])
def test_a_figure_notes_its_width_and_smallest_text(tmp_path: Path, kind: str, pixels: int) -> None:
    with plt.rc_context():
        style.use()
        figure, axes = plt.subplots(figsize=(6, 4))
        axes.set_title("8 points", fontsize=8)
        axes.tick_params(labelsize=12)
        if pixels:
            axes.imshow(np.random.default_rng(0).random((pixels, pixels, 3)))
        drawn = {"svg": style._svg, "png": style._png, "jpeg": style._jpeg}[kind](figure)
        plt.close(figure)
    assert drawn is not None
    path = tmp_path / f"figure.{kind}"
    path.write_bytes(drawn.encode() if isinstance(drawn, str) else drawn)
    size = readable_figures.size_of(path)
    assert size.points == 8
    assert 3 < size.inches < 6.1  # cut to what is drawn
    assert size.pixels == round(readable_figures.LEAST * 72 / 8 * size.inches)


def test_other_pictures_are_left_alone(tmp_path: Path) -> None:
    plt.imsave(tmp_path / "photograph.png", np.zeros((4, 4)))
    assert readable_figures.size_of(tmp_path / "photograph.png") is None


def test_pictures_on_a_page_carry_their_sizes() -> None:
    page = '<img alt="one" src="../_images/one.svg" /> <img src="_images/two.png" />'
    sized = readable_figures.with_sizes(page, {"one.svg": readable_figures.Size(7.2, 9.0)})
    assert sized == (
        '<img class="sized wide" data-inches="7.20" data-smallest="9" style="--readable: 547px" alt="one"'
        ' src="../_images/one.svg" /> <img src="_images/two.png" />'
    )
