"""Every benchmark, and folders of one's own, by name: its constants and how its samples are loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emalab.choices import suggestion
from emalab.data.camvid import CAMVID, load_camvid
from emalab.data.cityscapes import CITYSCAPES, CITYSCAPES_256, load_cityscapes, load_cityscapes_256
from emalab.data.coco_stuff import (
    COCO_STUFF_10K,
    COCO_STUFF_164K,
    COCO_VOC,
    load_coco_stuff_10k,
    load_coco_stuff_164k,
    load_coco_voc,
)
from emalab.data.context import CONTEXT_59, CONTEXT_60, load_context
from emalab.data.dataset import LabeledImages
from emalab.data.errors import DataError
from emalab.data.folder import folder_spec, load_folder
from emalab.data.names import SCENES, check_name, is_folder_name
from emalab.data.parts import part_of, split_and_part
from emalab.data.scene_settings import SceneSettings
from emalab.data.shapes import FAR, POOLED, ShapesDataset, scenes_of
from emalab.data.spec import DatasetSpec
from emalab.data.voc import VOC, VOC_ANIMALS, load_voc
from emalab.data.voc_streets import VOC_STREETS, load_voc_streets

__all__ = ["DATASETS", "DatasetEntry", "dataset_names", "get_spec", "load_dataset", "load_images"]


@dataclass(frozen=True)
class DatasetEntry:
    """A data set, and how to load (split, data root) of it; what is generated or has a path does without the root."""

    spec: DatasetSpec
    build: Callable[[str, Path | None], LabeledImages]


DATASETS: dict[str, DatasetEntry] = {
    entry.spec.name: entry
    for entry in (
        DatasetEntry(CAMVID, load_camvid),
        DatasetEntry(VOC, partial(load_voc, VOC)),
        DatasetEntry(VOC_ANIMALS, partial(load_voc, VOC_ANIMALS)),
        DatasetEntry(VOC_STREETS, load_voc_streets),
        DatasetEntry(CONTEXT_59, partial(load_context, CONTEXT_59)),
        DatasetEntry(CONTEXT_60, partial(load_context, CONTEXT_60)),
        DatasetEntry(COCO_STUFF_10K, load_coco_stuff_10k),
        DatasetEntry(COCO_STUFF_164K, load_coco_stuff_164k),
        DatasetEntry(COCO_VOC, load_coco_voc),
        DatasetEntry(CITYSCAPES, load_cityscapes),
        DatasetEntry(CITYSCAPES_256, load_cityscapes_256),
        DatasetEntry(POOLED, lambda split, _: ShapesDataset(scenes_of(POOLED.name), split)),
        DatasetEntry(FAR, lambda split, _: ShapesDataset(scenes_of(FAR.name), split)),
    )
}


def dataset_names() -> tuple[str, ...]:
    """Names that `get_spec` and `load_dataset` know."""
    return tuple(DATASETS)


def get_spec(name: str) -> DatasetSpec:
    """The constants of the benchmark `name`, or of the folder of that path (see `emalab.data.folder`).

    Example:
        >>> get_spec("voc").num_classes
        21

    Raises:
        DataError: no such benchmark, with the nearest name; or a folder that cannot be used.
    """
    return _entry(name).spec


def load_dataset(
    name: str,
    split: str,
    root: Path | str | None = None,
    scenes: SceneSettings | None = None,
    *,
    gray: bool = False,
) -> LabeledImages:
    """The samples of one split, read from the disk as they are asked for.

    Example:
        >>> image, mask, name = load_dataset("shapes-pooled", "val")[0]
        >>> image.shape, mask.shape
        (torch.Size([3, 64, 64]), torch.Size([64, 64]))

    Args:
        name: one of `dataset_names()`, or the path of a folder of one's own or of its `classes.yaml`.
        split: one of `get_spec(name).splits`, or a part of it: ``train/held-out`` is every tenth image of train,
            ``train/kept`` the others (see `emalab.data.parts`).
        root: the folder that contains the unpacked releases (`camvid/`, `VOCdevkit/`, `coco/`); unused for
            generated data and for folders of one's own.
        scenes: settings of generated scenes that are not to have their defaults.
        gray: read the photographs of a folder of one's own as gray, in one channel.

    Raises:
        DataError: no such name, split or root, the root does not hold the list of this split, or settings of scenes
            for other data.
    """
    spec = get_spec(name)
    if split_and_part(split)[0] in spec.unlabeled_splits:
        reason = "not in its masks/" if is_folder_name(name) else "not published"
        raise DataError(f"the labels of {name}'s {split} are {reason}; `emalab submit` predicts them")
    return _load(name, split, spec.splits, root, scenes, gray)


def load_images(name: str, split: str, root: Path | str | None = None, *, gray: bool = False) -> LabeledImages:
    """Like `load_dataset`, for those who want no labels: also the splits whose labels are not published.

    Ask the result for `image(index)`, not for a sample.
    """
    spec = get_spec(name)
    return _load(name, split, spec.splits + spec.unlabeled_splits, root, gray=gray)


def _load(
    name: str,
    split: str,
    splits: tuple[str, ...],
    root: Path | str | None,
    scenes: SceneSettings | None = None,
    gray: bool = False,
) -> LabeledImages:
    whole, part = split_and_part(split)
    if whole not in splits:
        raise DataError(f"{name} has no split {whole!r}; {suggestion(whole, splits)}")
    if scenes and (chosen := scenes.chosen()):
        if name not in SCENES:
            raise DataError(
                f"data.scenes.{next(iter(chosen))} is a setting of generated scenes, and the data set is {name}; "
                f"leave it out, or take {' or '.join(SCENES)}"
            )
        return part_of(ShapesDataset(scenes_of(name, scenes), whole), part)
    return part_of(_entry(name, gray).build(whole, None if root is None else Path(root)), part)


def _entry(name: str, gray: bool = False) -> DatasetEntry:
    check_name(name)
    if is_folder_name(name):
        return DatasetEntry(folder_spec(name), lambda split, _: load_folder(name, split, gray=gray))
    return DATASETS[name]
