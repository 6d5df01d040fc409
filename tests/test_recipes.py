"""Recipes: through JSON and back, each fit for its data, and clear about mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from emalab.data import get_spec
from emalab.recipes import (
    DataConfig,
    EvalConfig,
    OptimConfig,
    Recipe,
    get_recipe,
    recipe_from_dict,
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
        model = build_segmenter(replace(get_recipe(name).model, backbone_weights=None))
        assert model.backbone.output_stride == model.config.output_stride


def test_a_recipe_from_before_a_field_existed() -> None:
    """Fields that a stored recipe lacks take their defaults, so old checkpoints load and resume."""
    stored = recipe_to_dict(get_recipe("shapes-tiny"))
    for section, name in (
        ("optim", "bias_lr_factor"),
        ("optim", "lr_hold"),
        ("model", "batch_norm_momentum"),
        ("model", "backbone_blocks"),
    ):
        del stored[section][name]
    assert recipe_from_dict(stored) == get_recipe("shapes-tiny")


def test_heads_differ_in_nothing_but_the_context() -> None:
    """So that a comparison of their scores is one of the heads."""
    suffixes = {"-fcn": "none", "-non-local": "non_local", "-deeplab-v3": "deeplab_v3", "-psp": "psp"}
    for name in ("shapes-pooled", "shapes-far", "camvid-lite2", "voc-animals-lite2", "voc-r50", "voc-r101"):
        ema = get_recipe(name)
        for suffix, context in suffixes.items():
            other = get_recipe(name + suffix)
            width = 512 if name.startswith("voc-r") and context == "psp" else ema.model.head_channels  # PSPNet's own
            model = replace(ema.model, context=context, head_channels=width)
            expected = replace(ema, name=other.name, summary=other.summary, model=model, published=other.published)
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
        ({"speed": 1}, "recipe has no field 'speed'; fields are name, summary, data"),
        ({"optim": {"learning_rate": 1}}, "recipe.optim has no field 'learning_rate'; fields are optimizer, lr"),
        ({"model": {"ema": {"bases": 1}}}, "recipe.model.ema has no field 'bases'"),
        ({"optim": {"optimizer": "adam"}}, "recipe.optim.optimizer must be one of sgd, adamw; got 'adam'"),
        ({"model": {"ema": {"norm": "l1"}}}, "recipe.model.ema.norm must be one of l2, layer, none; got 'l1'"),
        ({"precision": 32}, "recipe.precision must be one of 32-true, .*; got 32"),
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
        ({"optim": OptimConfig(iterations=0)}, "optim.iterations must be at least 1"),
        ({"optim": OptimConfig(lr_hold=0)}, "optim.lr_hold must be at least 1"),
        ({"optim": OptimConfig(lr=-1.0)}, "optim.lr must be at least 0"),
        ({"optim": OptimConfig(warmup=-1)}, "optim.warmup must be at least 0"),
        ({"evaluation": EvalConfig(batch_size=0)}, "evaluation.batch_size must be at least 1"),
        ({"evaluation": EvalConfig(every=-5)}, "evaluation.every must be at least 0"),
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
