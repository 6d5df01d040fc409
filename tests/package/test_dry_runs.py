"""Twenty real steps of every recipe: its own crop, batch, precision and way to run a step, on data that can be learned.

On a GPU: ``pytest tests/package/test_dry_runs.py -m gpu -rA`` prints the losses; a warning that nobody has explained
fails.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CPU
from torchvision import tv_tensors

from emalab.data import DatasetSpec, LabeledImages, Sample, get_spec
from emalab.recipes import EvalConfig, Recipe, get_recipe, recipe_names
from emalab.runlog import read_log
from emalab.trainer import RunOptions, train

STEPS = 20
GPU = RunOptions(accelerator="cuda", num_workers=4, progress=False, log_every=1, checkpoint_every=STEPS)

# Of other packages, with the reason why they are no trouble of ours.
EXPLAINED = {
    r"AccumulateGrad node's stream does not match": "a CUDA graph is recorded on a stream of its own",
    r"multi-threaded, use of fork\(\) may lead to deadlocks": "torch's loader forks; Python 3.12 warns of it",
}


class Blobs(LabeledImages):
    """Images of colored patches: every class has a color, and some classes are much more frequent than others.

    So there is something to learn within a few steps, from random weights and with any number of classes. They are as
    large as to need no padding at half their size, which would make the loss of a batch depend on the scales drawn.
    """

    def __init__(self, spec: DatasetSpec, length: int, size: tuple[int, int]) -> None:
        self.spec = spec
        colors = np.random.default_rng(0).integers(0, 256, (spec.num_classes, 3), dtype=np.uint8)
        frequency = np.arange(1.0, spec.num_classes + 1) ** -2
        self.samples = [self._draw(index, size, colors, frequency / frequency.sum()) for index in range(length)]

    def _draw(self, index: int, size: tuple[int, int], colors: np.ndarray, frequency: np.ndarray) -> Sample:
        draw, (height, width) = np.random.default_rng(index), size
        patches = draw.choice(len(colors), (6, 6), p=frequency)
        rows, columns = np.arange(height) * 6 // height, np.arange(width) * 6 // width
        labels = patches[rows][:, columns].astype(np.uint8)
        noise = draw.integers(0, 64, (height, width, 1), dtype=np.uint8)
        image = torch.from_numpy(colors[labels] // 2 + noise).permute(2, 0, 1)
        return Sample(tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(labels)), f"blobs-{index}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def dry_run(recipe: Recipe, out: Path, options: RunOptions) -> tuple[list[float], list[str]]:
    """The losses of the run, and the warnings during it. It starts from random weights, wherever the recipe does."""
    spec = get_spec(recipe.data.name)
    recipe = replace(
        recipe,
        init_from=None,
        model=replace(recipe.model, backbone_weights=None),
        optim=replace(recipe.optim, iterations=STEPS, warmup=min(recipe.optim.warmup, 5)),
        evaluation=EvalConfig(every=0, output_stride=recipe.evaluation.output_stride),
    )
    height, width = recipe.data.crop_size
    data = Blobs(spec, recipe.optim.batch_size, (2 * height, 2 * width))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(recipe, out, options, train_data=data, eval_data=Blobs(spec, 2, (height, width)))
    texts = {f"{warning.category.__name__}: {warning.message}" for warning in caught}
    return [line["loss"] for line in read_log(out) if "loss" in line], sorted(texts)


def check(losses: list[float], texts: list[str]) -> None:
    first, last = np.mean(losses[:5]), np.mean(losses[-5:])
    print(f"loss {first:.3f} → {last:.3f}; warnings: {texts or 'none'}")
    assert len(losses) == STEPS
    assert last < first
    assert [text for text in texts if not any(re.search(pattern, text) for pattern in EXPLAINED)] == []


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder for checkpoints of up to a gigabyte, which do not outlive the test."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", recipe_names())
def test_of_every_recipe(name: str, out: Path) -> None:
    check(*dry_run(get_recipe(name), out, GPU))


@pytest.mark.parametrize("name", ["voc-r50-ablation", "coco-stuff-10k-r101"])
def test_in_small_on_a_cpu(name: str, out: Path) -> None:
    """The same with a shallow backbone and a few small crops, so that what a GPU will be told to do is right."""
    recipe = get_recipe(name)
    recipe = replace(
        recipe,
        data=replace(recipe.data, crop_size=(33, 33)),
        model=replace(recipe.model, backbone="resnet18", multi_grid=(), channels=64, head_channels=64),
        optim=replace(recipe.optim, batch_size=4),
    )
    check(*dry_run(recipe, out, replace(CPU, checkpoint_every=STEPS)))
