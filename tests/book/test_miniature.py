"""The book's miniature releases: formats that converters and loaders take, and the labels as they were drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lab import miniature
from PIL import Image
from scipy.io import loadmat

from emalab.data import get_spec, load_dataset
from emalab.data.check import check_dataset
from emalab.data.coco_stuff import IDS, convert_coco_stuff_10k, convert_coco_voc
from emalab.data.context import CATEGORIES, convert_context
from emalab.data.sbd import convert_sbd
from emalab.recipes import get_recipe, recipe_names
from emalab.segmenter import build_segmenter

# pycocotools' own, and harmless: numpy 2 wants another argument of __array__.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = 6, 4  # images of the two splits


def make_voc(root: Path) -> None:
    miniature.write_voc(root, *SMALL, more=5)
    convert_sbd(root)


def make_context(root: Path) -> None:
    miniature.write_context(root, *SMALL)
    convert_context(root)


def make_coco_stuff_10k(root: Path) -> None:
    miniature.write_coco_stuff_10k(root, *SMALL)
    convert_coco_stuff_10k(root)


def make_coco_stuff_164k(root: Path) -> None:
    miniature.write_coco_stuff_164k(root, *SMALL)
    convert_coco_voc(root)


@pytest.mark.parametrize(
    ("make", "name", "counts"),
    [
        (make_voc, "voc", {"train": 6, "val": 4, "trainval": 10, "trainaug": 11}),
        (make_context, "context-59", {"train": 6, "val": 4}),
        (make_context, "context-60", {"train": 6, "val": 4}),
        (make_coco_stuff_10k, "coco-stuff-10k", {"train": 6, "test": 4}),
        (make_coco_stuff_164k, "coco-stuff-164k", {"train": 6, "val": 4}),
    ],
)
def test_releases_are_in_order(make: Callable[[Path], None], name: str, counts: dict[str, int], tmp_path: Path) -> None:
    make(tmp_path)
    report = check_dataset(name, tmp_path)
    assert report.ok, str(report)
    assert report.counts == counts
    classes = set()
    for split in counts:
        for sample in load_dataset(name, split, tmp_path):
            assert sample.mask.shape == miniature.SIZE
            classes |= set(sample.mask.unique().tolist())
    assert len(classes) > 5


def test_voc_has_borders_and_sbd_has_none(tmp_path: Path) -> None:
    make_voc(tmp_path)
    voc, sbd = tmp_path / "VOCdevkit/VOC2012", tmp_path / "benchmark_RELEASE/dataset"
    listed = {split: (sbd / f"{split}.txt").read_text().split() for split in ("train", "val")}
    of_val = (voc / "ImageSets/Segmentation/val.txt").read_text().split()
    both = [*listed["train"], *listed["val"]]
    assert sorted(both) == sorted({path.stem for path in (sbd / "cls").iterdir()})
    assert set(both) & set(of_val)  # or the chapter has nothing to take out
    for path in (voc / "SegmentationClass").iterdir():
        with Image.open(path) as file:
            labels = np.asarray(file)
        assert file.mode == "P"
        assert (labels == 255).any()
        if path.stem in both:
            of_sbd = loadmat(sbd / f"cls/{path.stem}.mat")["GTcls"]["Segmentation"][0, 0]
            assert of_sbd.max() < 21
            assert np.array_equal(labels, miniature.with_void_border(of_sbd))


def test_void_border_is_two_pixels_wide() -> None:
    labels = np.repeat([[0, 0, 0, 7, 7, 7]], 3, axis=0)
    assert miniature.with_void_border(labels).tolist() == [[0, 0, 255, 255, 7, 7]] * 3
    assert miniature.with_void_border(labels.T).tolist() == [[0] * 3, [0] * 3, [255] * 3, [255] * 3, [7] * 3, [7] * 3]


def test_both_forms_of_context_hold_the_same_labels(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    for form in ("mat", "json"):
        miniature.write_context(tmp_path / form, *SMALL, form=form)
        convert_context(tmp_path / form)
    splits = [load_dataset("context-60", "val", tmp_path / form) for form in ("mat", "json")]
    for of_mat, of_json in zip(*splits, strict=True):
        assert np.array_equal(of_mat.image, of_json.image)
        assert np.array_equal(of_mat.mask, of_json.mask)


def test_both_releases_of_coco_stuff_hold_the_same_labels(tmp_path: Path) -> None:
    make_coco_stuff_10k(tmp_path)
    make_coco_stuff_164k(tmp_path)
    splits = [load_dataset(f"coco-stuff-{release}", "train", tmp_path) for release in ("10k", "164k")]
    for of_10k, of_164k in zip(*splits, strict=True):
        assert np.array_equal(of_10k.mask, of_164k.mask)


def test_scenes_are_their_labels() -> None:
    vocabulary = miniature.Vocabulary(above=(1, 2), below=(3, 4), shapes=(5, 6))
    seen = set()
    for seed in range(20):
        image, labels = miniature.draw_scene(vocabulary, np.random.default_rng(seed))
        again = miniature.draw_scene(vocabulary, np.random.default_rng(seed))
        assert np.array_equal(image, again[0])
        assert np.array_equal(labels, again[1])
        assert image.shape == (*miniature.SIZE, 3)
        assert labels.shape == miniature.SIZE
        assert set(labels[0].tolist()) <= {1, 2, 5, 6}
        seen |= set(np.unique(labels).tolist())
    assert seen == {1, 2, 3, 4, 5, 6}


def test_numbers_are_those_of_the_releases() -> None:
    context, stuff = miniature._CONTEXT, miniature._COCO_STUFF
    assert set(context.above + context.below + context.shapes) - {*CATEGORIES.values()} == {*miniature._UNLISTED}
    assert set(stuff.above + stuff.below + stuff.shapes) - {*IDS.values()} == {0}
    assert set(miniature._VOC.shapes) < {*range(1, get_spec("voc").num_classes)}


@pytest.mark.parametrize("name", [name for name in recipe_names() if "-r101" in name and "chain" not in name])
def test_recipe_keeps_what_it_can(name: str) -> None:
    recipe = get_recipe(name)
    small = miniature.miniature_recipe(recipe)
    for field in ("optimizer", "bias_lr_factor", "weight_decay", "power", "lr_hold", "loss_average"):
        assert getattr(small.optim, field) == getattr(recipe.optim, field)
    assert small.data.scale_step == recipe.data.scale_step
    assert small.model.align_corners == recipe.model.align_corners
    assert small.evaluation.flip == recipe.evaluation.flip
    assert not small.published
    assert build_segmenter(small.model).config.num_classes == recipe.model.num_classes
