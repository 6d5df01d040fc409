"""The time of one training step, as the trainer takes it, on random images that are already on the device."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from torchvision import tv_tensors

from emalab.data import LabeledImages, Sample, get_spec
from emalab.recipes import Recipe
from emalab.trainer import RunOptions, Trainer

STEPS_AT_ONCE = 5  # that one measurement waits for: the host may run ahead of the device as in training


class RandomImages(LabeledImages):
    """Uniform random images and labels in place of a benchmark's, with its classes.

    Args:
        name: of the benchmark.
        size: height and width in pixels.
        count: images.
    """

    def __init__(self, name: str, size: tuple[int, int], count: int) -> None:
        self.spec, self.size, self.count = get_spec(name), size, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(range(self.count)[index])
        image = torch.randint(256, (3, *self.size), generator=generator)
        mask = torch.randint(self.spec.num_classes, self.size, generator=generator)
        return Sample(
            tv_tensors.Image(image.to(torch.uint8)),
            tv_tensors.Mask(mask.to(torch.uint8)),
            str(index),
        )


@contextmanager
def training(
    recipe: Recipe, options: RunOptions
) -> Iterator[tuple[Trainer, Tensor, Tensor]]:
    """A trainer of the recipe from random weights, with one batch of this rank: images and labels on its device."""
    model = replace(recipe.model, backbone_weights=None)
    recipe = replace(recipe, model=model, init_from=None)
    data = RandomImages(recipe.data.name, recipe.data.crop_size, 1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, Path(folder) / "run", options, data, data)
        trainer.model.train()
        count = recipe.optim.batch_size // trainer.fabric.world_size
        device = trainer.fabric.device
        samples = RandomImages(recipe.data.name, recipe.data.crop_size, count)
        images = torch.stack([s.image.as_subclass(Tensor) for s in samples]).to(device)
        masks = torch.stack([s.mask.as_subclass(Tensor) for s in samples]).to(device)
        yield trainer, images, masks


def step_times(
    recipe: Recipe, options: RunOptions, warm_up: int = 8, repeats: int = 5
) -> dict[str, Any]:
    """Milliseconds of a step: median, least and most of the measurements, each the mean of a few steps in a row.

    Args:
        recipe: what to train; weights are random.
        options: device and number of processes.
        warm_up: steps before the first measurement; compilation and recording fall into them.
        repeats: measurements.
    """
    with training(recipe, options) as (trainer, images, masks):
        begun = time.perf_counter()
        for _ in range(warm_up):
            loss = trainer.step(images, masks)
        value = loss.item()  # waits for the device
        warm_up_seconds = time.perf_counter() - begun
        timer = Timer(
            "step(images, masks)",
            globals={"step": trainer.step, "images": images, "masks": masks},
        )
        times = [1e3 * timer.timeit(STEPS_AT_ONCE).mean for _ in range(repeats)]
        median, on_gpu = statistics.median(times), images.is_cuda
        return {
            "recipe": recipe.name,
            "output_stride": recipe.model.output_stride,
            "execution": recipe.execution,
            "precision": recipe.precision,
            "gpus": trainer.fabric.world_size,
            "batch_per_gpu": len(images),
            "crop": list(recipe.data.crop_size),
            "ms": median,
            "ms_min": min(times),
            "ms_max": max(times),
            "images_per_second": 1e3 * recipe.optim.batch_size / median,
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9
            if on_gpu
            else None,
            "warm_up_seconds": warm_up_seconds,
            "loss": value,
        }


def tiny(recipe: Recipe) -> Recipe:
    """The recipe cut down to what a CPU does in a second, to try a program."""
    return replace(
        recipe,
        precision="32-true",
        execution="eager",
        data=replace(recipe.data, crop_size=(32, 32)),
        optim=replace(recipe.optim, batch_size=2),
    )
