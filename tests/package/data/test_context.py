import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_data import CONTEXT_LISTS, context_label_map, make_context_json, make_context_mat, run_length, save_mat

from emalab.data import DataError, load_dataset
from emalab.data.check import check_dataset
from emalab.data.context import CATEGORIES, CONTEXT_59, CONTEXT_60, convert_context, decode_mask
from emalab.data.errors import MissingFileError, SizeMismatchError, UnknownLabelError, UnreadableFileError
from emalab.data.voc import voc_palette

# pycocotools' own, and harmless: numpy 2 wants another argument of __array__.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = [name for names in CONTEXT_LISTS.values() for name in names]


def voc2010(root: Path) -> Path:
    return root / "VOCdevkit/VOC2010"


def stored(root: Path, name: str) -> np.ndarray:
    with Image.open(voc2010(root) / f"SegmentationClassContext/{name}.png") as image:
        return np.asarray(image)


def expected(name: str) -> np.ndarray:
    """0 for background, k + 1 for class k, one class at a time."""
    label_map = context_label_map(name)
    labels = np.zeros(label_map.shape, np.uint8)
    for k, category in enumerate(CATEGORIES.values()):
        labels[label_map == category] = k + 1
    return labels


# The benchmarks


def test_classes_are_in_the_order_of_their_ids_which_is_alphabetical():
    assert len(CATEGORIES) == 59
    assert list(CATEGORIES) == sorted(CATEGORIES)
    assert list(CATEGORIES.values()) == sorted(set(CATEGORIES.values()))
    # As the detail API lists the ids of the 59 for evaluation, VOC's 20 first.
    voc = (2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427)
    others = (
        *(9, 18, 22, 33, 44, 46, 68, 80, 85, 104, 115, 144, 158, 159, 162, 187, 189, 220, 232, 259, 260, 105, 296),
        *(355, 295, 324, 326, 349, 354, 360, 366, 19, 415, 420, 424, 440, 445, 454, 458),
    )
    assert set(CATEGORIES.values()) == {*voc, *others}
    names = {category: name for name, category in CATEGORIES.items()}
    assert [names[i] for i in voc[:6]] == ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus"]
    assert [names[i] for i in voc[10:13]] == ["table", "dog", "horse"]
    assert [names[i] for i in (9, 19, 80, 349, 354, 415, 458)] == [
        *("bag", "bedclothes", "cloth", "shelves", "sidewalk", "track", "wood")
    ]


def test_the_two_benchmarks():
    assert CONTEXT_59.num_classes == 59
    assert CONTEXT_60.classes == ("background", *CONTEXT_59.classes)
    assert CONTEXT_60.palette == voc_palette(60) == ((0, 0, 0), *CONTEXT_59.palette)
    assert [CONTEXT_60.published_size(split) for split in ("train", "val")] == [4998, 5105]


# Conversion


@pytest.mark.parametrize("make", [make_context_mat, make_context_json])
def test_conversion(tmp_path, make):
    convert_context(make(tmp_path))
    for name in NAMES:
        assert np.array_equal(stored(tmp_path, name), expected(name))
        assert 0 in stored(tmp_path, name)
    for split, names in CONTEXT_LISTS.items():
        assert (voc2010(tmp_path) / f"ImageSets/SegmentationContext/{split}.txt").read_text().split() == names


def test_mat_and_json_give_the_same_files(tmp_path):
    made = []
    for source, make in (("mat", make_context_mat), ("json", make_context_json)):
        convert_context(make(tmp_path / source), source)
        folder = voc2010(tmp_path / source)
        files = [*folder.glob("SegmentationClassContext/*"), *folder.glob("ImageSets/SegmentationContext/*")]
        made.append({file.relative_to(folder): file.read_bytes() for file in files})
    assert len(made[0]) == 5
    assert made[0] == made[1]


def test_where_both_forms_are_there_the_release_is_taken_unless_told(tmp_path):
    make_context_mat(tmp_path)
    make_context_json(tmp_path)
    merged = voc2010(tmp_path) / "trainval_merged.json"
    merged.write_text("broken")
    convert_context(tmp_path)
    with pytest.raises(UnreadableFileError, match=r"trainval_merged\.json: not readable as JSON"):
        convert_context(tmp_path, "json")


def test_loading(tmp_path):
    convert_context(make_context_mat(tmp_path))
    for split, names in CONTEXT_LISTS.items():
        for with_ignored, with_background in zip(
            load_dataset("context-59", split, tmp_path), load_dataset("context-60", split, tmp_path), strict=True
        ):
            labels = torch.from_numpy(expected(with_ignored.name))
            assert torch.equal(with_background.mask, labels)
            assert torch.equal(with_ignored.mask, torch.where(labels == 0, 255, labels - 1))
        assert [sample.name for sample in load_dataset("context-59", split, tmp_path)] == names


@pytest.mark.parametrize("name", ["context-59", "context-60"])
def test_check_notes_that_it_is_a_subset(tmp_path, name):
    convert_context(make_context_mat(tmp_path))
    report = check_dataset(name, tmp_path)
    assert report.ok
    assert report.counts == {"train": 2, "val": 1}
    assert "note: train lists 2 images, the published split has 4998" in str(report)


@pytest.mark.parametrize("name", ["context-59", "context-60"])
def test_check_says_that_labels_must_be_converted(tmp_path, name):
    report = check_dataset(name, make_context_mat(tmp_path))
    assert len(report.problems) == 2
    assert f"must be converted first: `emalab data prepare {name}`" in str(report)


def test_later_segments_lie_on_top_and_other_categories_are_background(tmp_path):
    merged = voc2010(make_context_json(tmp_path)) / "trainval_merged.json"
    content = json.loads(merged.read_text())
    segments = []
    for category, columns in ((113, slice(0, 20)), (284, slice(10, 32)), (431, slice(30, 32))):  # dog, person, unknown
        mask = np.zeros((24, 32), np.uint8)
        mask[:, columns] = 1
        segments.append({"image_id": 2008000002, "category_id": category, "segmentation": run_length(mask)})
    merged.write_text(json.dumps(content | {"annos_segmentation": segments}))
    convert_context(tmp_path)
    dog, person = (CONTEXT_60.classes.index(name) for name in ("dog", "person"))
    assert stored(tmp_path, "2008_000002")[5].tolist() == [dog] * 10 + [person] * 20 + [0] * 2
    assert not stored(tmp_path, "2008_000007").any()


# labels.txt


def test_both_spellings_of_the_categories_are_known(tmp_path):
    path = voc2010(make_context_mat(tmp_path)) / "labels.txt"
    text = path.read_text().replace(": table\n", ": diningtable\n").replace(": bedclothes\n", ": bedcloth\n")
    path.write_text(text.replace(": cloth\n", ": clothes\n").replace("pottedplant", "potted plant"))
    convert_context(tmp_path)
    assert np.array_equal(stored(tmp_path, NAMES[0]), expected(NAMES[0]))


def test_the_release_can_do_without_labels_txt(tmp_path):
    (voc2010(make_context_mat(tmp_path)) / "labels.txt").unlink()
    convert_context(tmp_path)
    assert np.array_equal(stored(tmp_path, NAMES[0]), expected(NAMES[0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: aeroplane\n2: bag\n", "category 2 is bag, expected aeroplane"),
        ("2: aeroplane\n", "category 9 is nothing, expected bag"),
        ("aeroplane\nbag\n", "not a list of categories"),
    ],
)
def test_another_numbering_is_refused(tmp_path, text, message):
    (voc2010(make_context_mat(tmp_path)) / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=rf"labels\.txt: {message}"):
        convert_context(tmp_path)
    assert not (voc2010(tmp_path) / "SegmentationClassContext").exists()


# Bad releases


def test_nothing_to_convert(tmp_path):
    with pytest.raises(MissingFileError, match=r"neither trainval/\*\.mat .* nor trainval_merged\.json"):
        convert_context(tmp_path)


def test_a_missing_list_of_voc2010(tmp_path):
    (voc2010(make_context_mat(tmp_path)) / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(MissingFileError, match=r"VOC2010/ImageSets/Main/val\.txt"):
        convert_context(tmp_path)


def test_bad_mat_files(tmp_path):
    folder = voc2010(make_context_mat(tmp_path)) / "trainval"
    save_mat(folder / "2008_000002.mat", wrong=np.eye(2))
    save_mat(folder / "2008_000007.mat", LabelMap=np.full((24, 32), 460, np.uint16))
    (folder / "2009_000001.mat").unlink()
    with pytest.raises(DataError, match="3 of 3 label maps could not be converted") as caught:
        convert_context(tmp_path)
    assert "2008_000002.mat: holds no 'LabelMap'" in str(caught.value)
    assert "2008_000007.mat: label values outside the label set: 460" in str(caught.value)
    assert "2009_000001.mat: no such file" in str(caught.value)
    assert not list((voc2010(tmp_path) / "ImageSets").glob("SegmentationContext/*"))  # so it does not count as done

    make_context_mat(tmp_path)
    save_mat(folder / "2009_000001.mat", LabelMap=context_label_map("2009_000001", (23, 32)))
    with pytest.raises(SizeMismatchError, match=r"2009_000001: the release's labels are 32×23"):
        convert_context(tmp_path)
    make_context_mat(tmp_path)
    convert_context(tmp_path)
    assert check_dataset("context-59", tmp_path).ok


def change_first_segment(content: dict, **changes) -> None:
    content["annos_segmentation"][0] |= changes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.pop("annos_segmentation"), UnreadableFileError, "it lacks 'annos_segmentation'"),
        (lambda c: c["images"][0].pop("phase"), UnreadableFileError, "it lacks 'phase'"),
        (lambda c: [i.update(phase="train") for i in c["images"]], MissingFileError, "no image of the split 'val'"),
        (lambda c: change_first_segment(c, category_id=460), UnknownLabelError, "2008_000002: label values .* 460"),
        (
            lambda c: change_first_segment(c, segmentation=run_length(np.ones((9, 9)))),
            SizeMismatchError,
            r"2008_000002: a mask is \(9, 9\), the image \(24, 32\)",
        ),
        (
            lambda c: change_first_segment(c, segmentation={"size": [24, 32]}),
            UnreadableFileError,
            "2008_000002: a mask cannot be decoded",
        ),
        (
            lambda c: change_first_segment(c, segmentation=run_length(np.eye(99)) | {"size": [24, 32]}),
            UnreadableFileError,
            "2008_000002: a mask cannot be decoded .its run-length code adds up to 9801 pixels, not to 24 × 32",
        ),
        *(
            (
                lambda c, code=code: change_first_segment(c, segmentation={"size": [24, 32], "counts": code}),
                UnreadableFileError,
                "2008_000002: a mask cannot be decoded",
            )
            for code in ("", "0", "zzz\u00e9", "zzz", "ooooooooo0", "P0", "\x00")
        ),
        (
            lambda c: change_first_segment(c, category_id="x"),
            UnreadableFileError,
            "2008_000002: a mask cannot be decoded .invalid literal",
        ),
    ],
)
def test_bad_json(tmp_path, change, error, message):
    merged = voc2010(make_context_json(tmp_path)) / "trainval_merged.json"
    content = json.loads(merged.read_text())
    change(content)
    merged.write_text(json.dumps(content))
    with pytest.raises(error, match=rf"trainval_merged\.json.*{message}"):
        convert_context(tmp_path)
    assert not list((voc2010(tmp_path) / "ImageSets").glob("SegmentationContext/*"))


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"images": [', '"text"'])
def test_what_is_no_json_of_the_detail_api(tmp_path, text):
    (voc2010(make_context_json(tmp_path)) / "trainval_merged.json").write_text(text)
    with pytest.raises(UnreadableFileError, match=r"trainval_merged\.json: not"):
        convert_context(tmp_path)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_masks_are_decoded_as_pycocotools_does(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(decode_mask(run_length(mask)), mask)
