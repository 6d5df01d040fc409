"""Mean and standard deviation of each channel, computed from the training images where no weights prescribe them.

Both are part of the network's configuration, so that checkpoints and records keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.distributed as dist

from emalab.checkpoints import read_recipe
from emalab.data import LabeledImages
from emalab.data.conversion import run_all
from emalab.initial_weights import find_initial_weights
from emalab.processes import of_all_ranks
from emalab.recipes import Recipe
from emalab.segmenter_config import SMALLEST_STD, SegmenterConfig

__all__ = ["channel_statistics", "with_statistics"]

_Values = tuple[float, ...]


def with_statistics(
    recipe: Recipe,
    data: LabeledImages,
    last: Path,
    runs: Path,
    *,
    report: Callable[[str], object] = lambda line: None,
    progress: bool = False,
) -> Recipe:
    """``recipe`` with ``model.channel_mean`` and ``channel_std``, if the network needs them and the recipe lacks them.

    A resumed run keeps the values that it began with. A network that starts from the weights of another one, for the
    same number of channels, takes over its values. All others, except for RGB images, get those of ``data``.

    Args:
        recipe: what to train.
        data: the images to learn from, all of which are read.
        last: the run's checkpoint, if it exists.
        runs: as in `find_initial_weights`.
        report: takes a line about what was computed.
        progress: show a bar.

    Raises:
        DataError: an image cannot be read.
        FileNotFoundError, CheckpointError: as in `find_initial_weights` and `emalab.checkpoints.read_recipe`.
    """
    config = recipe.model
    if config.channel_mean or (config.in_channels == 3 and recipe.init_from is None):
        return recipe
    if earlier := _earlier(recipe, last, runs):
        mean, std = earlier.channel_mean, earlier.channel_std
    elif config.in_channels == 3:
        return recipe
    else:
        first = not dist.is_initialized() or dist.get_rank() == 0
        mean, std = of_all_ranks(channel_statistics(data, progress=progress) if first else ((), ()))[0]
        report(f"channels of {recipe.data.train_split}: mean {_shown(mean)}; deviation {_shown(std)} (of 0–1)")
    return replace(recipe, model=replace(config, channel_mean=mean, channel_std=std))


def channel_statistics(data: LabeledImages, *, progress: bool = False) -> tuple[_Values, _Values]:
    """Mean and standard deviation of each channel over all pixels of ``data``, in 0–1, to four decimals.

    Integers are summed, so that the number of threads changes nothing. A deviation is at least `SMALLEST_STD`.

    Raises:
        DataError: an image cannot be read.
    """

    powers = np.stack([np.arange(256) ** power for power in range(3)])

    def sums(index: int) -> np.ndarray:
        """Σ 1, Σ v and Σ v² over the pixels of an image: int64 (3, c)."""
        image, _ = data.image(index)
        counts = [np.bincount(channel.reshape(-1), minlength=256) for channel in np.asarray(image)]
        return powers @ np.stack(counts, axis=1)

    pixels, first, second = np.sum(run_all(sums, range(len(data)), "reading images", None, progress), axis=0)
    mean = first / pixels / 255
    std = np.sqrt(np.maximum(second / pixels / 255**2 - mean**2, 0))
    return _rounded(mean), tuple(max(value, SMALLEST_STD) for value in _rounded(std))


def _earlier(recipe: Recipe, last: Path, runs: Path) -> SegmenterConfig | None:
    """Configuration of the network that training starts from, if it takes the same number of channels."""
    if last.exists():
        return read_recipe(last).model
    if recipe.init_from is None:
        return None
    config = read_recipe(find_initial_weights(recipe, runs)).model
    return config if config.in_channels == recipe.model.in_channels else None


def _rounded(values: np.ndarray) -> _Values:
    return tuple(round(float(value), 4) for value in values)


def _shown(values: _Values) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
