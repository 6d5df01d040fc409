"""Chapters with ``EMALAB_FULL=1``: those that train run every cell as on real data, on files made here; others, in a
shortened form, the cells that it changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import matplotlib
import pytest
from lab import miniature
from lab.benchmarks import Benchmark
from tiny import scenes
from tiny_data import make_camvid

from emalab import data, recipes
from emalab.data.coco_stuff import convert_coco_stuff_10k
from emalab.data.context import convert_context
from emalab.data.sbd import convert_sbd
from emalab.recipes import Recipe

BOOK = Path(__file__).parents[2] / "book"

# pycocotools' own, and harmless: numpy 2 wants another argument of __array__.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def shortened(recipe: Recipe) -> Recipe:
    """Two steps from random weights; in place of the large ResNet a small one, with its stride, multi-grid and stem."""
    model, crop, batch_size = replace(recipe.model, backbone_weights=None), 64, 6
    if model.backbone == "resnet101s":
        small = {"backbone": "resnet18d", "backbone_blocks": (1, 1, 1, 3), "channels": 32, "head_channels": 32}
        model, crop, batch_size = replace(model, **small), 65, 4
    return replace(
        recipe,
        precision="32-true",
        data=replace(recipe.data, crop_size=(crop, crop)),
        model=model,
        optim=replace(recipe.optim, iterations=2, batch_size=batch_size, warmup=min(recipe.optim.warmup, 1), lr_hold=1),
        evaluation=replace(recipe.evaluation, scales=(0.5, 1.0) if recipe.evaluation.flip else (1.0,)),
    )


def run_chapter(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Every code cell of a chapter, in a folder ``root/book`` with the data in ``root/data``; the names they leave."""
    original = recipes.get_recipe
    (root / "book").mkdir()
    monkeypatch.setattr(recipes, "get_recipe", lambda recipe: shortened(original(recipe)))
    monkeypatch.setenv("EMALAB_FULL", "1")
    monkeypatch.setenv("EMALAB_DATA", str(root / "data"))
    monkeypatch.chdir(root / "book")
    matplotlib.use("Agg")
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads((BOOK / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    return names


def test_first_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_camvid(tmp_path / "data", per_split=4)
    run_chapter("first_training_run", tmp_path, monkeypatch)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        f"camvid-lite2{suffix}-seed0" for suffix in ("", "-fcn", "-non-local")
    }


def make_voc(root: Path) -> None:
    miniature.write_voc(root, train=4, val=2, more=2)
    convert_sbd(root)


def make_context(root: Path) -> None:
    miniature.write_context(root, train=6, val=6)
    convert_context(root)


def make_coco_stuff_10k(root: Path) -> None:
    miniature.write_coco_stuff_10k(root, train=6, test=3)
    convert_coco_stuff_10k(root)


# A release, and the sizes of its splits in `make_…`, by the data sets that read it.
RELEASES: dict[str, tuple[Callable[[Path], None], dict[str, tuple[int, ...]]]] = {
    "PASCAL VOC": (make_voc, {"voc": (4, 2, 6, 6)}),
    "PASCAL Context": (make_context, {"context-59": (6, 6), "context-60": (6, 6)}),
    "COCO-Stuff": (make_coco_stuff_10k, {"coco-stuff-10k": (6, 3)}),
}
SIZES = {name: counts for _, sizes in RELEASES.values() for name, counts in sizes.items()}


def test_training_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make, _ in RELEASES.values():
        make(tmp_path / "data")
    for name, counts in SIZES.items():  # as if these were all the images there are: the comparison is made
        entry = data.DATASETS[name]
        monkeypatch.setitem(data.DATASETS, name, replace(entry, spec=replace(entry.spec, split_sizes=counts)))
    names = run_chapter("training", tmp_path, monkeypatch)
    chosen, compared = cast(dict[str, Benchmark], names["chosen"]), cast(dict[str, list[dict]], names["compared"])
    assert {name: (benchmark.full, benchmark.whole) for name, benchmark in chosen.items()} == dict.fromkeys(
        SIZES, (True, True)
    )
    assert all(benchmark.recipe == benchmark.published for benchmark in chosen.values())
    assert set(compared) == set(SIZES)
    assert all("this run" in row and "difference" in row for rows in compared.values() for row in rows)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {f"{name}-r101-seed0" for name in SIZES}


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_is_used_without_the_others(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sizes = RELEASES[release]
    make(tmp_path / "data")
    names = cells_until_the_choice("training", tmp_path / "data", monkeypatch)
    assert names["FULL"]
    for name, benchmark in cast(dict[str, Benchmark], names["chosen"]).items():
        assert benchmark.full == (name in sizes)
        assert (benchmark.recipe == benchmark.published) == benchmark.full
        assert "this run" not in benchmark.compared({"single scale": 0.5})[0], "a part of a release is not compared"
    assert capsys.readouterr().out.count("EMALAB_FULL is set, but there is no ") == len(SIZES) - len(sizes)


# Chapters whose data are missing do the small thing, and say so. Those without data only train for longer.
WITH_DATA = ["bases", "first_training_run", "training"]
LONGER = ["how_many"]


def code_of(chapter: str) -> list[str]:
    cells = json.loads((BOOK / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def cells_until_the_choice(chapter: str, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The names that the cell leaves which chooses the scale, and those before it."""
    monkeypatch.setenv("EMALAB_FULL", "1")
    monkeypatch.setenv("EMALAB_DATA", str(data_root))
    monkeypatch.chdir(BOOK)
    names: dict[str, object] = {"__name__": "__main__"}
    for source in code_of(chapter):
        exec(compile(source, chapter, "exec"), names)
        if "FULL" in names:
            return names
    raise AssertionError(f"no cell of {chapter} sets FULL")


def test_every_chapter_with_a_full_scale_is_here() -> None:
    chapters = [path.stem for path in BOOK.glob("*.ipynb") if "EMALAB_FULL" in "".join(code_of(path.stem))]
    assert sorted(chapters) == sorted(WITH_DATA + LONGER)


@pytest.mark.parametrize("data_root", ["empty", "nowhere"])
@pytest.mark.parametrize("chapter", WITH_DATA)
def test_chapter_without_its_data_says_so(
    chapter: str, data_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    names = cells_until_the_choice(chapter, tmp_path / data_root, monkeypatch)
    assert not names["FULL"]
    assert "EMALAB_FULL is set, but there is no " in capsys.readouterr().out


@pytest.mark.parametrize("chapter", LONGER)
def test_longer_chapter(chapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a few scenes, and without its assertions, which two steps do not keep."""
    monkeypatch.setenv("EMALAB_FULL", "1")
    monkeypatch.chdir(BOOK)
    matplotlib.use("Agg")
    names: dict[str, object] = {"__name__": "__main__"}
    first, *changed = (source for source in code_of(chapter) if "FULL" in source)
    exec(compile(first, chapter, "exec"), names)
    names["get_recipe"] = lambda recipe: shortened(recipes.get_recipe(recipe))
    names["load_dataset"] = lambda name, split: scenes(32, split)
    assert changed
    for source in changed:
        exec(compile(source, chapter, "exec", optimize=1), names)
    assert names["FULL"]
