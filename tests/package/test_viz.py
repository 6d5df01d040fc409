"""Pictures of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emalab.data import DatasetSpec, get_spec
from emalab.data.voc import voc_palette
from emalab.viz import colorize, overlay, save_labels, save_picture

VOC = get_spec("voc")
CAT = VOC.classes.index("cat")
MANY = DatasetSpec(
    "many", "Many", tuple(f"class {i}" for i in range(300)), voc_palette(300), ("val",), "made up", ignore_index=65535
)


def every_label() -> np.ndarray:
    return np.concatenate([np.arange(21), [255] * 3]).astype(np.uint8).reshape(4, 6)


def test_colors_are_the_benchmarks() -> None:
    colors = colorize(every_label(), VOC)
    assert colors.shape == (4, 6, 3)
    assert [tuple(color) for color in colors.reshape(-1, 3)[:21]] == list(VOC.palette)
    assert (colors[3, 3:] == 255).all()


def test_palette_png_holds_the_labels_and_shows_the_colors(tmp_path: Path) -> None:
    labels, path = every_label(), tmp_path / "new" / "labels.png"
    save_labels(labels, VOC, path)
    with Image.open(path) as stored:
        assert stored.mode == "P"
        assert np.array_equal(np.asarray(stored), labels)
        assert np.array_equal(np.asarray(stored.convert("RGB")), colorize(labels, VOC))
    assert [file.name for file in path.parent.iterdir()] == ["labels.png"]


def test_more_classes_than_a_palette_has(tmp_path: Path) -> None:
    labels = np.array([[0, 254, 255], [256, 299, 65535]], np.int32)
    save_labels(labels, MANY, tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as stored:
        assert stored.mode == "I;16"
        assert np.array_equal(np.asarray(stored), labels)
    colors = colorize(labels, MANY).reshape(-1, 3)
    assert [tuple(color) for color in colors] == [*(MANY.palette[i] for i in (0, 254, 255, 256, 299)), (255, 255, 255)]


def test_picture_round_trip(tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 4), "teal")
    save_picture(picture, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as stored:
        assert np.array_equal(np.asarray(stored), np.asarray(picture))


class TestOverlay:
    gray = Image.new("RGB", (300, 100), (100, 100, 100))

    def labels(self, left: int, right: int) -> np.ndarray:
        labels = np.full((100, 300), right, np.uint8)
        labels[:, :200] = left
        return labels

    def test_tints_all_but_the_background(self) -> None:
        picture = np.asarray(overlay(self.gray, self.labels(CAT, 0), VOC, strength=0.5))
        assert (picture[:100, 201:] == 100).all()
        assert (picture[:100, 200] == 255).all()  # a line where labels change
        expected = (100 + np.array(VOC.palette[CAT])) / 2
        assert np.abs(picture[:100, :200] - expected).max() <= 1

    def test_legend_names_the_classes_that_are_there(self) -> None:
        """Below the photograph, with a box of each color, the largest class first."""
        picture = np.asarray(overlay(self.gray, self.labels(CAT, 0), VOC))
        legend = picture[100:]
        assert len(legend) > 0
        where = [np.flatnonzero((legend == color).all(2).any(0)) for color in (VOC.palette[CAT], VOC.palette[15])]
        assert len(where[0]) > 5
        assert len(where[1]) == 0
        swapped = np.asarray(overlay(self.gray, self.labels(15, CAT), VOC))[100:]
        left, right = (np.flatnonzero((swapped == VOC.palette[c]).all(2).any(0)) for c in (15, CAT))
        assert left.max() < right.min()

    def test_legend_wraps_below_a_narrow_photograph(self) -> None:
        labels = np.resize(np.arange(21, dtype=np.uint8), (100, 120))
        picture = overlay(Image.new("RGB", (120, 100)), labels, VOC)
        assert picture.height > overlay(self.gray, self.labels(CAT, 0), VOC).height
        shown = {tuple(color) for color in np.asarray(picture)[100:].reshape(-1, 3)}
        assert set(VOC.palette) <= shown

    def test_legend_of_many_classes_has_an_end(self) -> None:
        photo, labels = Image.new("RGB", (300, 300)), np.arange(300, dtype=np.uint16)[:, None].repeat(300, axis=1)
        picture, first = overlay(photo, labels, MANY), overlay(photo, labels, MANY, named=range(48))
        assert abs(picture.height - first.height) <= 24  # a row for "and 252 more"
        whole = overlay(photo, labels, MANY, named=range(300))
        assert whole.height > 2 * picture.height

    def test_nothing_labeled_gives_no_legend_entry(self) -> None:
        picture = overlay(self.gray, self.labels(255, 255), VOC)
        assert picture.width == 300

    def test_one_pixel(self) -> None:
        overlay(Image.new("RGB", (1, 1)), np.array([[CAT]], np.uint8), VOC)

    def test_labels_of_another_size(self) -> None:
        with pytest.raises(ValueError, match=r"the photograph has 100×300 pixels, its labels are \(300, 100\)"):
            overlay(self.gray, self.labels(0, 0).T, VOC)
