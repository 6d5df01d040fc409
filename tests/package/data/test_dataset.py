import shutil

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tiny_data import SIZE, make_camvid, make_camvid_tutorial, make_voc, random_labels, save_image, save_mask
from torchvision import tv_tensors

from emalab.data import DataError, load_dataset, load_images
from emalab.data.dataset import SegmentationDataset
from emalab.data.errors import MissingFileError, SizeMismatchError, UnknownLabelError, UnreadableFileError
from emalab.data.images import open_image
from emalab.data.lists import read_names
from emalab.data.masks import UNKNOWN, lookup_table
from emalab.data.voc import VOC


def toy(tmp_path, labels=None, size=SIZE) -> SegmentationDataset:
    """One pair: a.jpg and a.png."""
    labels = random_labels([0, 20, 255], size) if labels is None else labels
    return SegmentationDataset(VOC, [(save_image(tmp_path / "a.jpg"), save_mask(tmp_path / "a.png", labels))])


# Layouts


@pytest.mark.parametrize("make", [make_camvid, make_camvid_tutorial])
def test_camvid(tmp_path, make):
    make(tmp_path)
    train, val, trainval = (load_dataset("camvid", split, tmp_path) for split in ("train", "val", "trainval"))
    assert [sample.name for sample in train] == ["train_0", "train_1", "train_2"]
    assert trainval.pairs == train.pairs + val.pairs
    image, mask, _ = train[0]
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(mask, tv_tensors.Mask)
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.uint8)
    assert image.shape == (3, *SIZE)
    assert mask.unique().tolist() == [*range(11), 255]
    stored = np.asarray(Image.open(train.pairs[0].mask))
    assert np.array_equal(mask == 255, stored == 11)


def test_voc_prefers_its_own_labels_to_those_of_sbd(tmp_path):
    make_voc(tmp_path)
    data = load_dataset("voc", "trainaug", tmp_path)
    folders = {sample.name: pair.mask.parent.name for sample, pair in zip(data, data.pairs, strict=True)}
    assert folders == {"t0": "SegmentationClass", "t1": "SegmentationClass", "s0": "SegmentationClassAug"}


def test_where_vocs_test_images_come_from_is_said(tmp_path):
    make_voc(tmp_path)
    with pytest.raises(DataError, match=r"no VOCdevkit/.*/test\.txt.*unpack VOC2012test\.tar"):
        load_images("voc", "test", tmp_path)


def test_voc_palette_images_are_read_as_indices(tmp_path):
    make_voc(tmp_path)
    (sample,) = load_dataset("voc", "val", tmp_path)
    assert sample.mask.unique().tolist() == [*range(21), 255]


def test_voc_animals_is_the_same_data_with_another_score(tmp_path):
    make_voc(tmp_path)
    voc, animals = (load_dataset(name, "train", tmp_path) for name in ("voc", "voc-animals"))
    assert voc.pairs == animals.pairs
    assert animals.spec.report_name == "VOC-animals-7"


def test_train_aug_txt_with_paths_is_understood(tmp_path):
    lists = make_voc(tmp_path) / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "trainaug.txt").unlink()
    (lists / "train_aug.txt").write_text("/JPEGImages/s0.jpg /SegmentationClassAug/s0.png\n")
    assert [sample.name for sample in load_dataset("voc", "trainaug", tmp_path)] == ["s0"]


# The root and the lists


@pytest.mark.parametrize("name", ["camvid", "voc", "voc-animals"])
def test_no_root(name, tmp_path):
    with pytest.raises(DataError, match=f"{name} .*no data root.*--data-root .*EMALAB_DATA"):
        load_dataset(name, "train", None)
    with pytest.raises(DataError, match=r"nowhere is not a folder.*EMALAB_DATA"):
        load_dataset(name, "train", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no (camvid|VOCdevkit)/.*train\.txt.*EMALAB_DATA"):
        load_dataset(name, "train", tmp_path)


@pytest.mark.parametrize(("text", "message"), [("\n", "lists no images"), ("a\nb\na\n", "lists a 2 times")])
def test_bad_lists(tmp_path, text, message):
    path = make_camvid(tmp_path) / "camvid/lists/train.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"train\.txt: {message}"):
        load_dataset("camvid", "train", tmp_path)


# Bad files


def test_unknown_labels_name_file_and_values(tmp_path):
    labels = random_labels([0, 21, 200], (4, 5), seed=1)
    data = toy(tmp_path, labels)
    counts = f"21 ({(labels == 21).sum()} px), 200 ({(labels == 200).sum()} px)"
    with pytest.raises(UnknownLabelError) as caught:
        data[0]
    assert str(tmp_path / "a.png") in str(caught.value)
    assert counts in str(caught.value)
    assert "expected 0–20, 255" in str(caught.value)


def test_mask_of_another_size(tmp_path):
    data = toy(tmp_path, size=(24, 31))
    with pytest.raises(SizeMismatchError, match=r"a\.png: labels are 31×24 but the image .*a\.jpg is 32×24"):
        data[0]


@pytest.mark.parametrize("file", ["a.jpg", "a.png"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.8])
def test_truncated_file(tmp_path, file, kept):
    data = toy(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableFileError, match=file):
        data[0]


@pytest.mark.parametrize("file", ["a.jpg", "a.png"])
def test_missing_file(tmp_path, file):
    data = toy(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(MissingFileError, match=f"{file}: no such file"):
        data[0]


def test_folder_in_place_of_an_image(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(UnreadableFileError, match=r"a\.jpg"):
        open_image(tmp_path / "a.jpg")


def test_lookup_table():
    table = lookup_table({0: 0, 7: 1, 11: 255})
    assert table[[0, 7, 11, 3]].tolist() == [0, 1, 255, UNKNOWN]
    with pytest.raises(ValueError, match="65536"):
        lookup_table({65536: 0})
    with pytest.raises(ValueError, match="254"):
        lookup_table({0: 254})


# Kinds of photographs


def gradient() -> np.ndarray:
    """An 8-bit RGB image (20, 30, 3) without symmetry, smooth so that JPEG keeps it."""
    rows, columns = np.mgrid[:20, :30]
    return np.stack([rows * 8, columns * 6, rows + columns + 100], axis=-1).astype(np.uint8)


def assert_close(image: torch.Tensor, expected: np.ndarray, tolerance: int) -> None:
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    assert image.shape == (3, *expected.shape[:2])
    difference = image.permute(1, 2, 0).int().numpy() - expected.astype(int)
    assert np.abs(difference).max() <= tolerance


def test_rgb(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    assert_close(open_image(tmp_path / "a.png"), gradient(), 0)
    assert_close(open_image(Image.fromarray(gradient())), gradient(), 0)


def test_gray(tmp_path):
    gray = gradient()[..., 1]
    Image.fromarray(gray).save(tmp_path / "a.png")
    assert_close(open_image(tmp_path / "a.png"), np.stack([gray] * 3, axis=-1), 0)


def test_gray_of_16_bits(tmp_path):
    gray = gradient()[..., 1]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert_close(open_image(tmp_path / "a.png"), np.stack([gray] * 3, axis=-1), 0)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((20, 30, 1), np.uint8)
    alpha[:10] = 255
    Image.fromarray(np.concatenate([gradient(), alpha], axis=-1)).save(tmp_path / "a.png")
    expected = gradient()
    expected[10:] = 255
    assert_close(open_image(tmp_path / "a.png"), expected, 0)


def test_palette(tmp_path):
    image = Image.fromarray(gradient()).quantize(8)
    image.save(tmp_path / "a.png")
    assert_close(open_image(tmp_path / "a.png"), np.array(image.convert("RGB")), 0)


def test_cmyk(tmp_path):
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert_close(open_image(tmp_path / "a.jpg"), gradient(), 12)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    assert_close(open_image(tmp_path / "a.jpg"), upright(gradient()), 4)


def test_floating_point_is_refused(tmp_path):
    Image.new("F", (3, 3)).save(tmp_path / "a.tiff")
    with pytest.raises(UnreadableFileError, match=r"a\.tiff: floating-point"):
        open_image(tmp_path / "a.tiff")


def test_not_an_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(UnreadableFileError, match=r"a\.jpg: not an image"):
        open_image(tmp_path / "a.jpg")


def test_one_pixel():
    assert open_image(Image.new("RGB", (1, 1))).shape == (3, 1, 1)


# The archives themselves


@pytest.mark.real_data
def test_real_camvid(real_data_root):
    root = real_data_root("camvid-480x360")
    sizes = {split: len(load_dataset("camvid", split, root)) for split in ("train", "val", "test", "trainval")}
    assert sizes == {"train": 367, "val": 101, "test": 233, "trainval": 468}
    image, mask, _ = load_dataset("camvid", "val", root)[0]
    assert image.shape == (3, 360, 480)
    assert mask.shape == (360, 480)


@pytest.mark.real_data
def test_real_voc_animals(real_data_root):
    root = real_data_root("voc2012-animals-320px")
    assert len(load_dataset("voc-animals", "trainaug", root)) == 3131
    val = load_dataset("voc-animals", "val", root)
    assert len(val) == 297
    assert 255 in val[0].mask  # VOC's own labels have a border
    trainaug = load_dataset("voc-animals", "trainaug", root)
    assert not {pair.image for pair in trainaug.pairs} & {pair.image for pair in val.pairs}


@pytest.mark.real_data
def test_real_palette_is_ours(real_data_root):
    pair = load_dataset("voc-animals", "val", real_data_root("voc2012-animals-320px")).pairs[0]
    stored = np.array(Image.open(pair.mask).getpalette()).reshape(-1, 3)
    assert np.array_equal(stored[:21], VOC.palette)


@pytest.mark.real_data
def test_damage_in_real_data_is_found(real_data_root, tmp_path):
    source = load_dataset("camvid", "val", real_data_root("camvid-480x360")).pairs[0]
    image, mask = (shutil.copy(file, tmp_path) for file in source)
    content = source.image.read_bytes()
    (tmp_path / source.image.name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFileError, match=source.image.stem):
        SegmentationDataset(VOC, [(image, mask)])[0]


def test_a_list_in_another_encoding_is_named(tmp_path):
    (tmp_path / "val.txt").write_bytes(b"2007_000001\n\xff\n")
    with pytest.raises(DataError, match=r"val\.txt: not a list of names in UTF-8"):
        read_names(tmp_path, "val.txt")
