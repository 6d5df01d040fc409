"""Recipes: through JSON and back, each fit for its data, and clear about mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from emalab.data import get_spec
from emalab.data.scene_settings import SceneSettings
from emalab.optim import poly_lr
from emalab.recipes import (
    DataConfig,
    EvalConfig,
    OptimConfig,
    Recipe,
    get_recipe,
    recipe_from_dict,
    recipe_groups,
    recipe_names,
    recipe_to_dict,
)
from emalab.segmenter import build_segmenter


@pytest.mark.parametrize("name", recipe_names())
class TestEveryRecipe:
    def test_survives_json(self, name: str) -> None:
        recipe = get_recipe(name)
        assert recipe.name == name
        assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe

    def test_fits_its_data(self, name: str) -> None:
        recipe = get_recipe(name)
        spec = get_spec(recipe.data.name)
        assert recipe.model.num_classes == spec.num_classes
        assert {recipe.data.train_split, recipe.data.eval_split} <= set(spec.splits)

    def test_builds(self, name: str) -> None:
        recipe = get_recipe(name)
        with torch.device("meta"):  # shapes without memory
            model = build_segmenter(replace(recipe.model, backbone_weights=None))
        assert model.backbone.output_stride == model.config.output_stride
        for stride in (recipe.model.output_stride, recipe.evaluation.output_stride or recipe.model.output_stride):
            # Crops, and images padded for evaluation, whose corners coincide with positions of the feature map.
            assert not recipe.model.align_corners or {(side - 1) % stride for side in recipe.data.crop_size} == {0}

    def test_schedule_comes_out_even(self, name: str) -> None:
        optim = get_recipe(name).optim
        assert optim.iterations % optim.lr_hold == 0
        assert 0 <= optim.warmup < optim.iterations
        assert optim.batch_size % 4 == 0, "one or four GPUs share a batch"
        rates = [poly_lr(i, optim) for i in range(optim.iterations)]
        assert max(rates) <= optim.lr
        assert rates[-1] == 0
        assert min(rates[optim.warmup : -optim.lr_hold]) > 0


class TestPublished:
    """The rows of the paper, and that nothing of them differs but what they say."""

    def test_every_row_has_a_name(self) -> None:
        rows = {
            recipe.name: [(row.score, row.protocol) for row in recipe.published]
            for group in recipe_groups().values()
            for recipe in group
            if recipe.published and recipe.model.context == "ema"
        }
        assert rows == {
            "voc-r50-ablation": [(78.52, "single scale")],
            "voc-r101": [(80.05, "single scale"), (81.32, "multi-scale + flip")],
            "voc-r101-256": [(79.73, "single scale"), (80.94, "multi-scale + flip")],
            "voc-r101-chain-trainval": [(87.7, "on the test server")],
            "voc-r152-chain-trainval": [(88.2, "on the test server")],
            "context-59-r101": [(53.1, "over 59 or 60 classes")],
            "context-60-r101": [(53.1, "over 59 or 60 classes")],
            "coco-stuff-10k-r101": [(39.9, "on 10k test")],
        }

    def test_says_by_whom(self) -> None:
        recipes = [recipe for group in recipe_groups().values() for recipe in group]
        assert all(row.source for recipe in recipes for row in recipe.published)
        assert all("could not be checked" in recipe.notes for recipe in recipes if recipe.name.startswith("context"))

    def test_the_ablations_setting(self) -> None:
        ablation, plain = get_recipe("voc-r50-ablation"), get_recipe("voc-r50")
        assert (ablation.model.output_stride, ablation.evaluation.output_stride) == (16, 8)
        assert (ablation.optim.batch_size, ablation.optim.iterations) == (12, 30_000)
        assert ablation.data == plain.data
        assert replace(ablation.model, output_stride=8) == plain.model
        assert replace(ablation.optim, batch_size=16) == plain.optim

    def test_the_authors_training_everywhere(self) -> None:
        """One optimizer, one crop, one network but for its depth and classes; COCO alone is trained on for longer."""
        base = get_recipe("voc-r101")
        names = [n for n in recipe_names() if n.startswith(("voc-r101", "voc-r152", "context", "coco-stuff"))]
        for recipe in map(get_recipe, names):
            assert replace(recipe.data, name="", train_split="", eval_split="") == replace(
                base.data, name="", train_split="", eval_split=""
            )
            iterations = 150_000 if recipe.name.endswith("-coco") else 30_000
            assert recipe.optim == replace(base.optim, iterations=iterations)
            assert (recipe.precision, recipe.model.align_corners, recipe.model.multi_grid) == (
                "32-true",
                True,
                (1, 2, 4),
            )

    @pytest.mark.parametrize("depth", [101, 152])
    def test_the_chain_to_the_test_server(self, depth: int) -> None:
        coco, trainaug, trainval = (get_recipe(f"voc-r{depth}-{step}") for step in ("coco", *_CHAIN))
        assert (coco.init_from, trainaug.init_from, trainval.init_from) == (None, coco.name, trainaug.name)
        assert [r.data.name for r in (coco, trainaug, trainval)] == ["coco-voc", "voc", "voc"]
        assert [r.data.train_split for r in (coco, trainaug, trainval)] == ["train", "trainaug", "trainval"]
        assert trainaug.model == trainval.model == replace(coco.model, backbone_weights=None)
        assert get_spec("coco-voc").classes == get_spec("voc").classes, "so the classifier is carried on"


_CHAIN = ("chain-trainaug", "chain-trainval")


def test_a_recipe_from_before_a_field_existed() -> None:
    """Fields that a stored recipe lacks take their defaults, so old checkpoints load and resume."""
    stored = recipe_to_dict(get_recipe("shapes-tiny"))
    for section, name in (
        ("optim", "bias_lr_factor"),
        ("optim", "lr_hold"),
        ("optim", "accumulate_grad_batches"),
        ("data", "rotation"),
        ("model", "batch_norm_momentum"),
        ("model", "backbone_blocks"),
        ("model", "concat_input"),
        ("model", "auxiliary_channels"),
        ("optim", "auxiliary_weight"),
    ):
        del stored[section][name]
    for name in ("output_stride", "window", "overlap"):
        del stored["evaluation"][name]
    for name in ("init_from", "notes", "published"):
        del stored[name]
    for name in ("eps", "clamp"):
        del stored["model"]["ema"][name]
    assert recipe_from_dict(stored) == get_recipe("shapes-tiny")


def test_settings_of_scenes_from_before_they_had_fields() -> None:
    stored = recipe_to_dict(get_recipe("shapes-tiny"))
    del stored["data"]["scenes"]
    stored["data"]["name"] = "shapes-pooled:spread=40,spacing=12"
    data = recipe_from_dict(stored).data
    assert (data.name, data.scenes) == ("shapes-pooled", SceneSettings(spread=40.0, spacing=12))
    assert recipe_from_dict(recipe_to_dict(recipe_from_dict(stored))) == recipe_from_dict(stored)


def test_heads_differ_in_nothing_but_the_context() -> None:
    """So that a comparison of their scores is one of the heads. On real data each has the rate that suits it best."""
    suffixes = {"-fcn": "none", "-non-local": "non_local", "-deeplab-v3": "deeplab_v3", "-psp": "psp"}
    for name in ("shapes-pooled", "shapes-far", "camvid-lite2", "voc-animals-lite2", "voc-r50", "voc-r101"):
        ema = get_recipe(name)
        for suffix, context in suffixes.items():
            other = get_recipe(name + suffix)
            width = 512 if name.startswith("voc-r") and context == "psp" else ema.model.head_channels  # PSPNet's own
            model = replace(ema.model, context=context, head_channels=width)
            optim = replace(ema.optim, lr=other.optim.lr) if "lite2" in name else ema.optim
            expected = replace(
                ema, name=other.name, summary=other.summary, model=model, optim=optim, published=other.published
            )
            assert expected == other


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("shape-tiny", "shapes-tiny"), ("camvid", "camvid-lite2"), ("voc_animals", "voc-animals-lite2")],
)
def test_unknown_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(KeyError, match=f"no recipe '{typed}'; did you mean .*{meant}"):
        get_recipe(typed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 1}, "recipe has no field 'speed'; did you mean 'seed'. fields are name, summary, data"),
        ({"optim": {"learning_rate": 1}}, "recipe.optim has no field 'learning_rate'; fields are optimizer, lr"),
        ({"model": {"ema": {"bases": 1}}}, "recipe.model.ema has no field 'bases'"),
        ({"optim": {"optimizer": "adam"}}, "recipe.optim.optimizer must be one of sgd, adamw; got 'adam'"),
        ({"model": {"ema": {"norm": "l1"}}}, "recipe.model.ema.norm must be one of l2, layer, none; got 'l1'"),
        ({"precision": 32}, "recipe.precision must be one of 32-true, .*; got 32"),
        ({"published": [{"score": 1.0, "by": "me"}]}, r"recipe.published\[0\] has no field 'by'"),
        ({"data": {"name": "shapes-far:depth=3"}}, "recipe.data.scenes has no field 'depth'; fields are size, spacing"),
        ({"data": {"name": "shapes-far:gap=wide"}}, "recipe.data.name: 'wide' is no number for 'gap'"),
        ({"data": {"name": "shapes-far:gap=0.5"}}, "recipe.data.scenes.gap must be a whole number; got 0.5"),
        ({"data": "voc"}, "recipe.data must be an object with the fields name, .*; got 'voc'"),
    ],
)
def test_mistakes_in_a_file(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_from_dict(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataConfig(crop_size=(0, 64))}, "data.crop_size must be at least 1, got 0"),
        ({"data": DataConfig(scale_range=(2.0, 0.5))}, "data.scale_range must rise"),
        ({"data": DataConfig(flip=1.5)}, "data.flip must be at most 1, got 1.5"),
        ({"data": DataConfig(photometric=-0.1)}, "data.photometric must be at least 0, got -0.1"),
        ({"data": DataConfig(rotation=-5.0)}, "data.rotation must be at least 0, got -5.0"),
        ({"data": DataConfig(rotation=181.0)}, "data.rotation must be at most 180 degrees, got 181.0"),
        ({"data": DataConfig(scale_step=0.0)}, "data.scale_step must be above 0, got 0.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"optim": OptimConfig(iterations=0)}, "optim.iterations must be at least 1"),
        ({"optim": OptimConfig(lr_hold=0)}, "optim.lr_hold must be at least 1"),
        ({"optim": OptimConfig(lr=-1.0)}, "optim.lr must be at least 0"),
        ({"optim": OptimConfig(average=1.0)}, "optim.average must be below 1, got 1.0"),
        ({"optim": OptimConfig(average=-0.1)}, "optim.average must be at least 0, got -0.1"),
        ({"optim": OptimConfig(warmup=-1)}, "optim.warmup must be at least 0"),
        ({"evaluation": EvalConfig(batch_size=0)}, "evaluation.batch_size must be at least 1"),
        ({"evaluation": EvalConfig(every=-5)}, "evaluation.every must be at least 0"),
        ({"evaluation": EvalConfig(window=(0, 9))}, "evaluation.window must be at least 1, got 0"),
        ({"evaluation": EvalConfig(overlap=1.0)}, "evaluation.overlap must be below 1, got 1.0"),
        ({"evaluation": EvalConfig(overlap=-0.5)}, "evaluation.overlap must be at least 0, got -0.5"),
        ({"evaluation": EvalConfig(scales=())}, "evaluation.scales must be positive"),
        ({"evaluation": EvalConfig(scales=(0.0,))}, "evaluation.scales must be positive"),
        ({"optim": OptimConfig(batch_size=1)}, "too small for batch norm"),
    ],
)
def test_values_that_make_no_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"recipe odd: .*{message}"):
        Recipe(name="odd", **changes)


def test_a_single_image_is_enough_for_frozen_batch_norm() -> None:
    assert Recipe(optim=OptimConfig(batch_size=1, freeze_batch_norm=True)).optim.batch_size == 1
