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
def test_grey(tmp_path: Path, values: tuple[int, ...], text: str):
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


def test_grey_in_rgb_and_palettes_count_as_grey(tmp_path: Path):
    make(tmp_path, None, 0, 255)
    with Image.open(tmp_path / "masks/0.png") as image:
        image.convert("RGB").save(tmp_path / "masks/0.png")
    assert propose_labels(tmp_path).labels.values == (0, 255)
    save_mask(tmp_path / "masks/0.png", random_labels([0, 255]), palette=True)
    assert propose_labels(tmp_path).labels.values == (0, 255)


def test_what_is_no_label_map(tmp_path: Path):
    make(tmp_path, np.arange(24 * 32).reshape(24, 32) % 125 * 2)
    with pytest.raises(DataError, match=r"125 values between 0 and 248, more like soft edges than classes"):
        propose_labels(tmp_path)
    make(tmp_path, np.zeros((24, 32)))
    with pytest.raises(DataError, match="the masks hold a single value"):
        propose_labels(tmp_path)
    drawn = np.arange(24 * 32 * 3).reshape(24, 32, 3).astype(np.uint8)
    Image.fromarray(drawn).save(tmp_path / "masks/1.png")
    with pytest.raises(DataError, match="some masks are grey and others in colors"):
        propose_labels(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "masks/1.png")
    with pytest.raises(DataError, match="the masks hold more than 256 colors, which are no labels"):
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
