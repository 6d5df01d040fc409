"""Predictions as the servers and tools of the benchmarks take them.

- PASCAL VOC's server: `results/VOC2012/Segmentation/comp6_SPLIT_cls/NAME.png`, class indices as an 8-bit palette image
  of the photograph's size, packed as `results.tgz` (development kit, §5). `comp6` is the competition for methods that
  have learned from more than VOC's own labels; SBD's are more.
- COCO-Stuff: `NAME.png` with the values of the release's own label maps, 0–181, for comparison pixel by pixel; and
  `stuff_SPLIT_results.json`, what the COCO-Stuff API evaluates: run-length masks of the stuff classes 92–182, and one
  of 183, "other", for all things together.
- Others: `NAME.png` with class indices and the benchmark's colors.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from emalab.data import LabeledImages
from emalab.data.coco_stuff import COCO_STUFF_10K, COCO_STUFF_164K, IDS
from emalab.data.errors import DataError
from emalab.data.loader import ReadingLoader
from emalab.data.voc import VOC
from emalab.evaluation import check_channels, check_classes, share_of_rank
from emalab.files import write_atomically
from emalab.inference import predict_labels
from emalab.progress import progress_bar
from emalab.segmenter import Segmenter
from emalab.views import SINGLE_SCALE, Views
from emalab.viz import save_labels

__all__ = ["coco_stuff_results", "write_submission"]

_FIRST_STUFF, _OTHER = 92, 183  # COCO's ids
_STUFF_VALUES = np.array([coco_id - 1 for coco_id in IDS.values()], np.uint8)  # class index -> value in the release


@torch.inference_mode()
def write_submission(
    model: Segmenter,
    dataset: LabeledImages,
    split: str,
    out: Path,
    views: Views = SINGLE_SCALE,
    *,
    num_workers: int = 0,
    progress: bool = False,
) -> Path:
    """Predict the labels of every image and write them in the benchmark's format; labels of ``dataset`` are not read.

    Under a process group the ranks share the images, and the first packs what all have written.

    Args:
        model: evaluated on the device that its weights are on, in evaluation mode (restored afterwards).
        dataset: a split of a benchmark with the network's number of classes; `emalab.data.load_images` has those
            without labels too.
        split: how the benchmark calls it.
        out: folder to write to.
        views: scales, mirror images and windows to average over.
        num_workers: processes that decode images.
        progress: show a bar.

    Returns:
        What to hand in: the archive, the JSON file, or the folder of label maps.

    Raises:
        DataError: an image that cannot be read; for COCO-Stuff, one without a number in its name, or no pycocotools.
        ValueError: another number of classes or channels, or no images.
    """
    check_classes(model.config.num_classes, dataset)
    check_channels(model.config.in_channels, dataset)
    spec, device, was_training = dataset.spec, model.normalize.mean.device, model.training
    voc, stuff = spec.name == VOC.name, spec.name in (COCO_STUFF_10K.name, COCO_STUFF_164K.name)
    folder = out / (f"results/VOC2012/Segmentation/comp6_{split}_cls" if voc else "labels")
    if stuff:
        _run_lengths()  # what will be missing at the end is missed now
    names = []
    model.eval()
    try:
        for image, name in _images(dataset, num_workers, progress):
            if stuff:
                _image_id(name)
            names.append(name)
            labels = predict_labels(model, image[None].to(device), views)
            values, path = labels[0].cpu().numpy(), folder / f"{name}.png"
            if stuff:
                _save_values(_STUFF_VALUES[values], path)
            else:
                save_labels(values, spec, path)
    finally:
        model.train(was_training)
    paths = [folder / f"{name}.png" for name in _of_all_ranks(names)]
    if voc:
        return _pack(paths, out / "results.tgz", _write_archive)
    return _pack(paths, out / f"stuff_{split}_results.json", _write_results) if stuff else folder


def coco_stuff_results(values: NDArray[np.uint8], image_id: int) -> list[dict[str, object]]:
    """One label map (h, w), with values as in COCO-Stuff's release, in the result format of the COCO-Stuff API.

    Returns:
        For each stuff class in it, and for the things together, ``image_id``, ``category_id`` and ``segmentation``: a
        mask as {"size": [h, w], "counts": run lengths in COCO's compressed form}.
    """
    ids = values.astype(np.uint16) + 1
    ids[ids < _FIRST_STUFF] = _OTHER
    results: list[dict[str, object]] = []
    for category in np.unique(ids):
        mask = _run_lengths().encode(np.asfortranarray(ids == category, np.uint8))
        segmentation = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        results.append({"image_id": image_id, "category_id": int(category), "segmentation": segmentation})
    return results


class _Images(Dataset[tuple[Tensor, str]]):
    """Images and names of this rank's share of a data set."""

    def __init__(self, dataset: LabeledImages) -> None:
        self.dataset, self.indices = dataset, share_of_rank(len(dataset))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        image, name = self.dataset.image(self.indices[index])
        return image.as_subclass(Tensor), name


def _images(dataset: LabeledImages, num_workers: int, progress: bool) -> Iterator[tuple[Tensor, str]]:
    images = _Images(dataset)
    loader = ReadingLoader(images, num_workers, batch_size=None)
    disable = not progress or images.indices.start > 0
    return iter(progress_bar(loader, "predicting", unit="img", disable=disable, leave=False))


def _of_all_ranks(names: list[str]) -> list[str]:
    """The names of every rank, sorted; all ranks have written their files when this returns."""
    if not dist.is_initialized():
        return sorted(names)
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, names)
    return sorted(name for share in gathered for name in share)


def _pack(paths: list[Path], target: Path, write: Callable[[list[Path], Path], None]) -> Path:
    if not dist.is_initialized() or dist.get_rank() == 0:
        write_atomically(target, lambda temporary: write(paths, temporary))
    return target


def _write_archive(paths: list[Path], target: Path) -> None:
    """A .tgz in which every path begins with results/."""
    with tarfile.open(target, "w:gz") as archive:
        for path in paths:
            archive.add(path, Path(*path.parts[-5:]).as_posix())


def _write_results(paths: list[Path], target: Path) -> None:
    """A JSON list, one line for each image."""
    lines = []
    for path in paths:
        with Image.open(path) as values:
            results = coco_stuff_results(np.asarray(values), _image_id(path.stem))
        lines.append(",\n".join(json.dumps(result) for result in results))
    target.write_text("[" + ",\n".join(lines) + "]\n", encoding="utf-8")


def _save_values(values: NDArray[np.uint8], path: Path) -> None:
    write_atomically(path, lambda temporary: Image.fromarray(values).save(temporary, "PNG"))


def _image_id(name: str) -> int:
    """COCO's number of an image: 000000000139, or COCO_train2014_000000000077 in the 10k release."""
    number = name.rpartition("_")[2]
    if not number.isdecimal():
        raise DataError(f"{name} is not an image of COCO: its name should end in the image's number")
    return int(number)


def _run_lengths() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DataError(
            "results for COCO-Stuff are COCO's run-length codes, which pycocotools makes: pip install pycocotools"
        ) from error
    return mask
