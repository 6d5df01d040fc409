"""The paper's benchmarks at the scale that a computer allows: with the release the paper's experiment, else a miniature."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emalab import RunOptions, Segmenter
from emalab.data import LabeledImages, get_spec, load_dataset
from emalab.data.coco_stuff import convert_coco_stuff_10k
from emalab.data.context import convert_context
from emalab.data.sbd import convert_sbd
from emalab.data.spec import DatasetSpec
from emalab.inference import predict_labels
from emalab.options import run_folder
from emalab.recipes import Recipe
from emalab.views import SINGLE_SCALE, Views
from lab import miniature

__all__ = [
    "Benchmark",
    "choose",
    "confusions",
    "differences",
    "formats",
    "pixel_shares",
    "predicted_by",
]


def _make_voc(root: Path) -> None:
    miniature.write_voc(root)
    convert_sbd(root)


def _make_context(root: Path) -> None:
    miniature.write_context(root)
    convert_context(root)


def _make_coco_stuff(root: Path) -> None:
    miniature.write_coco_stuff_10k(root)
    convert_coco_stuff_10k(root)


# Where a release lies under a data root, and what makes its miniature there.
_RELEASES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "voc": ("VOCdevkit/VOC2012", _make_voc),
    "context-59": ("VOCdevkit/VOC2010", _make_context),
    "context-60": ("VOCdevkit/VOC2010", _make_context),
    "coco-stuff-10k": ("cocostuff-10k-v1.1", _make_coco_stuff),
}


# Of a miniature's run: the more classes, the longer a step.
_ITERATIONS = {"voc": 60, "context-59": 40, "context-60": 40, "coco-stuff-10k": 30}


@dataclass(frozen=True)
class Benchmark:
    """A published recipe, what a chapter trains in its place, and on which files."""

    published: Recipe
    recipe: Recipe
    """The same as `published` at full scale."""
    data_root: Path
    runs: Path
    """The folder that holds the folders of runs."""
    full: bool

    @cached_property
    def spec(self) -> DatasetSpec:
        return get_spec(self.recipe.data.name)

    @cached_property
    def train_data(self) -> LabeledImages:
        return self._load(self.recipe.data.train_split)

    @cached_property
    def eval_data(self) -> LabeledImages:
        return self._load(self.recipe.data.eval_split)

    def _load(self, split: str) -> LabeledImages:
        return load_dataset(self.spec.name, split, self.data_root)

    @property
    def whole(self) -> bool:
        """Whether both splits have their published sizes, so that scores may be compared."""
        data = self.recipe.data
        return (len(self.train_data), len(self.eval_data)) == (
            self.spec.published_size(data.train_split),
            self.spec.published_size(data.eval_split),
        )

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.runs / run_folder(self.recipe.name, self.recipe.seed)

    @property
    def options(self) -> RunOptions:
        """A full run shows its progress, and resumes where it was interrupted."""
        return RunOptions(
            data_root=self.data_root,
            resume=self.full,
            progress=self.full,
            log_every=20 if self.full else 5,
            accelerator="auto" if self.full else "cpu",
        )

    def compared(self, scores: Mapping[str, float]) -> list[dict[str, object]]:
        """Rows for a table: published scores beside those of this run, in percent, where the data are whole."""
        rows = []
        for published in self.published.published:
            row: dict[str, object] = {
                "recipe": self.published.name,
                "protocol": published.protocol,
                "published": published.score,
            }
            if self.full and self.whole:
                ours = scores.get(published.protocol, scores["single scale"])
                row |= {
                    "this run": 100 * ours,
                    "difference": 100 * ours - published.score,
                }
            rows.append(row)
        return rows


def choose(
    recipes: Iterable[Recipe], data_root: Path | None, runs: Path
) -> dict[str, Benchmark]:
    """For each recipe its release below `data_root`, or a miniature and a short run; by the names of the data sets.

    Prints a line for each release that is missing. Without `data_root` nothing is looked for.
    """
    small = Path(tempfile.mkdtemp())
    chosen: dict[str, Benchmark] = {}
    for recipe in recipes:
        name = recipe.data.name
        place, make = _RELEASES[name]
        if data_root is not None and (data_root / place).is_dir():
            chosen[name] = Benchmark(recipe, recipe, data_root, runs, full=True)
            continue
        if data_root is not None:
            print(f"EMALAB_FULL is set, but there is no {place} in EMALAB_DATA.")
        if not (small / place).is_dir():
            make(small)
        short = miniature.miniature_recipe(recipe, _ITERATIONS[name])
        chosen[name] = Benchmark(recipe, short, small, small / "runs", full=False)
    return chosen


def formats(rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """For a table of compared scores: two digits, and a sign where they are differences."""
    signed = {"difference": "{:+.2f}", "ahead by": "{:+.2f}"}
    return {
        head: signed.get(head, "{:.2f}")
        for head, value in rows[0].items()
        if isinstance(value, float)
    }


def differences(recipe: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Fields in which two recipes differ, as dotted paths, with both values; names and notes aside."""
    described = {"name", "summary", "notes", "published"}
    ours, theirs = (
        {
            key: value
            for key, value in _flat(asdict(r)).items()
            if key.split(".")[0] not in described
        }
        for r in (recipe, other)
    )
    return {
        key: (value, theirs[key]) for key, value in ours.items() if value != theirs[key]
    }


def _flat(nested: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= (
            _flat(value, f"{path}{key}.")
            if isinstance(value, dict)
            else {path + key: value}
        )
    return flat


def predicted_by(
    model: Segmenter, image: Tensor, views: Views = SINGLE_SCALE
) -> Tensor:
    """Labels (h, w) on the CPU of an image (3, h, w); `views` as in `emalab.inference.predict_labels`."""
    batch = image.as_subclass(Tensor)[None].to(model.normalize.mean.device)
    with torch.inference_mode():
        return predict_labels(model, batch, views)[0].cpu()


def confusions(
    dataset: LabeledImages, predict: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """A confusion matrix (classes, classes) for each image, rows are labels; `predict` takes images (3, h, w)."""
    classes = dataset.spec.num_classes
    for sample in dataset:
        mask = sample.mask.as_subclass(Tensor).long()
        valid = mask != dataset.spec.ignore_index
        pairs = classes * mask[valid] + predict(sample.image.as_subclass(Tensor))[valid]
        yield torch.bincount(pairs, minlength=classes**2).unflatten(0, (classes, -1))


def pixel_shares(dataset: LabeledImages, most: int = 1000) -> NDArray[np.float64]:
    """Share of the labeled pixels (classes,) of each class, from at most so many evenly spaced samples."""
    count, classes = min(len(dataset), most), dataset.spec.num_classes
    counts = np.zeros(classes)
    for i in range(count):
        mask = np.asarray(dataset.mask(i * len(dataset) // count))
        counts += np.bincount(
            mask[mask != dataset.spec.ignore_index], minlength=classes
        )
    return counts / counts.sum()
