"""Folders as people have them: without splits, with subfolders, other endings, other Unicode, too many files."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tiny_data import random_labels, save_image, save_mask

from emalab.cli import main
from emalab.data import DataError, load_dataset
from emalab.data.check import check_dataset, check_labels
from emalab.data.folder import folder_notes, load_folder
from emalab.data.folder_files import find_layout, write_splits
from emalab.data.names import RESULTS


def make(root: Path, *names: str, ending: str = "", suffix: str = ".png", split: str = "") -> Path:
    """Images of two classes, and their masks."""
    root.mkdir(exist_ok=True)
    (root / "classes.yaml").write_text("classes: [ground, roof]\n")
    for seed, name in enumerate(names):
        save_image(root / "images" / split / name, seed=seed)
        mask = (root / "masks" / split / name).with_suffix("")
        save_mask(mask.with_name(f"{mask.name}{ending}{suffix}"), random_labels([0, 1], seed=seed))
    return root


def names(root: Path, split: str = "train") -> list[str]:
    return [sample.name for sample in load_dataset(f"{root}/", split)]


def test_without_splits_a_fifth_is_kept_for_val(tmp_path: Path):
    files = [f"{i}.png" for i in range(10)]
    root = make(tmp_path / "roofs", *files)
    train, val = names(root), names(root, "val")
    assert (len(train), len(val)) == (8, 2)
    assert sorted(train + val) == [str(i) for i in range(10)]
    other = make(tmp_path / "elsewhere", *reversed(files))
    assert (names(other), names(other, "val")) == (train, val)
    assert any("no splits: train 8, val 2 images" in note for note in folder_notes(root))


def test_splits_that_are_written_stay(tmp_path: Path):
    root = make(tmp_path / "roofs", *[f"{i}.png" for i in range(10)])
    train, val = names(root), names(root, "val")
    write_splits(root, find_layout(root))
    make(root, "10.png", "11.png")
    assert (names(root), names(root, "val")) == (train, val)


def test_predictions_beside_the_photographs_are_no_photographs(tmp_path: Path):
    """`emalab predict roofs/images --out roofs/images` made the folder useless."""
    root = make(tmp_path / "roofs", "a.png", "b.png")
    before = (names(root), names(root, "val"))
    for ending in RESULTS:
        (root / "images" / f"a{ending}").write_bytes((root / "images" / "a.png").read_bytes())
    assert (names(root), names(root, "val")) == before
    note = f"{len(RESULTS)} files of train are not read, for their endings: images/a.attention.png"
    assert any(note in found for found in folder_notes(root))
    (root / "images" / "train").mkdir()
    for path in root.glob("images/*.png"):
        path.rename(root / "images" / "train" / path.name if path.name in ("a.png", "b.png") else path)
    assert find_layout(root).splits == ("train",)


def test_masks_with_loss_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = make(tmp_path / "roofs", "a.png", "b.png", suffix=".jpg")
    with pytest.raises(DataError, match=r"nothing is labeled\. Masks must be PNG, .*; found a\.jpg, b\.jpg\."):
        load_folder(root, "train")
    (root / "classes.yaml").unlink()
    with pytest.raises(SystemExit):
        main(["data", "check", f"{root}/"])
    assert "nothing can be proposed. Masks must be PNG, TIFF or BMP" in capsys.readouterr().err


def test_lists_override_folders(tmp_path: Path):
    root = make(tmp_path / "roofs", "a.png", "b c.JPG", split="north")
    make(root, "a.png", split="south")
    (root / "splits").mkdir()
    (root / "splits/train.txt").write_text("south/a\nnorth/b c.JPG\n")
    assert names(root) == ["north/b c", "south/a"]
    (root / "splits/train.txt").write_text("south/b\nsouth/a\n")
    with pytest.raises(DataError, match=r"train\.txt lists south/b, not in .*images; correct the list"):
        load_folder(root, "train")
    (root / "splits/train.txt").write_text("south/a\nsouth/a.png\n")
    with pytest.raises(DataError, match=r"train\.txt: lists south/a 2 times"):
        load_folder(root, "train")


def test_subfolders_belong_to_the_name(tmp_path: Path):
    root = make(tmp_path / "roofs", "a.png", "north/a.png", "north/far/b.png", split="train")
    assert names(root) == ["a", "north/a", "north/far/b"]


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path):
    root = make(tmp_path / "roofs", "a.png", split="train")
    for kind in ("images", "masks"):
        (root / kind / "train/again").symlink_to(root / kind / "train")
    assert names(root) == ["a"]


@pytest.mark.parametrize("ending", ["_mask", "-label", "_gt"])
def test_masks_with_an_ending_behind_the_name(tmp_path: Path, ending: str):
    root = make(tmp_path / "roofs", "a.png", "b.png", ending=ending, split="train")
    assert names(root) == ["a", "b"]
    assert f"masks of train are named like their images with {ending} behind" in folder_notes(root)


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".PNG", ".bmp"])
def test_endings_of_masks(tmp_path: Path, suffix: str):
    assert names(make(tmp_path / "roofs", "a.JPG", "b.jfif", suffix=suffix, split="train")) == ["a", "b"]


def test_names_in_either_form_of_unicode(tmp_path: Path):
    root = make(tmp_path / "roofs", unicodedata.normalize("NFD", "Dächer.png"), split="train")
    for mask in (root / "masks/train").iterdir():
        mask.rename(mask.with_name(unicodedata.normalize("NFC", mask.name)))
    assert names(root) == [unicodedata.normalize("NFC", "Dächer")]


def test_files_that_are_not_used_are_named(tmp_path: Path):
    root = make(tmp_path / "roofs", "a.png", "b.png", split="train")
    for name in ("images/train/c.heic", "images/train/Thumbs.db", "masks/train/notes.txt"):
        (root / name).write_bytes(b"?")
    save_mask(root / "masks/train/old.png", np.zeros((3, 3)))
    report = str(check_dataset(f"{root}/", None))
    expected = "images/train/Thumbs.db, images/train/c.heic, masks/train/notes.txt"
    assert f"note: 3 files of train are not read, for their endings: {expected}\n" in report
    assert "note: 1 files of train are masks without an image: masks/train/old.png\n" in report
    assert "note: masks are taken to store 0 to 1, as there are no values and no colors\n" in report


# Labels that cannot be meant


def with_masks_of(root: Path, *values: int, split: str = "train") -> str:
    for i in range(2):
        save_image(root / f"images/{split}/{i}.png")
        save_mask(root / f"masks/{split}/{i}.png", random_labels(list(values), seed=i))
    (root / "classes.yaml").write_text("classes: [background, object]\n")
    return f"{root}/"


def test_0_and_255_for_two_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """255 is ignored unless somebody says otherwise, so that the object has no pixel."""
    name = with_masks_of(tmp_path, 0, 255)
    report = check_dataset(name, None)
    (problem,) = report.problems
    assert problem.message.startswith(f"{tmp_path}/classes.yaml: object has no pixel, while ")
    assert problem.message.endswith("if masks store 255 for object, write values: [0, 255]")
    with pytest.raises(DataError, match=r"write values: \[0, 255\]"):
        check_labels(name, ["train"])
    with pytest.raises(SystemExit):
        main(["train", "shapes-tiny", "--data.name", name, "--data.eval-split", "train", "--model.num-classes", "2"])
    assert "write values: [0, 255]" in capsys.readouterr().err
    (tmp_path / "classes.yaml").write_text("classes: [background, object]\nvalues: [0, 255]\n")
    assert check_dataset(name, None).ok
    assert check_labels(name, ["train"]) == []


def test_a_class_among_many_without_a_pixel_is_a_warning(tmp_path: Path):
    name = with_masks_of(tmp_path, 0, 1, 255)
    (tmp_path / "classes.yaml").write_text("classes: [a, b, c]\n")
    report = check_dataset(name, None)
    assert report.ok
    (warning,) = report.warnings
    assert "c has no pixel" in warning
    assert "write values: [0, 1, 255]" in warning
    assert str(report).endswith("every file can be read, but mind the warning above")
    assert check_labels(name, ["train"]) == [warning]


def test_a_split_of_ignored_pixels(tmp_path: Path):
    name = with_masks_of(tmp_path, 0, 1)
    with_masks_of(tmp_path, 255, split="val")
    (problem,) = check_dataset(name, None).problems
    assert "every pixel of val is ignored, so it can neither train nor be scored" in problem.message
    with pytest.raises(DataError, match="every pixel of val is ignored"):
        check_labels(name, ["train", "val"])


def test_pixels_are_counted(tmp_path: Path):
    root = make(tmp_path / "roofs", "a.png", split="train")
    labels = np.zeros((24, 32))
    labels[:6], labels[6:12, :1] = 1, 255
    save_mask(root / "masks/train/a.png", labels)
    report = check_dataset(f"{root}/", None)
    assert report.pixels["train"].tolist() == [24 * 32 - 192 - 6, 192, 6]
    assert ["roof", "25.00"] in [line.split() for line in str(report).splitlines()]
