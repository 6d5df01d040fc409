"""Cityscapes from files in the layout of its packages."""

from pathlib import Path

import numpy as np
import pytest
from tiny_data import SIZE, save_image, save_mask

from emalab.data import DataError, load_dataset
from emalab.data.cityscapes import CITYSCAPES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of two cities; the second one's label file holds every stored value."""
    every = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 34
    for city, labels in (("ulm", every), ("bonn", np.full(SIZE, 26))):
        for package, kind in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            path = tmp_path / f"cityscapes/{package}/val/{city}/{city}_000000_000019_{kind}.png"
            save_image(path) if kind == "leftImg8bit" else save_mask(path, labels.astype(np.uint8))
    return tmp_path


def test_stored_values_become_the_19_classes(root: Path):
    bonn, ulm = load_dataset("cityscapes", "val", root)
    assert (bonn.name, ulm.name) == ("bonn_000000_000019_leftImg8bit", "ulm_000000_000019_leftImg8bit")
    assert CITYSCAPES.classes[bonn.mask.unique().item()] == "car"
    assert ulm.mask.unique().tolist() == [*range(19), 255]
    by_value = dict(zip((np.arange(ulm.mask.numel()) % 34).tolist(), ulm.mask.flatten().tolist(), strict=True))
    named = {7: "road", 17: "pole", 24: "person", 25: "rider", 31: "train", 33: "bicycle"}
    assert {value: CITYSCAPES.classes[by_value[value]] for value in named} == named
    ignored = {*range(7), 9, 10, 14, 15, 16, 18, 29, 30}
    assert {value for value, label in by_value.items() if label == 255} == ignored


def test_a_value_beyond_the_release_is_refused(root: Path):
    path = next((root / "cityscapes/gtFine").rglob("ulm*.png"))
    save_mask(path, np.full(SIZE, 34, np.uint8))
    with pytest.raises(DataError, match=r"ulm_000000_000019_gtFine_labelIds\.png.*34"):
        list(load_dataset("cityscapes", "val", root))


def test_nothing_unpacked(root: Path):
    with pytest.raises(DataError, match=r"train has no images .*Unpack leftImg8bit_trainvaltest\.zip"):
        load_dataset("cityscapes", "train", root)
