from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import coco_stuff_ids, make_coco_2017, make_coco_stuff_10k, random_labels, save_mask, save_mat

from emalab.data import DataError, get_spec, load_dataset
from emalab.data.check import check_dataset
from emalab.data.coco_stuff import COCO_STUFF_10K, COCO_STUFF_164K, COCO_VOC, convert_coco_stuff_10k, convert_coco_voc
from emalab.data.errors import MissingFileError, SizeMismatchError, UnknownLabelError, UnreadableFileError
from emalab.data.voc import VOC


def class_of(coco_id: int) -> int:
    """The class index of an id, by counting the used ids below it; 255 for unlabeled."""
    return sum(i < coco_id for i in coco_stuff_ids()) if coco_id in coco_stuff_ids() else 255


# The benchmarks


def test_classes():
    assert COCO_STUFF_10K.num_classes == COCO_STUFF_164K.num_classes == 171
    classes = COCO_STUFF_10K.classes
    assert classes == COCO_STUFF_164K.classes
    # Ids and names as in the release's labels.txt, around every gap and at the borders.
    known = {
        **{1: "person", 11: "fire hydrant", 13: "stop sign", 25: "giraffe", 27: "backpack", 28: "umbrella"},
        **{31: "handbag", 44: "bottle", 46: "wine glass", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv"},
        **{82: "refrigerator", 84: "book", 90: "toothbrush", 92: "banner", 96: "building-other", 110: "desk-stuff"},
        **{112: "door-stuff", 124: "grass", 133: "mirror-stuff", 149: "road", 157: "sky-other", 169: "tree"},
        **{178: "water-other", 181: "window-other", 182: "wood"},
    }
    assert {coco_id: classes[class_of(coco_id)] for coco_id in known} == known
    assert classes.index("toothbrush") == 79  # 80 things
    assert classes[80:] == tuple(sorted(classes[80:]))  # and 91 stuff, which the release sorted by name
    assert not {"street sign", "hat", "shoe", "eye glasses", "plate", "blender", "hair brush"} & {*classes}
    assert not {"mirror", "window", "desk", "door"} & {*classes}


def test_split_sizes():
    sizes = {
        name: (get_spec(name).splits, get_spec(name).split_sizes) for name in ("coco-stuff-10k", "coco-stuff-164k")
    }
    assert sizes == {
        "coco-stuff-10k": (("train", "test"), (9000, 1000)),
        "coco-stuff-164k": (("train", "val"), (118287, 5000)),
    }
    assert COCO_VOC.published_size("train") is None
    assert (COCO_VOC.classes, COCO_VOC.palette) == (VOC.classes, VOC.palette)


# 10k


def test_10k(tmp_path):
    convert_coco_stuff_10k(make_coco_stuff_10k(tmp_path))
    train, test = (load_dataset("coco-stuff-10k", split, tmp_path) for split in ("train", "test"))
    assert [sample.name for sample in train] == ["COCO_train2014_000000000077", "COCO_train2014_000000000110"]
    for seed, sample in enumerate([*train, *test]):
        ids = random_labels([0, *coco_stuff_ids()], seed=seed)
        assert np.array_equal(sample.mask, np.vectorize(class_of)(ids))


def test_10k_files_are_like_those_of_164k(tmp_path):
    convert_coco_stuff_10k(make_coco_stuff_10k(tmp_path))
    with Image.open(tmp_path / "cocostuff-10k-v1.1/labels/COCO_train2014_000000000077.png") as image:
        ids = random_labels([0, *coco_stuff_ids()], seed=0)
        assert np.array_equal(np.asarray(image), np.where(ids == 0, 255, ids - 1))


def test_10k_check(tmp_path):
    report = check_dataset("coco-stuff-10k", make_coco_stuff_10k(tmp_path))
    assert len(report.problems) == 2
    assert "2 of the 2 label maps of train are still .mat files" in str(report)
    assert "`emalab data prepare coco-stuff-10k`" in str(report)
    convert_coco_stuff_10k(tmp_path)
    (tmp_path / "cocostuff-10k-v1.1/labels/COCO_train2014_000000000110.png").unlink()  # as when it was interrupted
    with pytest.raises(MissingFileError, match="1 of the 2 label maps of train are still"):
        load_dataset("coco-stuff-10k", "train", tmp_path)
    convert_coco_stuff_10k(tmp_path)
    report = check_dataset("coco-stuff-10k", tmp_path)
    assert report.ok
    assert "note: test lists 1 images, the published split has 1000" in str(report)


def test_10k_of_release_1_0_is_refused(tmp_path):
    folder = make_coco_stuff_10k(tmp_path) / "cocostuff-10k-v1.1/annotations"
    names = np.array(["unlabeled", *(f"class {i}" for i in range(171))], dtype=object)[:, None]
    save_mat(folder / "COCO_train2014_000000000077.mat", S=np.ones((24, 32)), names=names)
    with pytest.raises(DataError, match=r"000000000077\.mat: names 172 classes, expected the 182 .* v1\.1"):
        convert_coco_stuff_10k(tmp_path)


@pytest.mark.parametrize("value", [12, 91, 183, 255])
def test_10k_ids_that_are_never_used(tmp_path, value):
    folder = make_coco_stuff_10k(tmp_path) / "cocostuff-10k-v1.1/annotations"
    save_mat(folder / "COCO_train2014_000000000077.mat", S=np.full((24, 32), value, np.uint8))
    with pytest.raises(UnknownLabelError, match=rf"000000000077\.mat: label values outside the label set: {value}\."):
        convert_coco_stuff_10k(tmp_path)


def test_10k_bad_mat_files(tmp_path):
    folder = make_coco_stuff_10k(tmp_path) / "cocostuff-10k-v1.1/annotations"
    save_mat(folder / "COCO_train2014_000000000077.mat", T=1)
    with pytest.raises(UnreadableFileError, match=r"000000000077\.mat: holds no 'S'"):
        convert_coco_stuff_10k(tmp_path)
    save_mat(folder / "COCO_train2014_000000000077.mat", S=np.ones((23, 32)))
    with pytest.raises(SizeMismatchError, match="COCO_train2014_000000000077: the release's labels are 32×23"):
        convert_coco_stuff_10k(tmp_path)


def test_10k_missing_list(tmp_path):
    (make_coco_stuff_10k(tmp_path) / "cocostuff-10k-v1.1/imageLists/test.txt").unlink()
    with pytest.raises(MissingFileError, match=r"imageLists/test\.txt"):
        convert_coco_stuff_10k(tmp_path)


# 164k


def test_164k(tmp_path):
    make_coco_2017(tmp_path)
    train, val = (load_dataset("coco-stuff-164k", split, tmp_path) for split in ("train", "val"))
    assert [sample.name for sample in train] == ["000000000000", "000000000001", "000000000002"]
    assert train[0].mask.unique().tolist() == [*range(171), 255]
    ids = random_labels([*coco_stuff_ids(), 256], seed=0)
    assert np.array_equal(train[0].mask, np.vectorize(class_of)(ids))
    assert val[1].mask.unique().tolist() == [COCO_STUFF_164K.classes.index(name) for name in ("truck", "grass")]


@pytest.mark.parametrize("coco_id", [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91, 183])
def test_164k_ids_that_are_never_used(tmp_path, coco_id):
    save_mask(make_coco_2017(tmp_path) / "coco/stuffthingmaps/val2017/000000000000.png", np.full((24, 32), coco_id - 1))
    with pytest.raises(UnknownLabelError, match=rf"outside the label set: {coco_id - 1} \("):
        load_dataset("coco-stuff-164k", "val", tmp_path)[0]


def test_164k_check(tmp_path):
    (make_coco_2017(tmp_path) / "coco/train2017/000000000001.jpg").unlink()
    report = check_dataset("coco-stuff-164k", tmp_path)
    assert [problem.file.name for problem in report.problems] == ["000000000001.jpg"]
    assert "note: val lists 2 images, the published split has 5000" in str(report)


def test_164k_without_labels(tmp_path):
    (tmp_path / "coco/train2017").mkdir(parents=True)
    with pytest.raises(MissingFileError, match=r"stuffthingmaps/train2017 has no label maps.*prepare coco-stuff-164k"):
        load_dataset("coco-stuff-164k", "train", tmp_path)


# COCO with VOC's classes


def test_coco_voc(tmp_path):
    convert_coco_voc(make_coco_2017(tmp_path))
    train, val = (load_dataset("coco-voc", split, tmp_path) for split in ("train", "val"))
    assert [sample.name for sample in train] == ["000000000000", "000000000001"]  # the third has only grass
    assert [sample.name for sample in val] == ["000000000000"]
    assert train[0].mask.unique().tolist() == [*range(21), 255]
    ids = random_labels([*coco_stuff_ids(), 256], seed=0)
    # COCO's ids of VOC's classes, in VOC's order.
    voc_ids = [5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]
    expected = np.zeros(ids.shape, np.uint8)
    for k, coco_id in enumerate(voc_ids, start=1):
        expected[ids == coco_id] = k
    expected[ids == 256] = 255
    assert np.array_equal(train[0].mask, expected)
    assert check_dataset("coco-voc", tmp_path).ok


def test_coco_voc_needs_its_list_and_the_labels(tmp_path):
    with pytest.raises(MissingFileError, match=r"coco/voc/train\.txt.*`emalab data prepare coco-voc`"):
        load_dataset("coco-voc", "train", make_coco_2017(tmp_path))
    with pytest.raises(MissingFileError, match="has no label maps"):
        convert_coco_voc(tmp_path / "elsewhere")


def test_coco_voc_reports_labels_that_cannot_be_read(tmp_path):
    path = make_coco_2017(tmp_path) / "coco/stuffthingmaps/val2017/000000000001.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnreadableFileError, match=r"000000000001\.png"):
        convert_coco_voc(tmp_path)
    assert not (tmp_path / "coco/voc/val.txt").exists()
    (tmp_path / "coco/stuffthingmaps/train2017/000000000000.png").write_bytes(b"not read again")
    make_coco_2017(tmp_path / "whole")
    path.write_bytes((tmp_path / "whole" / path.relative_to(tmp_path)).read_bytes())
    convert_coco_voc(tmp_path)
    assert (tmp_path / "coco/voc/val.txt").read_text() == "000000000000\n"


# Real images and labels of the release


@pytest.fixture
def coco_sample(real_data_root, tmp_path) -> Path:
    """The sample as it lies in the release: all 21 in both splits, which differ in nothing but their list."""
    release = real_data_root("cocostuff-sample") / "cocostuff-sample"
    (tmp_path / "coco/stuffthingmaps").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / f"coco/{split}2017").symlink_to(release / "images")
        (tmp_path / f"coco/stuffthingmaps/{split}2017").symlink_to(release / "labels")
    return tmp_path


@pytest.mark.real_data
def test_real_stuffthingmaps(coco_sample):
    report = check_dataset("coco-stuff-164k", coco_sample)
    assert report.ok, str(report)
    assert report.counts == {"train": 21, "val": 21}
    # A woman on skis in the snow: image 785 of val2017.
    samples = {sample.name: sample for sample in load_dataset("coco-stuff-164k", "val", coco_sample)}
    shown = [COCO_STUFF_164K.classes[k] for k in samples["000000000785"].mask.unique().tolist() if k != 255]
    assert {"person", "skis", "snow"} <= set(shown)


@pytest.mark.real_data
def test_real_coco_voc(coco_sample):
    convert_coco_voc(coco_sample)
    stuff = {sample.name: sample.mask for sample in load_dataset("coco-stuff-164k", "val", coco_sample)}
    kept = load_dataset("coco-voc", "val", coco_sample)
    assert 0 < len(kept) <= 21
    person, voc_person = COCO_STUFF_164K.classes.index("person"), VOC.classes.index("person")
    for sample in kept:
        assert ((sample.mask > 0) & (sample.mask < 255)).any()
        assert torch.equal(sample.mask == voc_person, stuff[sample.name] == person)
        assert torch.equal(sample.mask == 255, stuff[sample.name] == 255)
