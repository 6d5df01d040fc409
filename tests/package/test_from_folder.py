"""`emalab train FOLDER/`: what is chosen for a folder of which nothing is said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emalab.cli import main
from emalab.data import DataError
from emalab.initial_weights import load_initial_weights
from emalab.recipes import recipe_from_dict, recipe_to_dict
from emalab.recipes.from_folder import START, describe_recipe, recipe_for_folder
from emalab.segmenter import build_segmenter


def make(root: Path, count: int = 5, size: tuple[int, int] = (40, 60), split: str = "", value: int = 255) -> Path:
    """Photographs with a bright half that the masks mark."""
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True)
    for i in range(count):
        labels = np.zeros(size, np.uint8)
        labels[:, : size[1] // 2] = value
        noise = generator.integers(0, 100, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise + (labels[..., None] > 0) * np.uint8(120)).save(root / f"images/{split}/{i}.png")
        Image.fromarray(labels).save(root / f"masks/{split}/{i}.png")
    return root


def quiet(_: str) -> None:
    pass


def test_nothing_is_said(tmp_path: Path):
    lines: list[str] = []
    recipe = recipe_for_folder(make(tmp_path / "my roofs"), "cpu", report=lines.append)
    assert recipe.name == "my-roofs"
    assert (recipe.data.train_split, recipe.data.eval_split) == ("train", "val")
    assert recipe.data.crop_size == (48, 64)
    assert (recipe.model.num_classes, recipe.init_from) == (2, START)
    assert (tmp_path / "my roofs/classes.yaml").read_text().endswith("values: [0, 255]\n")
    assert len((tmp_path / "my roofs/splits/train.txt").read_text().split()) == 4
    assert [line.partition(":")[0].split(",")[0] for line in lines] == [
        f"wrote {tmp_path}/my roofs/classes.yaml",
        f"wrote {tmp_path}/my roofs/splits/train.txt and {tmp_path}/my roofs/splits/val.txt",
    ]
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    rows = dict(describe_recipe(recipe))
    assert rows["classes"] == "background, object"
    assert rows["train"] == "train, 4 images"


def test_the_shipped_network_fits(tmp_path: Path):
    recipe = recipe_for_folder(make(tmp_path / "roofs"), "cpu", report=quiet)
    left_alone = load_initial_weights(build_segmenter(recipe.model), START)
    assert all(name.startswith("classifier.") for name in left_alone)


def test_one_split_gives_a_tenth(tmp_path: Path):
    recipe = recipe_for_folder(make(tmp_path / "roofs", split="all"), "cpu", report=quiet)
    assert (recipe.data.train_split, recipe.data.eval_split) == ("all/kept", "all/held-out")


def test_splits_of_unusual_names(tmp_path: Path):
    make(tmp_path / "roofs", split="north")
    make(tmp_path / "more", split="south")
    for kind in ("images", "masks"):
        (tmp_path / "more" / kind / "south").rename(tmp_path / "roofs" / kind / "south")
    with pytest.raises(DataError, match=r"which of the splits north, south to train on is not clear: call one train"):
        recipe_for_folder(tmp_path / "roofs", "cpu", report=quiet)


@pytest.mark.parametrize(("count", "size", "device"), [(3, (40, 60), "cpu"), (30, (300, 500), "cpu")])
def test_the_schedule_follows_from_the_images(tmp_path: Path, count: int, size: tuple[int, int], device: str):
    recipe = recipe_for_folder(make(tmp_path / "roofs", count, size), "cpu", report=quiet)
    pixels = recipe.optim.iterations * recipe.optim.batch_size * np.prod(recipe.data.crop_size)
    assert recipe.optim.iterations == 100 or pixels <= 1e8
    assert max(recipe.data.crop_size) <= 192
    for_gpu = recipe_for_folder(tmp_path / "roofs", "gpu", report=quiet)
    assert for_gpu.optim.iterations >= recipe.optim.iterations
    assert max(for_gpu.data.crop_size) <= 512


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Two steps of it; without a slash too, as there is no recipe of that name."""
    monkeypatch.chdir(tmp_path)
    make(Path("roofs"))
    short = ["--optim.iterations", "2", "--optim.batch-size", "2", "--optim.warmup", "0"]
    main(["train", "roofs", "--accelerator", "cpu", "--no-progress", *short])
    reported = capsys.readouterr().out
    assert "\nroofs, unless flags say otherwise:\n  classes        background, object\n" in reported
    assert "single scale: " in reported
    assert Path("runs/roofs-seed0/last.pt").is_file()
