"""The shipped network: what it is, and that it sees."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut, chelsea

from emalab.checkpoints import read_metadata, shipped_weights
from emalab.data import get_spec
from emalab.prediction import predict
from emalab.recipes import recipe_names
from emalab.segmenter import DEFAULT_WEIGHTS, Segmenter

CLASSES = get_spec("voc-animals").classes


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return Segmenter.from_pretrained()


def center(labels: np.ndarray) -> np.ndarray:
    """The middle half of the image in either direction."""
    height, width = labels.shape
    return labels[height // 4 : -height // 4, width // 4 : -width // 4]


@pytest.mark.parametrize(("photo", "name"), [(chelsea, "cat"), (astronaut, "person")], ids=["cat", "person"])
def test_segments(model: Segmenter, photo: object, name: str) -> None:
    labels = predict(model, Image.fromarray(photo()), max_side=320)
    assert labels.shape == photo().shape[:2]
    assert (center(labels) == CLASSES.index(name)).mean() > 0.6


def test_is_ready_to_use(model: Segmenter) -> None:
    assert not model.training
    assert model.config.num_classes == len(CLASSES)
    assert model.context.bases.isfinite().all()


def test_says_how_it_came_to_be() -> None:
    metadata = read_metadata(DEFAULT_WEIGHTS)
    recipe = metadata["recipe"]
    assert (recipe.model.context, recipe.data.name) == ("ema", "voc-animals")
    assert recipe.name in recipe_names()
    for scores in metadata["scores"].values():
        assert scores["images"] == 297
        assert 0.3 < scores["miou"] < 0.95
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?", metadata["commit"])
    assert metadata["versions"]["torch"]
    assert "VOC" in metadata["data"]


def test_is_small() -> None:
    assert shipped_weights()[DEFAULT_WEIGHTS].stat().st_size < 16e6
