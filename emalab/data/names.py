"""Names of data sets and of files: what a mistyped one is met with at once, before anything slow is imported."""

from __future__ import annotations

from pathlib import Path

from emalab.choices import suggestion
from emalab.data.errors import DataError

__all__ = ["BENCHMARKS", "FOLDERS", "RESULTS", "SCENES", "check_name", "is_folder_name"]

SCENES = ("shapes-pooled", "shapes-far")
"""Generated scenes; `emalab.data.scene_settings` says what can be set of them."""

FOLDERS = {
    "camvid": "camvid/ or CamVid/",
    "voc": "VOCdevkit/",
    "voc-animals": "VOCdevkit/",
    "voc-animals-streets": "VOCdevkit/, camvid/ and cityscapes-256/",
    "context-59": "VOCdevkit/",
    "context-60": "VOCdevkit/",
    "coco-stuff-10k": "cocostuff-10k-v1.1/",
    "coco-stuff-164k": "coco/",
    "coco-voc": "coco/",
    "cityscapes": "cityscapes/",
    "cityscapes-256": "cityscapes-256/",
}
"""Benchmarks that are read from files, and where the data root has them."""

BENCHMARKS = (*FOLDERS, *SCENES)
"""Every name that `emalab.data.load_dataset` knows, in the order of lists."""


RESULTS = (
    ".mask.png",
    ".overlay.png",
    ".overlay.webp",
    ".overlay.tif",
    ".overlay.mp4",
    ".confidence.png",
    ".probabilities.npz",
    ".attention.png",
    ".bases.png",
)
"""Endings of what `emalab predict` and `emalab inspect` write, which are never read as photographs."""


def check_name(name: str) -> None:
    """Refuse, with a `DataError` that offers the nearest one, what is neither a benchmark nor the path of a folder."""
    if is_folder_name(name) or name in BENCHMARKS:
        return
    if (kind := name.partition(":")[0]) in SCENES:
        raise DataError(f"there is no data set {name!r}; say {kind}, and set its scenes: --data.scenes.grain 12")
    folder = f"for the folder say {name}/; " if Path(name).is_dir() else ""
    raise DataError(f"there is no data set {name!r}; {folder}{suggestion(name, BENCHMARKS)}")


def is_folder_name(name: str) -> bool:
    """Whether ``name`` is the path of a folder, or of its `classes.yaml`, rather than the name of a benchmark."""
    return "/" in name or "\\" in name or Path(name).suffix in (".yaml", ".yml")
