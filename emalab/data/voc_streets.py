"""VOC's images with animals, joined with street scenes that have VOC's labels: more people and backgrounds.

Street scenes show no animal that VOC labels, many people and cars, and much that is background. They are CamVid's train
and val, and every fourth scene of Cityscapes' train at 256×256, so that about three of four images are VOC's. Objects
that VOC labels in another way than these releases are ignored: riders and bicycles are two classes in VOC, and trucks
are not a class.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from emalab.data.camvid import CAMVID, load_camvid
from emalab.data.cityscapes import CITYSCAPES_256, load_cityscapes_256
from emalab.data.dataset import LabeledImages, Sample, SegmentationDataset
from emalab.data.spec import DatasetSpec
from emalab.data.voc import VOC_ANIMALS, load_voc

__all__ = ["VOC_STREETS", "Joined", "load_voc_streets"]

_EVERY = 4  # scenes of Cityscapes, by their number, so that a folder with these alone will do

VOC_STREETS = replace(
    VOC_ANIMALS,
    name="voc-animals-streets",
    title="PASCAL VOC 2012, images with animals, and street scenes",
    splits=("trainaug", "animals", "val"),
    source=f"{VOC_ANIMALS.source}; CamVid (468 train and val) and Cityscapes at 256×256 (744 of train), both for "
    "non-commercial research",
    split_sizes=(4343, 3131, 297),
)
"""``trainaug`` is all, VOC's images first; ``animals`` is VOC's trainaug alone, and ``val`` VOC's val."""

_MEANT = {  # by both releases' names; classes that VOC lacks are background
    "Car": "car",
    "car": "car",
    "Pedestrian": "person",
    "person": "person",
    "bus": "bus",
    "train": "train",
    "motorcycle": "motorbike",
    "bicycle": "bicycle",
}
_IGNORED = ("Bicyclist", "rider", "truck")


def vocs_labels(spec: DatasetSpec) -> Mapping[int, int]:
    """Labels of ``spec`` as VOC's, or as ignored."""

    def meant(name: str) -> int:
        return (
            VOC_STREETS.ignore_index if name in _IGNORED else VOC_STREETS.classes.index(_MEANT.get(name, "background"))
        )

    return {label: meant(name) for label, name in enumerate(spec.classes)}


class Joined(LabeledImages):
    """Data sets of one benchmark, one after the other.

    Args:
        parts: at least one; the benchmark is that of the first.
    """

    def __init__(self, *parts: LabeledImages) -> None:
        self.spec, self._parts = parts[0].spec, parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        part = next(i for i, end in enumerate(self._ends) if index < end)
        return self._parts[part][index - self._ends[part] + len(self._parts[part])]

    def sample_names(self) -> list[str] | None:
        """The names of the samples, in order."""
        names = [part.sample_names() for part in self._parts]
        return None if None in names else [name for of_part in names for name in of_part or ()]


def load_voc_streets(split: str, root: Path | None) -> LabeledImages:
    """The releases of `voc-animals`, `camvid` and `cityscapes-256` under `root`; errors as in their loaders."""
    animals = load_voc(VOC_STREETS, "trainaug" if split == "animals" else split, root)
    if split != "trainaug":
        return animals
    camvid, cityscapes = load_camvid("trainval", root), load_cityscapes_256("train", root)
    scenes = [pair for pair in cityscapes.pairs if int(pair.image.stem) % _EVERY == 1]
    void = {CAMVID.num_classes: VOC_STREETS.ignore_index}
    unlabeled = {CITYSCAPES_256.ignore_index: VOC_STREETS.ignore_index}
    return Joined(
        animals,
        SegmentationDataset(VOC_STREETS, camvid.pairs, {**vocs_labels(CAMVID), **void}),
        SegmentationDataset(VOC_STREETS, scenes, {**vocs_labels(CITYSCAPES_256), **unlabeled}),
    )
