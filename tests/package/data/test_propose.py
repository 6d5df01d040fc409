"""A folder without classes.yaml: what its masks hold, and the file that is proposed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_data import random_labels, save_image, save_mask

from emalab.cli import main
from emalab.data import DataError, load_dataset
from emalab.data.folder import read_labels
from emalab.data.propose import propose_labels


def make(root: Path, labels: np.ndarray | None = None, *values: int) -> Path:
    for i in range(3):
        save_image(root / f"images/{i}.png", seed=i)
        save_mask(root / f"masks/{i}.png", random_labels(list(values), seed=i) if labels is None else labels)
    return root


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0, 255), "classes: [background, object]\nvalues: [0, 255]\n"),
        ((0, 1), "classes: [background, object]\nignore: [255]\n"),
        ((0, 1, 2, 255), "classes: [background, class 1, class 2]\nignore: [255]\n"),
        ((0, 128, 255), "classes: [background, class 1, class 2]\nvalues: [0, 128, 255]\n"),
        ((3, 7), "classes: [class 0, class 1]\nvalues: [3, 7]\nignore: [255]\n"),
    ],
)
def test_gray(tmp_path: Path, values: tuple[int, ...], text: str):
    proposal = propose_labels(make(tmp_path, None, *values))
    assert proposal.text.partition(").\n")[2] == text
    assert f"{values[0]} (" in proposal.in_words()
    proposal.write()
    assert read_labels(proposal.file) == proposal.labels
    assert set(load_dataset(f"{tmp_path}/", "train")[0].mask.unique().tolist()) <= {0, 1, 2, 255}
    with pytest.raises(DataError, match="is there already"):
        proposal.write()


def test_colors(tmp_path: Path):
    make(tmp_path, None, 0, 1)
    colors = np.array([(0, 0, 0), (200, 30, 10), (9, 99, 199)], np.uint8)
    for i in range(3):
        Image.fromarray(colors[random_labels([0, 1, 2], seed=i)]).save(tmp_path / f"masks/{i}.png")
    proposal = propose_labels(tmp_path)
    assert proposal.labels.classes == ("background", "class 1", "class 2")
    assert proposal.labels.colors == ((0, 0, 0), (9, 99, 199), (200, 30, 10))


def test_gray_in_rgb_and_palettes_count_as_gray(tmp_path: Path):
    make(tmp_path, None, 0, 255)
    with Image.open(tmp_path / "masks/0.png") as image:
        image.convert("RGB").save(tmp_path / "masks/0.png")
    assert propose_labels(tmp_path).labels.values == (0, 255)
    save_mask(tmp_path / "masks/0.png", random_labels([0, 255]), palette=True)
    assert propose_labels(tmp_path).labels.values == (0, 255)


def make_wide(root: Path, *values: int) -> Path:
    """Masks of 16 bits."""
    make(root, None, 0, 1)
    for i in range(3):
        Image.fromarray(random_labels(list(values), (40, 60), seed=i).astype(np.uint16)).save(root / f"masks/{i}.png")
    return root


@pytest.mark.parametrize(
    ("values", "classes", "stored", "ignored"),
    [
        (range(300), 300, (), 65535),
        ((*range(300), 65535), 300, (), 65535),
        ((*range(0, 300, 3), 65535), 298, (), 65535),  # two of three classes are rare
        ((0, 1, 2, 65535), 3, (), 65535),
        ((1000, 2000, 65535), 2, (1000, 2000), 65535),
        ((0, 65535), 2, (0, 65535), None),
        ((0, 1), 2, (), 255),  # 16 bits that nobody needs
    ],
)
def test_16_bits(tmp_path: Path, values: tuple[int, ...], classes: int, stored: tuple[int, ...], ignored: int | None):
    proposal = propose_labels(make_wide(tmp_path, *values))
    assert len(proposal.labels.classes) == classes
    assert proposal.labels.values == stored
    assert proposal.labels.ignored == (() if ignored is None else (ignored,))
    proposal.write()
    labels = read_labels(proposal.file)
    assert (labels.classes, labels.values, labels.ignored) == (proposal.labels.classes, stored, proposal.labels.ignored)


def test_values_in_between(tmp_path: Path):
    text = propose_labels(make_wide(tmp_path, *range(0, 300, 3))).text
    assert "# 198 of the values 0 to 297 occur in no mask; they are assumed to be rare classes.\nclasses:\n" in text
    assert "No mask holds" not in propose_labels(make_wide(tmp_path, *range(300))).text


def test_many_classes_have_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = make_wide(tmp_path / "many", *range(1, 301))
    assert "\n- class 7  # 7\n- class 8  # 8\n" in propose_labels(root).text
    with pytest.raises(SystemExit):
        main(["data", "check", f"{root}/"])
    shown = capsys.readouterr().out
    assert "\n- class 20  # 20\n" in shown
    assert shown.endswith("\n… 277 more lines\nignore: [65535]\n\n")
    assert len(shown.splitlines()) < 40


def test_16_bits_that_number_objects(tmp_path: Path):
    with pytest.raises(DataError, match="60 values between 0 and 59000, more like soft edges than classes"):
        propose_labels(make_wide(tmp_path, *range(0, 60000, 1000)))


def test_what_is_no_label_map(tmp_path: Path):
    make(tmp_path, np.resize(np.arange(256), (24, 32)))
    with pytest.raises(DataError, match=r"255 values between 0 and 254, more like soft edges than classes"):
        propose_labels(tmp_path)
    make(tmp_path, np.arange(24 * 32).reshape(24, 32) % 125 * 2)
    with pytest.raises(DataError, match=r"125 values between 0 and 248, more like soft edges than classes"):
        propose_labels(tmp_path)
    make(tmp_path, np.zeros((24, 32)))
    with pytest.raises(DataError, match="the masks hold a single value"):
        propose_labels(tmp_path)
    drawn = np.arange(24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    Image.fromarray(drawn).save(tmp_path / "masks/1.png")
    with pytest.raises(DataError, match="some masks are gray and others in colors"):
        propose_labels(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "masks/1.png")
    with pytest.raises(DataError, match="the masks hold more than 256 colors, more like soft edges than classes"):
        propose_labels(tmp_path)


def test_check_proposes_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = make(tmp_path / "roofs", None, 0, 255)
    with pytest.raises(SystemExit):
        main(["data", "check", f"{root}/"])
    assert "\nclasses: [background, object]\nvalues: [0, 255]\n" in capsys.readouterr().out
    assert not (root / "classes.yaml").exists()
    main(["data", "check", f"{root}/", "--write"])
    assert capsys.readouterr().out.endswith("everything is in order\n")
    assert (root / "splits/val.txt").read_text().split()
    assert (root / "classes.yaml").read_text().startswith("# Proposed from 3 masks: ")
