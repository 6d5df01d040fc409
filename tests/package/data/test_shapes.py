import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emalab.backbones import TinyBackbone
from emalab.data import DataError, get_spec, load_dataset
from emalab.data.scene_settings import SceneSettings
from emalab.data.shapes import SPLIT_SIZES, FarScenes, PooledScenes, Scene, ShapesDataset, labeled_shapes, scenes_of
from emalab.recipes import get_recipe, recipe_names

by_kind = pytest.mark.parametrize("scenes", [PooledScenes(), FarScenes()], ids=lambda scenes: scenes.spec.name)
either = st.sampled_from([PooledScenes(), FarScenes()])
seeds = st.integers(0, 2**32 - 1)
FIELD_OF_VIEW = TinyBackbone.receptive_field


def drawings(dataset: ShapesDataset, count: int = 20) -> set[bytes]:
    return {dataset.scene(index).image.tobytes() for index in range(count)}


def best_accuracy(scenes: PooledScenes | FarScenes, window: int | None) -> float:
    dataset = ShapesDataset(scenes, "val")
    return float(np.mean([scenes.bayes_accuracy(dataset.scene(index), window) for index in range(20)]))


# ---- Settings ----


def test_settings_make_other_scenes():
    assert scenes_of("shapes-pooled") == PooledScenes()
    assert scenes_of("shapes-pooled", SceneSettings(spread=40, spacing=12)) == PooledScenes(spread=40, spacing=12)
    expected = ShapesDataset(FarScenes(gap=6), "val")[3]
    assert torch.equal(load_dataset("shapes-far", "val", scenes=SceneSettings(gap=6))[3].image, expected.image)
    assert not torch.equal(load_dataset("shapes-far", "val")[3].image, expected.image)


def test_every_setting_belongs_to_scenes():
    assert {field.name for kind in (PooledScenes, FarScenes) for field in fields(kind)} == {
        field.name for field in fields(SceneSettings)
    }


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("shapes-near", {}, "no data set 'shapes-near'; did you mean 'shapes-far'"),
        ("shapes-far:gap=6", {}, "no data set 'shapes-far:gap=6'; say shapes-far, and set its scenes: --data.scenes"),
        ("shapes-far", {"shift": 3}, "shapes-far has no setting 'shift'; it has size, spacing, key_size, gap, grain"),
        ("shapes-pooled", {"grain": -1.0}, "grain is -1.0; it must not be negative"),
        (
            "voc",
            {"grain": 3.0},
            "data.scenes.grain is a setting of generated scenes, and the data set is voc",
        ),
    ],
)
def test_settings_that_mean_nothing(name, settings, reason):
    with pytest.raises(DataError, match=re.escape(reason)):
        load_dataset(name, "train", scenes=SceneSettings(**settings))


# ---- The data set ----


@by_kind
def test_a_sample_is_a_function_of_seed_split_and_index(scenes):
    first, second = ShapesDataset(scenes), ShapesDataset(scenes, length=30)
    for index in (7, 0, 7, 29):
        a, b = first[index], second[index]
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
        assert a.name == b.name


@by_kind
def test_splits_seeds_and_indices_share_no_scene(scenes):
    train, val = drawings(ShapesDataset(scenes)), drawings(ShapesDataset(scenes, "val"))
    reseeded = drawings(ShapesDataset(scenes, seed=1))
    assert len(train | val | reseeded) == 60


@by_kind
def test_registered_under_its_name_and_split(scenes):
    name = scenes.spec.name
    assert get_spec(name) is scenes.spec
    for split, length in SPLIT_SIZES.items():
        dataset = load_dataset(name, split)
        assert len(dataset) == length
        assert torch.equal(dataset[3].image, ShapesDataset(scenes, split)[3].image)
    assert len(list(ShapesDataset(scenes, length=3))) == 3


@by_kind
def test_recipes_fit_the_scenes(scenes):
    recipes = [get_recipe(name) for name in recipe_names()]
    mine = [recipe for recipe in recipes if recipe.data.name == scenes.spec.name]
    assert mine
    for recipe in mine:
        assert recipe.model.num_classes == scenes.spec.num_classes
        assert recipe.data.crop_size == (scenes.size, scenes.size)  # a smaller crop could remove the key
        assert recipe.data.scale_range == (1, 1)
        assert {recipe.data.train_split, recipe.data.eval_split} <= set(SPLIT_SIZES)


@settings(max_examples=40, deadline=None)
@given(either, seeds, st.integers(48, 90), st.integers(8, 12))
def test_images_and_labels_of_any_size(scenes, seed, size, spacing):
    scenes = replace(scenes, size=size, spacing=spacing)
    dataset = ShapesDataset(scenes, length=1, seed=seed)
    (image, mask, _), scene = dataset[0], dataset.scene(0)
    assert image.shape == (3, size, size)
    assert mask.shape == (size, size)
    assert image.dtype == mask.dtype == torch.uint8
    assert set(mask.unique().tolist()) <= {*range(scenes.spec.num_classes), scenes.spec.ignore_index}
    labeled = scene.mask != scenes.spec.ignore_index
    assert np.array_equal((scene.mask > 0)[labeled], (scene.shapes >= 0)[labeled])
    assert np.array_equal(scene.kinds >= 0, scene.shapes >= 0)


def test_every_class_occurs_about_as_often_as_its_rivals():
    for scenes in (PooledScenes(), FarScenes()):
        dataset = ShapesDataset(scenes)
        images_with = sum(
            np.bincount(np.unique(dataset.scene(index).mask), minlength=256)[:5] > 0 for index in range(400)
        )
        share = images_with[1:] / 400
        assert np.allclose(share, 0.5 if scenes.spec.name == "shapes-pooled" else 0.25, atol=0.1)  # 4 standard errors


@by_kind
def test_ignored_pixels_are_those_where_shape_and_ground_meet(scenes):
    mask, shapes = (ShapesDataset(scenes).scene(0).mask, ShapesDataset(scenes).scene(0).shapes >= 0)
    for y, x in np.argwhere(np.ones_like(shapes)[1:-1, 1:-1]) + 1:
        neighbors = shapes[[y - 1, y + 1, y, y], [x, x, x - 1, x + 1]]
        assert (mask[y, x] == 255) == (neighbors != shapes[y, x]).any()


# ---- Pooled evidence ----


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(1, 20), st.floats(5, 30), st.integers(0, 12).map(lambda half: 2 * half + 1))
def test_seeing_more_and_a_stronger_signal_help(seed, shift, spread, window):
    """Each order follows from the formula: Φ increases, and each shape in view adds a positive term to its argument."""
    scenes = PooledScenes(shift=shift, spread=spread)
    scene = ShapesDataset(scenes, length=1, seed=seed).scene(0)
    local, wider, everything = (scenes.bayes_accuracy(scene, w) for w in (window, window + 8, None))
    assert 0.5 < local <= wider <= everything <= 1
    assert replace(scenes, shift=1.5 * shift).bayes_accuracy(scene, window) > local
    assert replace(scenes, spread=1.5 * spread).bayes_accuracy(scene, window) < local


@pytest.mark.parametrize("window", [15, None])
def test_pooled_bound_is_reached_by_averaging_the_lightness_in_view(window):
    """The look-alike shapes in view are averaged in 200 scenes, without use of the formula."""
    scenes = PooledScenes()
    dataset = ShapesDataset(scenes, length=200)
    right, promised = [], []
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        pixels = np.argwhere(labeled_shapes(scene))
        y, x = pixels[index * 7919 % len(pixels)]
        right.append(guess_bright(scene, y, x, window) == (scene.mask[y, x] % 2 == 0))
        promised.append(scenes.bayes_accuracy(one_pixel(scene, y, x), window))
    standard_error = np.sqrt(np.mean(np.array(promised) * (1 - np.array(promised))) / len(right))
    assert abs(np.mean(right) - np.mean(promised)) < 4 * standard_error


def guess_bright(scene: Scene, y: int, x: int, window: int | None) -> bool:
    reach = 64 if window is None else window // 2
    view = np.s_[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    lightness, shapes, kinds = scene.image[view].mean(-1), scene.shapes[view], scene.kinds[view]
    family = scene.kinds[y, x]
    middle = {0: (70 + 150 + 142) / 3, 1: (190 + 112 + 92) / 3}[family]
    shapes_in_view = np.unique(shapes[kinds == family])
    return bool(np.mean([lightness[shapes == shape].mean() for shape in shapes_in_view]) > middle)


def one_pixel(scene: Scene, y: int, x: int) -> Scene:
    mask = np.full_like(scene.mask, 255)
    mask[y, x] = scene.mask[y, x]
    return replace(scene, mask=mask)


def test_pooled_evidence_is_weak_locally_and_decisive_globally():
    """Means of a formula over fixed scenes, which are the same on every machine."""
    assert best_accuracy(PooledScenes(), FIELD_OF_VIEW) < 0.76
    assert best_accuracy(PooledScenes(), None) > 0.98


def test_pooled_limits_of_the_settings():
    scene = ShapesDataset(PooledScenes(), length=1).scene(0)
    assert PooledScenes(shift=0).bayes_accuracy(scene) == 0.5
    assert PooledScenes(shift=0, spread=0, grain=0).bayes_accuracy(scene) == 0.5
    assert PooledScenes(spread=0, grain=0).bayes_accuracy(scene, 1) == 1


# ---- Far cue ----


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(3, 16), st.integers(0, 28))
def test_no_stone_is_nearer_to_the_key_than_the_gap(seed, key_size, gap):
    scenes = FarScenes(key_size=key_size, gap=gap)
    scene = ShapesDataset(scenes, length=1, seed=seed).scene(0)
    key, stones = np.argwhere(scene.kinds == 1), np.argwhere(scene.kinds == 0)
    assert len(key) == key_size**2
    assert len(np.unique(scene.mask[labeled_shapes(scene)])) == 1
    apart = np.abs(stones[:, None] - key[None]).max(-1).min() - 1  # pixels between them
    assert apart >= gap
    assert scenes.bayes_accuracy(scene, 2 * gap + 1) == 0.25
    assert scenes.bayes_accuracy(scene, 2 * scenes.size + 1) == scenes.bayes_accuracy(scene) == 1


def test_far_cue_is_out_of_sight_of_the_tiny_backbone():
    # Enlarging the logits mixes positions 4 pixels apart, so a pixel's label can depend on pixels 8 + 4 away.
    assert 2 * FarScenes().gap + 1 >= FIELD_OF_VIEW + 2 * TinyBackbone.output_stride
    assert best_accuracy(FarScenes(), FIELD_OF_VIEW + 2 * TinyBackbone.output_stride) == 0.25


# ---- Errors ----


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PooledScenes(spacing=3), "spacing is 3"),
        (lambda: PooledScenes(spacing=65), "spacing is 65"),
        (lambda: PooledScenes(shift=-1), "shift is -1"),
        (lambda: PooledScenes(grain=-0.5), "grain is -0.5"),
        (lambda: FarScenes(key_size=2), "key_size is 2"),
        (lambda: FarScenes(gap=-1), "gap is -1"),
        (lambda: FarScenes(gap=40), "leave no room for stones"),
        (lambda: ShapesDataset(FarScenes(), "test"), "no split 'test'; there are train, val"),
        (lambda: ShapesDataset(FarScenes(), length=0), "length is 0"),
        (lambda: ShapesDataset(FarScenes(), seed=-1), "seed is -1"),
        (lambda: PooledScenes().bayes_accuracy(ShapesDataset(PooledScenes()).scene(0), 4), "window is 4"),
    ],
)
def test_errors_name_the_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("index", [-1, 3])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"scene {index} of 3"):
        ShapesDataset(PooledScenes(), length=3)[index]
