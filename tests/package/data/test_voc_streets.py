"""VOC's images with animals joined with street scenes that got VOC's labels."""

from pathlib import Path

import numpy as np
import pytest
from tiny_data import SIZE, save_image, save_mask

from emalab.data import DataError, load_dataset
from emalab.data.camvid import CAMVID
from emalab.data.cityscapes import CITYSCAPES_256
from emalab.data.voc_streets import VOC_STREETS, vocs_labels


def filled(label: int) -> np.ndarray:
    return np.full(SIZE, label, np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of VOC (a horse each), one of CamVid's train and val each, five of Cityscapes."""
    voc = tmp_path / "VOCdevkit/VOC2012"
    lists = {voc / "ImageSets/Segmentation/trainaug.txt": ["a", "b", "c"]}
    lists |= {voc / "ImageSets/Segmentation/val.txt": ["c"]}
    lists |= {tmp_path / f"camvid/lists/{split}.txt": [split] for split in ("train", "val")}
    for path, names in lists.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names), encoding="ascii")
    for name in "abc":
        save_image(voc / f"JPEGImages/{name}.jpg")
        save_mask(voc / f"SegmentationClassAug/{name}.png", filled(13))
    for name, label in (("train", 9), ("val", 11)):
        save_image(tmp_path / f"camvid/images/{name}.jpg")
        save_mask(tmp_path / f"camvid/labels/{name}.png", filled(label))
    for name in "12345":
        save_image(tmp_path / f"cityscapes-256/images/train/{name}.jpg")
        save_mask(tmp_path / f"cityscapes-256/masks/train/{name}.png", filled(13))
    return tmp_path


def test_all_three_with_vocs_labels(root: Path):
    data = load_dataset("voc-animals-streets", "trainaug", root)
    found = [(sample.name, sample.mask.unique().item()) for sample in data]
    person, car = VOC_STREETS.classes.index("person"), VOC_STREETS.classes.index("car")
    streets = [("train", person), ("val", 255), ("1", car), ("5", car)]
    assert found == [("a", 13), ("b", 13), ("c", 13), *streets]
    assert [data.mask(index).unique().item() for index in range(len(data))] == [label for _, label in found]
    assert data.sample_names() == [name for name, _ in found]
    assert data[-1].name == "5"
    with pytest.raises(IndexError):
        data[7]


def test_a_tenth_of_vocs_images_can_be_held_out(root: Path):
    """What is scored on ``animals/held-out`` is not in ``trainaug/kept``."""
    held_out = load_dataset("voc-animals-streets", "animals/held-out", root).sample_names()
    kept = load_dataset("voc-animals-streets", "trainaug/kept", root).sample_names()
    assert (held_out, kept) == (["a"], ["b", "c", "train", "val", "1", "5"])
    assert load_dataset("voc-animals", "trainaug/held-out", root).sample_names() == held_out


def test_what_voc_labels_otherwise_is_ignored():
    by_name = {
        name: VOC_STREETS.classes[label] if label != 255 else "ignored"
        for spec in (CAMVID, CITYSCAPES_256)
        for name, label in zip(spec.classes, vocs_labels(spec).values(), strict=True)
    }
    assert {name for name, meant in by_name.items() if meant == "ignored"} == {"Bicyclist", "rider", "truck"}
    named = {"Pedestrian": "person", "Car": "car", "person": "person", "car": "car", "bus": "bus", "train": "train"}
    named |= {"motorcycle": "motorbike", "bicycle": "bicycle"}
    assert {name: by_name[name] for name in named} == named
    assert set(by_name.values()) - set(named.values()) == {"background", "ignored"}


def test_a_folder_with_the_fourth_scenes_alone_will_do(root: Path):
    before = load_dataset("voc-animals-streets", "trainaug", root).sample_names()
    for name in "234":
        (root / f"cityscapes-256/images/train/{name}.jpg").unlink()
    assert load_dataset("voc-animals-streets", "trainaug", root).sample_names() == before


def test_val_is_vocs(root: Path):
    assert load_dataset("voc-animals-streets", "val", root).sample_names() == ["c"]


def test_a_release_is_missing(root: Path):
    (root / "camvid/lists/train.txt").unlink()
    with pytest.raises(DataError, match="camvid"):
        load_dataset("voc-animals-streets", "trainaug", root)
