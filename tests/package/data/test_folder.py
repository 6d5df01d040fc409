"""A folder of one's own: what `classes.yaml` may say, both kinds of masks, and what can be wrong."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tiny_data import SIZE, random_labels, save_bands, save_image, save_mask

from emalab import get_recipe, train
from emalab.channel_statistics import channel_statistics
from emalab.checkpoints import CheckpointError
from emalab.cli import main
from emalab.data import DataError, get_spec, load_dataset, load_images, open_image
from emalab.data.check import check_dataset
from emalab.data.dataset import data_identity
from emalab.data.errors import MissingFileError, OrientationError, SizeMismatchError, UnknownLabelError
from emalab.data.folder import FolderLabels, load_folder, read_labels
from emalab.data.images import turned
from emalab.data.memory import InMemory
from emalab.data.names import is_folder_name
from emalab.data.prepare import prepare_dataset
from emalab.data.voc import voc_palette
from emalab.evaluation import check_channels
from emalab.options import RunOptions

COLORS = ((52, 58, 72), (165, 65, 55), (20, 110, 105))
VALUES = (0, 128, 255)
YAML = "classes: [ground, roof, solar panel]\nvalues: [0, 128, 255]\nignore: 254\n"


def stored(seed: int = 0) -> np.ndarray:
    return random_labels([*VALUES, 254], seed=seed)


def meant(stored: np.ndarray) -> np.ndarray:
    return np.select([stored == value for value in VALUES], range(3), 255)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """roofs/ with two images to train on, one to validate with, and one without labels."""
    root = tmp_path / "roofs"
    for seed, (split, name) in enumerate((("train", "b.png"), ("train", "a.jpg"), ("val", "c.jpg"), ("test", "d.jpg"))):
        save_image(root / f"images/{split}/{name}", seed=seed)
        if split != "test":
            save_mask(root / f"masks/{split}/{Path(name).stem}.png", stored(seed))
    (root / "classes.yaml").write_text(YAML)
    return root


def write(root: Path, text: str) -> Path:
    (root / "classes.yaml").write_text(text)
    return root


@pytest.mark.parametrize("name", ["roofs/", "./roofs", "roofs/classes.yaml"])
def test_goes_by_its_path(root: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(root.parent)
    spec = get_spec(name)
    assert (spec.name, spec.title, spec.splits, spec.unlabeled_splits) == (name, "roofs", ("train", "val"), ("test",))
    assert spec.classes == ("ground", "roof", "solar panel")
    assert spec.palette == voc_palette(3)
    samples = list(load_dataset(name, "train"))
    assert [sample.name for sample in samples] == ["a", "b"]
    for sample, seed in zip(samples, (1, 0), strict=True):
        assert np.array_equal(sample.mask, meant(stored(seed)))
        assert sample.image.shape == (3, *SIZE)


def test_a_folder_named_without_a_slash_is_pointed_at(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root.parent)
    with pytest.raises(DataError, match=r"no data set 'roofs'; for the folder say roofs/; "):
        get_spec("roofs")
    assert not is_folder_name("shapes-far")


def test_images_without_labels_can_only_be_looked_at(root: Path):
    assert load_images(f"{root}/", "test").image(0)[1] == "d"
    with pytest.raises(DataError, match=r"labels of .*roofs/'s test are not in its masks/; `emalab submit`"):
        load_dataset(f"{root}/", "test")
    with pytest.raises(DataError, match=r"no split 'tran'; did you mean 'train'\?"):
        load_dataset(f"{root}/", "tran")
    with pytest.raises(DataError, match=r"no folder 'tran'\. There are: train, val, test"):
        load_folder(root, "tran")


def test_nothing_to_prepare(root: Path):
    with pytest.raises(DataError, match=r"folder of your own: .*`emalab data check"):
        prepare_dataset(f"{root}/", root)


def test_labels_in_python(root: Path):
    (root / "classes.yaml").unlink()
    labels = FolderLabels(("ground", "roof", "solar panel"), VALUES, ignore=(254,))
    assert np.array_equal(load_folder(root, "val", labels)[0].mask, meant(stored(2)))


# What classes.yaml says


def test_defaults(tmp_path: Path):
    labels = read_labels(write(tmp_path, "classes: [a, b]") / "classes.yaml")
    assert labels == FolderLabels(("a", "b"))
    assert (labels.stored_values, labels.ignored) == ((0, 1), (255,))
    binary = FolderLabels(("a", "b"), values=(0, 255))
    assert binary.ignored == ()  # 255 is a class here
    assert FolderLabels(("a", "b"), values=(0, 256)).ignored == (65535,)  # masks have 16 bits


def test_everything(tmp_path: Path):
    text = "classes: [a, b]\nvalues: [3, 1]\ncolors: [[1, 2, 3], [4, 5, 6]]\nignore: [0, [0, 0, 0]]\n"
    labels = read_labels(write(tmp_path, text) / "classes.yaml")
    assert labels == FolderLabels(("a", "b"), (3, 1), ((1, 2, 3), (4, 5, 6)), (0, (0, 0, 0)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a, b", r"cannot be read as YAML \(.*line 1.*\)"),
        ("\x80", "cannot be read as YAML"),
        ("", r"has no key classes\. .*classes: \[ground, roof\]"),
        ("- a\n- b", "has no key classes"),
        ("classes: [a, b]\ncolours: []", r"'colours' is no key; did you mean 'colors'\? There are: classes, values"),
        ("classes: ab", r"classes is 'ab'; it must be a list in \[ \]"),
        ("classes:", r"classes is None; it must be a list"),
        ("classes: [a, b]\nvalues: 3", "values is 3; it must be a list"),
        ("classes: []", "classes has 0 names; training needs at least 2: name what surrounds the objects as well"),
        ("classes: [roof]", "classes has 1 names; training needs at least 2"),
        ('classes: [a, "b\\e[31m"]', r"classes\[1\] is 'b\\x1b\[31m'; a name must have printable characters"),
        ("classes: [a, b]\nvalues: [[], 1]", r"values\[0\] is \[\]; it must be a whole number in 0–65535, or a list"),
        ("classes: [a, b]\nvalues: [[0, 1], 1]", "values has 1 twice"),
        ("classes: [a, b]\norientation: left", "orientation is 'left'; it must be upright or stored"),
        ("classes: [a, b]\nbits: 17", "bits is 17; it must be a whole number in 8–16"),
        ("classes: [a, b]\nmax_megapixels: 0", "max_megapixels is 0; it must be a number above 0"),
        ("a: &a [x, x]\nclasses: [*a, *a]", r"cannot be read as YAML \(aliases \(\*name\) are not used here; .*line 2"),
        ("classes: 2001-99-99", r"cannot be read as YAML \(month must be in 1\.\.12"),
        ("[" * 5000, r"cannot be read as YAML \(nested too deeply\)"),
        ("#" * 2_100_000, "has 2100000 bytes, at most 2097152 are read; it must contain a few lines of YAML"),
        ("classes: [yes, no]", r'classes\[0\] is True, not a name; .*"quotes"'),
        ("classes: [a, b, a]", "classes has 'a' twice"),
        ("classes: [a, b]\nvalues: [1]", "values has 1 entries for 2 classes"),
        ("classes: [a, b]\nvalues: [1, 65536]", r"values\[1\] is 65536; it must be a whole number in 0–65535"),
        ("classes: [a, b]\ncolors: [[0, 0, 256], [0, 0, 1]]", r"colors\[0\] is \[0, 0, 256\]; it must be a color"),
        ("classes: [a, b]\nvalues: [true, 2]", r"values\[0\] is True"),
        ("classes: [a, b]\nvalues: [2, 2]", "values has 2 twice"),
        ("classes: [a, b]\ncolors: [[1, 2], [3, 4, 5]]", r"colors\[0\] is \[1, 2\]; it must be a color"),
        ("classes: [a, b]\ncolors: [[1, 2, 3], #fff\n]", "colors has 1 entries for 2 classes"),
        ("classes: [a, b]\ncolors: [[1, 2, 3], [1, 2, 3]]", r"colors has \[1, 2, 3\] twice"),
        (
            "classes: [a, b]\nignore: 1",
            r"1 in ignore is that of a class, 'b', as masks are taken to store 0 to 1; give",
        ),
        ("classes: [a, b]\nvalues: [[0, 300], 7]\nignore: 300", "300 in ignore is that of a class, 'a'; take another"),
        (
            "classes: [a, b]\ncolors: [[0, 0, 1], [0, 0, 2]]\nignore: [[0, 0, 2]]",
            r"\[0, 0, 2\] in ignore is that of a class, 'b'; take another",
        ),
        ("classes: [a, b]\nignore: [9, 9, 9]", r"9 in ignore .* twice; .*written \[\[red, green, blue\]\]"),
        ("classes: [a, b]\nignore: [nothing]", r"ignore\[0\] is 'nothing'; it must be a value in 0–65535 or a color"),
    ],
)
def test_what_it_must_not_say(tmp_path: Path, text: str, message: str):
    path = tmp_path / "classes.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_values_for_one_class(root: Path):
    write(root, "classes: [ground, roof]\nvalues: [[0, 254], [128, 255]]\n")
    expected = np.isin(stored(2), (128, 255)).astype(np.uint8)
    assert np.array_equal(load_folder(root, "val")[0].mask, expected)


def test_yaml_that_is_no_file(root: Path):
    (root / "classes.yaml").unlink()
    (root / "classes.yaml").mkdir()
    with pytest.raises(DataError, match=r"classes\.yaml: is not a regular file; it must contain a few lines of YAML"):
        get_spec(f"{root}/")


# Turns


def turn_photo(path: Path, turn: int, size: tuple[int, int] = SIZE) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize(("turn", "size", "words"), [(3, SIZE, "turned by 180°"), (6, (24, 24), "turned by 90°")])
def test_a_turn_that_may_or_may_not_apply_to_the_mask(root: Path, turn: int, size: tuple[int, int], words: str):
    photo, mask = root / "images/val/c.jpg", root / "masks/val/c.png"
    turn_photo(photo, turn, size)
    save_mask(mask, random_labels([*VALUES, 254], size))
    upright = open_image(photo)
    message = rf"c\.jpg: is {words} by its EXIF .*orientation: upright \(.*orientation: stored \("
    with pytest.raises(OrientationError, match=message):
        load_folder(root, "val")[0]
    write(root, f"{YAML}orientation: upright\n")
    assert np.array_equal(load_folder(root, "val")[0].image, upright)
    write(root, f"{YAML}orientation: stored\n")
    image = load_folder(root, "val")[0].image.permute(1, 2, 0).numpy()
    assert np.array_equal(turned(image, turn), upright.permute(1, 2, 0))


def test_a_mask_that_was_drawn_on_the_stored_pixels(root: Path):
    """The sizes tell; the message has the way out, and that is one."""
    turn_photo(root / "images/val/c.jpg", 6)
    message = r"labels are 32×24 but .* is 24×32 .*turned by 90° by its EXIF .*write orientation: stored into classes"
    with pytest.raises(SizeMismatchError, match=message):
        load_folder(root, "val")[0]
    write(root, f"{YAML}orientation: stored\n")
    assert load_folder(root, "val")[0].image.shape == (3, *SIZE)


def test_a_mask_with_the_same_turn_is_turned_as_well(root: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    turn_photo(root / "images/val/c.jpg", 3)
    Image.fromarray(stored(2).astype(np.uint8)).save(root / "masks/val/c.png", exif=exif)
    assert np.array_equal(load_folder(root, "val")[0].mask, meant(stored(2))[::-1, ::-1])


def test_depth_and_size_are_set_for_the_folder(root: Path):
    photo = root / "images/val/c.png"
    (root / "images/val/c.jpg").unlink()
    Image.fromarray(np.full(SIZE, 4000, np.uint16)).save(photo)
    with pytest.raises(DataError, match=r"c\.png: is of 16 bits, but its largest value is 4000"):
        load_folder(root, "val")[0]
    write(root, f"{YAML}bits: 12\n")
    assert load_folder(root, "val")[0].image.unique().tolist() == [250]
    write(root, f"{YAML}bits: 12\nmax_megapixels: 0.0007\n")
    with pytest.raises(DataError, match=r"c\.png: has 32×24 = 0 megapixels; at most 0\.0007 are opened"):
        load_folder(root, "val")[0]


# Masks


def test_masks_drawn_in_colors(root: Path):
    write(root, f"classes: [a, b, c]\ncolors: {[list(c) for c in COLORS]}\nignore: [[0, 0, 0]]\n")
    labels = random_labels([0, 1, 2, 3])
    picture = np.array([*COLORS, (0, 0, 0)], np.uint8)[labels]
    for mode in ("RGB", "RGBA"):
        Image.fromarray(picture).convert(mode).save(root / "masks/val/c.png")
        assert np.array_equal(load_folder(root, "val")[0].mask, np.where(labels == 3, 255, labels))
    assert get_spec(f"{root}/").palette == COLORS


def test_a_color_of_no_class(root: Path):
    write(root, f"classes: [a, b, c]\ncolors: {[list(c) for c in COLORS]}\n")
    picture = np.array(COLORS, np.uint8)[random_labels([0, 1, 2])]
    picture[2, 3:5], picture[4, 4] = (53, 58, 72), (9, 9, 9)
    Image.fromarray(picture).save(root / "masks/val/c.png")
    with pytest.raises(UnknownLabelError, match=r"2 colors are of no class: \[53, 58, 72\] \(2 px\), \[9, 9, 9\] \(1"):
        load_folder(root, "val")[0]


def test_colors_need_to_be_told(root: Path):
    Image.new("RGB", SIZE[::-1], "red").save(root / "masks/val/c.png")
    with pytest.raises(UnknownLabelError, match=r"c\.png: labels are stored as RGB"):
        load_folder(root, "val")[0]


def test_a_palette_is_read_by_its_indices(root: Path):
    write(root, f"classes: [a, b, c]\ncolors: {[list(c) for c in COLORS]}\n")
    save_mask(root / "masks/val/c.png", random_labels([0, 1, 2, 255]), palette=True)
    assert load_folder(root, "val")[0].mask.unique().tolist() == [0, 1, 2, 255]


def test_a_palette_of_the_classes_own_colors_is_read_by_color(root: Path):
    """What a program leaves that has made an RGB mask smaller: its indices mean nothing."""
    write(root, f"classes: [a, b, c]\ncolors: {[list(c) for c in COLORS]}\n")
    labels = random_labels([0, 1, 2])
    image = Image.fromarray((2 - labels).astype(np.uint8))
    image.putpalette(np.array(COLORS[::-1], np.uint8).tobytes())
    image.save(root / "masks/val/c.png")
    assert np.array_equal(load_folder(root, "val")[0].mask, labels)


def test_a_value_of_no_class(root: Path):
    save_mask(root / "masks/val/c.png", random_labels([0, 7]))
    with pytest.raises(UnknownLabelError, match=r"c\.png: .*7 \(\d+ px\); expected 0, 128, 254–255"):
        load_folder(root, "val")[0]


def test_another_size(root: Path):
    save_mask(root / "masks/val/c.png", np.zeros((5, 6)))
    with pytest.raises(SizeMismatchError, match=r"c\.png: labels are 6×5 but"):
        load_folder(root, "val")[0]


# Files


def test_missing_masks_are_noticed_before_any_is_read(root: Path):
    (root / "masks/train/a.png").rename(root / "masks/train/a_mask.png")
    with pytest.raises(MissingFileError, match=r"no mask for 1 of 2 images: a\.png\. .*without an image: a_mask\.png"):
        load_folder(root, "train")
    (root / "masks/train/a_mask.png").rename(root / "masks/train/a.jpg")
    with pytest.raises(MissingFileError, match=r"Masks must be PNG, .*found a\.jpg"):
        load_folder(root, "train")
    (root / "masks/train/a.jpg").unlink()
    with pytest.raises(MissingFileError, match=r"images: a\.png\. Add them, or remove the images"):
        load_folder(root, "train")


def test_two_images_of_one_name(root: Path):
    save_image(root / "images/train/a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png would share the mask a\.png; rename one"):
        load_folder(root, "train")


def test_hidden_files_do_not_count(root: Path):
    (root / "images/val/._c.jpg").write_bytes(b"macOS")
    (root / "images/.cache").mkdir()
    assert len(load_folder(root, "val")) == 1
    assert ".cache" not in get_spec(f"{root}/").unlabeled_splits


def test_a_relative_folder_is_looked_for_in_the_current_one(root: Path, monkeypatch: pytest.MonkeyPatch):
    """A record repeated from elsewhere names its folder as it was given."""
    monkeypatch.chdir(root)
    with pytest.raises(MissingFileError, match=rf"^nowhere is not a folder in {re.escape(str(Path.cwd()))}\. It is to"):
        get_spec("nowhere/")


def test_what_is_not_there(root: Path):
    with pytest.raises(MissingFileError, match=r"nowhere is not a folder\. It is to hold classes\.yaml, images/"):
        get_spec(f"{root}/nowhere/")
    with pytest.raises(MissingFileError, match=r"other\.yaml: no such file\. .*one line will do"):
        get_spec(f"{root}/other.yaml")
    (root / "images/val/c.jpg").unlink()
    with pytest.raises(MissingFileError, match=r"images/val has no images; those end in \.jpg"):
        load_folder(root, "val")
    (root / "masks").rename(root / "labels")
    with pytest.raises(MissingFileError, match=r"masks has none of the folders test, train, val"):
        get_spec(f"{root}/")
    (root / "images").rename(root / "photos")
    with pytest.raises(MissingFileError, match=r"images: no such folder"):
        get_spec(f"{root}/")
    (root / "images").mkdir()
    with pytest.raises(MissingFileError, match=r"images has no folders and no images\. .*images/train"):
        get_spec(f"{root}/")


def test_check(root: Path):
    report = check_dataset(f"{root}/", None)
    assert report.ok
    assert report.counts == {"train": 2, "val": 1}
    save_mask(root / "masks/val/c.png", random_labels([0, 7]))
    (root / "masks/train/a.png").unlink()
    assert {problem.kind for problem in check_dataset(f"{root}/", None).problems} == {"missing", "unknown label"}


# Commands


def test_from_check_to_prediction(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(root.parent)
    monkeypatch.delenv("EMALAB_DATA", raising=False)

    def run(*arguments: str) -> str:
        main(arguments)
        return capsys.readouterr().out

    def fails(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 1
        return capsys.readouterr().err

    report = run("data", "check", "roofs/", "--preview", "look.png")
    assert report.startswith("roofs/: train 2, val 1\npixels in %  train    val\nground ")
    assert report.endswith("everything is in order\nwrote look.png\n")
    with Image.open("look.png") as preview:
        assert preview.size == (640, 2 * 240)
    train = ["train", "shapes-tiny", "--data.name", "roofs/classes.yaml", "--out", "run", "--no-progress"]
    train += ["--data.crop-size", "16", "16", "--optim.batch-size", "2", "--optim.iterations", "2"]
    train += ["--accelerator", "cpu", "--evaluation.batch-size", "1"]
    assert "has 3; set model.num_classes" in fails(*train)
    assert "single scale: " in run(*train, "--model.num-classes", "3")
    assert "\nsolar panel " in run("evaluate", "run/last.pt", "--device", "cpu")
    assert run("submit", "run/last.pt", "--out", "out", "--device", "cpu").startswith("1 images")
    assert (root.parent / "out/labels/d.png").is_file()
    photo = "roofs/images/test/d.jpg"
    run("predict", photo, "--checkpoint", "run/last.pt", "--out", "out", "--device", "cpu")
    assert (root.parent / "out/d.mask.png").is_file()
    assert "voc has 21" in fails("predict", photo, "--checkpoint", "run/last.pt", "--data", "voc")
    root.rename(root.parent / "moved")
    # The checkpoint holds the names and colors of its classes, so that it can be given away without the folder.
    run("predict", "moved/images/test/d.jpg", "--checkpoint", "run/last.pt", "--device", "cpu")
    assert (root.parent / "d.mask.png").is_file()
    run("predict", "moved/images/test/d.jpg", "--checkpoint", "run/last.pt", "--data", "moved/", "--device", "cpu")


def test_a_folder_that_was_moved_is_the_same_data(root: Path):
    """A run goes on after its folder was renamed, and not with other images under the old name."""
    before = data_identity(load_dataset(f"{root}/", "train"))
    assert data_identity(InMemory(load_dataset(f"{root}/", "train"))) == before
    assert data_identity(load_dataset(f"{root}/", "train/kept")) != before
    moved = root.rename(root.with_name("moved"))
    assert data_identity(load_dataset(f"{moved}/", "train")) == before
    recipe = get_recipe("shapes-tiny")
    recipe = replace(
        recipe,
        data=replace(recipe.data, name=f"{moved}/", crop_size=(16, 16)),
        model=replace(recipe.model, num_classes=3),
        optim=replace(recipe.optim, iterations=1, batch_size=2),
    )
    options = RunOptions(accelerator="cpu", progress=False, resume=True)
    train(recipe, root.parent / "run", options)
    again = moved.rename(root.with_name("again"))
    there = replace(recipe, data=replace(recipe.data, name=f"{again}/"))
    train(there, root.parent / "run", options)
    (again / "images/train/b.png").rename(again / "images/train/z.png")
    (again / "masks/train/b.png").rename(again / "masks/train/z.png")
    with pytest.raises(CheckpointError, match=r"was trained on other images or classes than .*again/ has now"):
        train(there, root.parent / "run", options)


class TestChannels:
    """Images of other than three: what the folder says, what its files have, and what does not fit."""

    @staticmethod
    def folder(root: Path, suffixes: Sequence[str], count: int = 4, yaml: str = "classes: [low, high]\n") -> Path:
        """Images whose first channel decides the class, one for each suffix."""
        for index, suffix in enumerate(suffixes):
            pixels = np.random.default_rng(index).integers(0, 256, (*SIZE, count), dtype=np.uint8)
            save_bands(root / f"images/train/{index}{suffix}", pixels)
            save_mask(root / f"masks/train/{index}.png", pixels[..., 0] > 127)
        root.joinpath("classes.yaml").write_text(yaml)
        return root

    @pytest.mark.parametrize("count", [2, 4, 5])
    @pytest.mark.parametrize("suffixes", [[".npy", ".npy"], [".tif", ".TIFF"], [".npy", ".tif"]])
    def test_are_those_of_the_files(self, suffixes: list[str], count: int, tmp_path: Path) -> None:
        root = self.folder(tmp_path, suffixes, count)
        data = load_dataset(f"{root}/", "train")
        assert data.spec.channels == get_spec(f"{root}/").channels == count
        image, mask, _ = data[1]
        assert image.shape == (count, *SIZE)
        assert torch.equal(mask, (image[0] > 127).to(torch.uint8))
        report = check_dataset(f"{root}/", None)
        assert report.ok
        assert f"images have {count} channels, as {root}/images/train/0{suffixes[0]} has" in str(report)

    def test_a_fourth_may_be_dropped_for_a_network_of_rgb(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".tif"], 4)
        assert "channels: 3 in classes.yaml would drop the fourth" in str(check_dataset(f"{root}/", None))
        data = load_dataset(f"{root}/", "train")
        with pytest.raises(ValueError, match=r"have 4; .*; channels: 3 in its classes\.yaml reads it with 3$"):
            check_channels(3, data)
        with pytest.raises(ValueError, match=r"have 4; set model\.in_channels to 4, or take other data$"):
            check_channels(5, data)

    def test_of_photographs_are_three(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".png", ".tif"], 3)
        assert get_spec(f"{root}/").channels == 3
        assert "channels" not in str(check_dataset(f"{root}/", None))

    def test_three_that_are_stated_are_rgb(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".tif", ".png"], 4, "classes: [low, high]\nchannels: 3\n")
        save_image(root / "images/train/1.png")
        data = load_dataset(f"{root}/", "train")
        assert [data[index].image.shape[0] for index in range(2)] == [3, 3]

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (".png", r"1\.png: is a photograph, and 4 channels are wanted, as \S+0\.tif has: a \.npy file"),
            (".npy", r"1\.npy: has 5 channels, and 4 are wanted, as \S+0\.tif has\."),
        ],
    )
    def test_a_mix_is_refused_by_name(self, other: str, message: str, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".tif", other], 4)
        if other == ".npy":
            np.save(root / "images/train/1.npy", np.zeros((*SIZE, 5), np.uint8))
        else:
            save_image(root / "images/train/1.png")
        (problem,) = check_dataset(f"{root}/", None).problems
        assert re.search(message, problem.message)
        with pytest.raises(DataError, match=message):
            channel_statistics(load_dataset(f"{root}/", "train"))

    def test_that_are_stated_hold_for_every_file(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".npy"], 4, "classes: [low, high]\nchannels: 5\n")
        assert get_spec(f"{root}/").channels == 5
        with pytest.raises(DataError, match=r"has 4 channels, and 5 are wanted, as classes\.yaml says"):
            load_dataset(f"{root}/", "train")[0]

    @pytest.mark.parametrize("value", ["0", "1025", "4.0", "true", "rgb"])
    def test_that_are_no_number(self, value: str, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".npy"], 4, f"classes: [low, high]\nchannels: {value}\n")
        with pytest.raises(DataError, match=r"channels is \S+; it must be a whole number in 1–1024"):
            get_spec(f"{root}/")

    def test_one_is_gray(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".png", ".tif"], 1, "classes: [low, high]\nchannels: 1\n")
        image, mask, _ = load_dataset(f"{root}/", "train")[0]
        assert image.shape == (1, *SIZE)
        assert torch.equal(mask, (image[0] > 127).to(torch.uint8))
        assert "images have 1 channel, as classes.yaml says" in str(check_dataset(f"{root}/", None))

    def test_the_network_may_ask_for_gray(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".png", ".tif"], 1)
        assert load_dataset(f"{root}/", "train").spec.channels == 3
        data = load_dataset(f"{root}/", "train", gray=True)
        assert (data.spec.channels, data[0].image.shape[0]) == (1, 1)
        (root / "classes.yaml").write_text("classes: [low, high]\nchannels: 3\n")
        assert load_dataset(f"{root}/", "train", gray=True).spec.channels == 3

    def test_a_damaged_first_file_is_a_problem_of_its_own(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".npy", ".npy"], 5)
        (root / "images/train/0.npy").write_bytes(b"\x93NUMPY and no more")
        assert get_spec(f"{root}/").channels == 5
        (problem,) = check_dataset(f"{root}/", None).problems
        assert problem.kind == "unreadable"

    def test_axes_in_another_order_are_named(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".npy"], 5)
        path = root / "images/train/0.npy"
        np.save(path, np.moveaxis(np.load(path), -1, 0))
        with pytest.raises(SizeMismatchError, match=r"Its axes must be height, width, channels: transpose it"):
            load_dataset(f"{root}/", "train")[0]

    def test_bits_are_the_folders(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".npy"], 5, "classes: [low, high]\nbits: 12\n")
        np.save(root / "images/train/0.npy", np.full((*SIZE, 5), 4095, np.uint16))
        assert (load_dataset(f"{root}/", "train").image(0)[0] == 255).all()
        assert get_spec(f"{root}/").bits == 12

    def test_a_preview_shows_the_first_three(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, [".npy"], 5)
        main(["data", "check", f"{root}/", "--preview", str(tmp_path / "preview.png")])
        assert Image.open(tmp_path / "preview.png").size == (640, 240)
