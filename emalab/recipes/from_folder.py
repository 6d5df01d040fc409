"""A recipe for a folder of images and masks: what is not given follows from what is in it.

    from emalab import train
    from emalab.recipes.from_folder import recipe_for_folder
    result = train(recipe_for_folder("roofs/"), "runs/roofs")

The network is the shipped one, whose classifier starts anew: a few hundred images fine-tune it, and hardly train more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from emalab.data import DataError, LabeledImages, get_spec, load_dataset
from emalab.data.bands import read_header
from emalab.data.dataset import SegmentationDataset
from emalab.data.folder import CLASSES_FILE, folder_of
from emalab.data.folder_files import find_layout, listed, write_splits
from emalab.data.parts import Subset
from emalab.data.propose import propose_labels
from emalab.recipes.catalog import named_recipe
from emalab.recipes.config import EvalConfig, Recipe

__all__ = ["complete_folder", "describe_recipe", "recipe_for_folder"]

START = "emanet-lite2-voc-animals"  # the shipped network
_BASE = "voc-animals-lite2"  # the recipe that it was trained by
_TRAIN = ("train", "training", "trn")
_EVAL = ("val", "valid", "validation", "eval", "dev", "test", "testing")
_SMALL = 128  # pixels of a crop below which a stride of 16 would leave too few positions
_SIZED = 200  # images whose headers are looked at
_FEWEST_IMAGES = 4  # in a batch of many classes: for fewer, the crop shrinks
_LISTED = 32  # classes that are all named


class _Budget(NamedTuple):
    """What a device can do in a reasonable time: minutes on a CPU, an hour on a GPU."""

    crop: int  # largest side of a training crop, in pixels
    batch_size: int
    lr: float
    epochs: int  # passes over the images, within the next two
    fewest: int  # iterations
    pixels: float  # that are learned from in all
    logits: float  # of a batch: pixels times classes, each of which takes about 12 bytes


_BUDGETS = {
    "cpu": _Budget(crop=192, batch_size=8, lr=7e-4, epochs=60, fewest=100, pixels=0.9e8, logits=2**27),
    "gpu": _Budget(crop=512, batch_size=16, lr=1e-3, epochs=60, fewest=400, pixels=3e10, logits=2**30),
}


def recipe_for_folder(
    root: Path | str, device: Literal["auto", "cpu", "gpu"] = "auto", *, report: Callable[[str], object] = print
) -> Recipe:
    """The shipped network fine-tuned on a folder: every setting follows from the images, the masks and the device.

    Args:
        root: the folder, or its `classes.yaml`. What is missing there is written: `classes.yaml` from the values in the
            masks, and `splits/` where the images have no splits.
        device: what to choose sizes for; "auto" asks torch whether there is a GPU.
        report: takes a line for each file that is written.

    Returns:
        The recipe, to be trained as it is or changed by `dataclasses.replace`.

    Raises:
        DataError: the folder cannot be used; the message names the file and the way out.
    """
    complete_folder(root, report=report)
    name = str(root) if "/" in str(root) or folder_of(root) != Path(root) else f"{root}/"
    spec = get_spec(name)
    train, evaluation = _choose_splits(spec.splits)
    data = load_dataset(name, train)
    budget = _BUDGETS[_device() if device == "auto" else device]
    heights, widths = _sizes(data)
    crop = (_crop_side(heights, budget.crop), _crop_side(widths, budget.crop))
    crop, batch_size = _fit_classes(crop, spec.num_classes, budget)
    base = named_recipe(_BASE)
    iterations = _iterations(len(data), crop, batch_size, budget)
    large = max(int(heights.max()), int(widths.max())) > 1024
    on_cpu = budget is _BUDGETS["cpu"]
    return replace(
        base,
        name=re.sub(r"[^\w.-]+", "-", spec.title).strip(".-") or "folder",
        summary=f"{START} fine-tuned on {spec.title}",
        data=replace(
            base.data,
            name=name,
            train_split=train,
            eval_split=evaluation,
            crop_size=crop,
            scale_range=(0.5, 1.5) if on_cpu else base.data.scale_range,
        ),
        model=replace(
            base.model,
            num_classes=spec.num_classes,
            in_channels=spec.channels,
            backbone_weights=None,
            output_stride=8 if min(crop) <= _SMALL else base.model.output_stride,
        ),
        optim=replace(
            base.optim,
            lr=budget.lr,
            batch_size=batch_size,
            iterations=iterations,
            warmup=min(base.optim.warmup, iterations // 10),
        ),
        evaluation=EvalConfig(every=0 if on_cpu else max(iterations // 4, 1), window=(768, 768) if large else None),
        precision="32-true" if on_cpu else base.precision,
        execution="eager" if on_cpu else base.execution,
        init_from=START,
        notes="",
        published=(),
    )


def complete_folder(root: Path | str, *, report: Callable[[str], object] = print) -> None:
    """Write `classes.yaml` and `splits/` into a folder where they are missing; errors as `recipe_for_folder`."""
    folder = folder_of(root)
    if folder == Path(root) and folder.is_dir() and not (folder / CLASSES_FILE).exists():
        proposal = propose_labels(folder)
        proposal.write()
        report(
            f"wrote {proposal.file}, from {proposal.num_masks} masks that hold {proposal.in_words()}; give names there"
        )
    if folder.is_dir():
        layout = find_layout(folder)
        if not layout.written:
            paths = write_splits(folder, layout)
            report(f"wrote {' and '.join(map(str, paths))}: the images have no splits, and these stay as they are")


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def describe_recipe(recipe: Recipe) -> list[tuple[str, str]]:
    """What `recipe_for_folder` chose, as rows of (what, choice)."""
    data, optim, spec = recipe.data, recipe.optim, get_spec(recipe.data.name)
    train, evaluation = (load_dataset(data.name, split) for split in (data.train_split, data.eval_split))
    passes = optim.iterations * optim.batch_size / len(train)
    where = "in windows" if recipe.evaluation.window else "whole"
    (height, width), (low, high) = data.crop_size, data.scale_range
    steps = f"{optim.iterations} iterations of {optim.batch_size} images ({passes:.0f} passes)"
    return [
        ("classes", ", ".join(spec.classes) if len(spec.classes) <= _LISTED else listed(spec.classes)),
        ("train", f"{data.train_split}, {_images(len(train))}"),
        ("evaluation", f"{data.eval_split}, {_images(len(evaluation))}, {where}"),
        ("network", f"{recipe.init_from}, {spec.num_classes} classes anew"),
        *([("channels", f"{spec.channels}, their mean and deviation from {data.train_split}")] * (spec.channels != 3)),
        (
            "crop",
            f"{height}×{width} pixels of images scaled by {low:g}–{high:g}",
        ),
        (
            "schedule",
            f"{steps}, {optim.optimizer}",
        ),
        ("learning rate", f"{optim.lr:g}, the head's {optim.head_lr_factor:g} times that"),
    ]


def _choose_splits(splits: Sequence[str]) -> tuple[str, str]:
    """What to train on and what to score: by their usual names, or a tenth of the only split held out."""
    train = next((split for name in _TRAIN for split in splits if split.lower() == name), None)
    evaluation = next((split for name in _EVAL for split in splits if split.lower() == name), None)
    if train is None and len(splits) == 1:
        train, evaluation = splits[0], None
    if train is None:
        raise DataError(
            f"which of the splits {', '.join(splits)} to train on is not clear: call one train and one val, or name "
            "the images of each in splits/train.txt and splits/val.txt"
        )
    if evaluation is None:
        return f"{train}/kept", f"{train}/held-out"
    return train, evaluation


def _sizes(data: LabeledImages) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths of some images, read from their headers."""
    whole = data.dataset if isinstance(data, Subset) else data
    assert isinstance(whole, SegmentationDataset)
    indices = np.linspace(0, len(whole) - 1, min(len(whole), _SIZED)).astype(int)
    sizes = [read_header(whole.pairs[index].image, whole.reading.max_pixels)[:2] for index in indices]
    widths, heights = np.array(sizes).T
    return heights, widths


def _crop_side(sides: np.ndarray, most: int) -> int:
    """The median side, in multiples of the network's stride, and within what the device can do."""
    return int(np.clip(np.ceil(np.median(sides) / 16) * 16, 32, most))


def _fit_classes(crop: tuple[int, int], classes: int, budget: _Budget) -> tuple[tuple[int, int], int]:
    """Crop and batch size, smaller where the logits of that many classes would fill the memory."""
    height, width = crop
    shrink = math.sqrt(budget.logits / (_FEWEST_IMAGES * classes * height * width))
    if shrink < 1:
        height, width = (max(int(side * shrink) // 16 * 16, 32) for side in crop)
    affordable = int(budget.logits // (classes * height * width))
    return (height, width), min(budget.batch_size, max(affordable, _FEWEST_IMAGES))


def _iterations(images: int, crop: tuple[int, int], batch_size: int, budget: _Budget) -> int:
    """So many passes over the images as the device has time for."""
    affordable = round(budget.pixels / (crop[0] * crop[1] * batch_size))
    wanted = round(budget.epochs * images / batch_size)
    return max(min(wanted, affordable), budget.fewest)


def _device() -> Literal["cpu", "gpu"]:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"
