"""Cityscapes from files in the layout of its packages."""

from pathlib import Path

import numpy as np
import pytest
from tiny_data import SIZE, save_image, save_mask

from emalab.data import DataError, load_dataset
from emalab.data.cityscapes import CITYSCAPES, CITYSCAPES_256


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


def test_the_small_copy(tmp_path: Path):
    folder = tmp_path / "cityscapes-256"
    for name, label in (("00002", 255), ("00001", 18)):
        save_image(folder / f"images/val/{name}.jpg")
        save_mask(folder / f"masks/val/{name}.png", np.full(SIZE, label, np.uint8))
    first, second = load_dataset("cityscapes-256", "val", tmp_path)
    assert (first.name, second.name) == ("00001", "00002")
    assert (first.mask.unique().tolist(), second.mask.unique().tolist()) == ([18], [255])
    with pytest.raises(DataError, match=r"images/train.* has no images; it should have NAME\.jpg"):
        load_dataset("cityscapes-256", "train", tmp_path)


def test_the_small_copy_s_score_leaves_out_rare_classes():
    counted = {CITYSCAPES_256.classes[index] for index in CITYSCAPES_256.report_indices}
    assert set(CITYSCAPES_256.classes) - counted == {"traffic light", "rider", "train", "motorcycle"}
